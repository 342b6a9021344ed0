"""The documentation cannot rot: every fenced block of every page is carried out, or validated where it cannot be."""

import json
import tomllib
from pathlib import Path

import pytest

from mulle.loop.settings.load import load_settings
from support.pages import KINDS, NOT_RUN, OPENING, Command, Page, Recording, Session, missing_lines, read_commands, read_page

ROOT = Path(__file__).resolve().parents[2]
PAGES = [read_page(path) for path in sorted([*ROOT.glob("README*.md"), *(ROOT / "docs").rglob("*.md")])]
MINIMAL = '[project]\nname = "shop"\n\n'


def name_of(page: Page) -> str:
    """Return how a page is called in the list of tests."""
    return page.path.relative_to(ROOT).as_posix()


def sessions():
    """Return the pages with something to carry out; those with commands take long and share one folder."""
    for page in PAGES:
        if any(block.kind in {"console", "python"} for block in page.blocks):
            marks = [pytest.mark.xdist_group("documentation")]
            if page.commands:
                marks.append(pytest.mark.slow)
            yield pytest.param(page, id=name_of(page), marks=marks)


@pytest.fixture(scope="session")
def session(tmp_path_factory):
    """Return the one folder pages are carried out in, one after the other."""
    return Session(tmp_path_factory.mktemp("documentation"))


@pytest.fixture(scope="session")
def recording(session):
    """Return the finished churn project: made once, by the commands the quick start shows."""
    session.begin(None)
    printed = []
    for text in OPENING:
        code, out = session.run(Command(0, text, ()))
        assert code == 0, out
        printed.append(out)
    folder = session.root / "finished"
    session.folder.rename(folder)
    return Recording(folder, printed)


def carry_out(page, session, printed):
    """Carry a page out block by block; return what is not as the page says."""
    problems = []
    left = list(printed)
    for block in page.blocks:
        where = f"{name_of(page)}:{block.line}"
        if block.title and block.kind in {"python", "toml", "json"}:
            target = Path(session.here) / block.title
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(session.with_port(block.text), encoding="utf-8")
        elif block.kind == "python":
            _, problem = session.run_python(block)
            if problem:
                problems.append(f"{where}: the block raises\n{problem}")
        elif block.kind == "console":
            for command in read_commands(block):
                if command.text.startswith(NOT_RUN):
                    continue
                code, out = (0, left.pop(0)) if left else session.run(command)
                missing = missing_lines(command.expected, out)
                if code != command.exit_code or missing:
                    problems.append(
                        f"{name_of(page)}:{command.line}: $ {command.text}\n"
                        f"exit code {code}, the page says {command.exit_code}\nnot printed: {missing}\nprinted:\n{out}"
                    )
    return problems


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("page", list(sessions()))
def test_a_page_does_what_it_says(page, session, request):
    """Commands succeed and print what the page shows; Python blocks run; servers stop when they are told to."""
    commands = tuple(command.text for command in page.commands if not command.text.startswith(NOT_RUN))
    replayed = commands[: len(OPENING)] == OPENING
    needs_project = page.opening == "churn" or replayed
    recorded = request.getfixturevalue("recording") if needs_project else None
    session.begin(recorded)
    try:
        problems = carry_out(page, session, recorded.printed if recorded and replayed else ())
    finally:
        stopped = session.end()

    assert not problems + stopped, "\n\n".join(problems + stopped)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_block_says_what_it_is(page):
    """A block without a known kind would be neither carried out nor looked at."""
    unknown = [f"line {block.line}: {block.kind!r}" for block in page.blocks if block.kind not in KINDS]

    assert [] == unknown


@pytest.mark.parametrize("page", [p for p in PAGES if any(b.kind == "toml" for b in p.blocks)], ids=name_of)
def test_settings_on_pages_are_accepted(page, tmp_path):
    """Every `toml` block is a mulle.toml, or becomes one with a name put before it; it passes the real reader."""
    for block in page.blocks:
        if block.kind == "toml":
            text = block.text if "project" in tomllib.loads(block.text) else MINIMAL + block.text
            (tmp_path / "mulle.toml").write_text(text, encoding="utf-8")

            for environment in ["local", *tomllib.loads(text).get("env", {})]:
                assert load_settings(tmp_path, environment).project.name


@pytest.mark.parametrize("page", [p for p in PAGES if any(b.kind == "json" for b in p.blocks)], ids=name_of)
def test_json_on_pages_is_json(page):
    """Every `json` block parses."""
    for block in page.blocks:
        if block.kind == "json":
            assert json.loads(block.text) is not None


@pytest.mark.parametrize(
    ("expected", "printed", "missing"),
    [
        pytest.param(["a  b"], "x\na b\ny", [], id="blanks count as one"),
        pytest.param(["b", "a"], "a\nb", ["a"], id="the order counts"),
        pytest.param(["took … s"], "took 3.1 s", [], id="an ellipsis stands for anything within a line"),
        pytest.param(["took …"], "it took 3.1 s", ["took …"], id="a line is compared whole"),
        pytest.param(["a", "…", "d"], "a\nb\nc\nd", [], id="an ellipsis alone stands for any lines"),
        pytest.param(["value 1"], "value 2", ["value 1"], id="another value is not the value"),
    ],
)
def test_what_counts_as_printed(expected, printed, missing):
    """The rule by which a page's output is compared can say no."""
    assert missing == missing_lines(expected, printed)


def test_a_closing_fence_is_asked_for(tmp_path):
    """A page whose block never ends is refused: everything behind it would go unseen."""
    path = tmp_path / "page.md"
    path.write_text("```console\n$ true\n", encoding="utf-8")

    with pytest.raises(AssertionError, match="never closed"):
        read_page(path)
