"""The reference is complete: pages that are generated are up to date, and nothing a user can type goes undescribed."""

import importlib.util
import json
import re
import sys
from importlib import import_module
from pathlib import Path

import pytest
import typer

from mulle.apps.cli.main import COMMANDS
from mulle.loop.settings.schema import render_schema
from support.pages import NOT_RUN, read_page

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
SOURCE = ROOT / "src" / "mulle"
PACKAGES = sorted(path.name for path in SOURCE.iterdir() if (path / "__init__.py").is_file())
MAX_README_LINES = 30
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")


def load_generator():
    """Return `docs/generate.py` as a module."""
    spec = importlib.util.spec_from_file_location("docs_generate", DOCS / "generate.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


generate = load_generator()


def commands():
    """Return every command with its typer object: groups by their parts."""
    for name, (module, _) in COMMANDS.items():
        command = typer.main.get_command(import_module(f"mulle.apps.cli.{module}").app)
        group = getattr(command, "commands", None)
        for part, inner in (group or {"": command}).items():
            yield pytest.param(inner, id=f"mulle {name} {part}".strip())


@pytest.mark.parametrize("name", list(generate.PAGES))
def test_generated_pages_are_up_to_date(name):
    """`python docs/generate.py` would change nothing."""
    written = (DOCS / name).read_text(encoding="utf-8")

    assert generate.PAGES[name]().rstrip() + "\n" == written, "run `python docs/generate.py`"


@pytest.mark.parametrize("command", list(commands()))
def test_every_command_and_option_says_what_it_does(command):
    """Each has a sentence, each option and argument has one, and an example stands below."""
    silent = [parameter.name for parameter in command.params if not getattr(parameter, "help", None)]

    assert command.help
    assert "Example: mulle " in (command.epilog or "")
    assert [] == silent


def settings_keys(schema, table, path):
    """Yield (path, description) of every key below `table`."""
    for key, value in table.get("properties", {}).items():
        target = generate._resolved(value, schema["$defs"])
        here = f"{path}.{key}".lstrip(".")
        yield here, value.get("description") or target.get("description")
        if target is not value:
            yield from settings_keys(schema, target, here)


def test_every_setting_is_described():
    """A key of mulle.toml without a sentence would be a riddle in editors and on the page."""
    schema = json.loads(render_schema())
    silent = [path for path, description in settings_keys(schema, schema, "") if not description]

    assert [] == silent


def test_every_error_code_has_a_heading():
    """What an error prints in brackets can be looked up."""
    headings = set(re.findall(r"^## `([^`]+)`$", (DOCS / "reference" / "errors.md").read_text(encoding="utf-8"), re.MULTILINE))
    codes = {raised.code for raised in generate.raised_errors()}

    assert len(codes) > 100
    assert codes == headings


def test_the_generator_sees_what_is_raised():
    """Codes of settings, of the server and of errors with two codes are found, not only the plain ones."""
    codes = {raised.code for raised in generate.raised_errors()}

    assert {"config-unknown-key", "http-host-refused", "expression-method", "gate-refused", "metric-one-class"} <= codes


def test_every_page_is_in_the_navigation():
    """A page nobody can reach, decision records included, is as good as none."""
    navigation = set(re.findall(r":\s+([\w./-]+\.md)\s*$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE))
    pages = {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")}

    assert set() == pages - navigation


@pytest.mark.parametrize(
    "path", [*sorted(ROOT.glob("*.md")), *sorted(DOCS.rglob("*.md"))], ids=lambda path: path.relative_to(ROOT).as_posix()
)
def test_links_between_pages_lead_somewhere(path):
    """Every relative link and picture is a file of the repository."""
    text = path.read_text(encoding="utf-8")
    targets = [target for target in LINK.findall(text) if "://" not in target and not target.startswith("mailto:")]

    assert [] == [target for target in targets if not (path.parent / target).exists()]


@pytest.mark.parametrize("package", PACKAGES)
def test_every_package_says_what_it_promises(package):
    """Its README is short, says what it may import, and names a first file that exists."""
    text = (SOURCE / package / "README.md").read_text(encoding="utf-8")
    first = re.search(r"\*\*Open first\*\* `([^`]+)`", text)

    assert len(text.splitlines()) <= MAX_README_LINES
    assert "**May import**" in text
    assert first
    assert (SOURCE / package / first[1]).is_file()


def test_files_named_in_package_readmes_exist():
    """A README that names a file which was renamed is worse than none."""
    named = [
        (package, name)
        for package in PACKAGES
        for name in re.findall(r"`([\w/*]+(?:\.py|/))`", (SOURCE / package / "README.md").read_text(encoding="utf-8"))
    ]
    gone = [
        f"{package}: {name}"
        for package, name in named
        if not any(list(folder.glob(name.rstrip("/"))) for folder in (SOURCE / package, SOURCE, ROOT))
    ]

    assert named
    assert [] == gone


@pytest.mark.parametrize("name", ["README.md", "README.ko.md"])
def test_make_targets_on_the_first_page_exist(name):
    """Commands that are not carried out by the page's own test are at least commands that exist."""
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    asked = [command.text for command in read_page(ROOT / name).commands if command.text.startswith(NOT_RUN)]

    assert asked
    assert [] == [text for text in asked if text.startswith("make ") and text.split()[1] not in targets]


@pytest.mark.parametrize("name", ["README.md", "README.ko.md"])
def test_the_figures_have_their_place(name):
    """The benchmark runner finds the two marks it writes between."""
    text = (ROOT / name).read_text(encoding="utf-8")

    assert 1 == text.count("<!-- figures:start -->")
    assert text.index("<!-- figures:start -->") < text.index("<!-- figures:end -->")
