"""The habits of the house that no linter knows: file sizes, sentences on tests, words that must not be published."""

import ast
import re
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("src", "tests", "benchmarks", "docs", "requirements")


def files(folder, pattern):
    """Return the files of a folder in order, without what lies in hidden folders (environments, caches)."""
    found = sorted((ROOT / folder).rglob(pattern))
    return [path for path in found if not any(part.startswith((".", "__")) for part in path.relative_to(ROOT).parts[:-1])]


SOURCES = [path for folder in FOLDERS for path in files(folder, "*.py")]
TESTS = [path for path in SOURCES if path.is_relative_to(ROOT / "tests") and path.name.startswith("test_")]
PUBLISHED = [
    *SOURCES,
    *(path for folder in ("src", "docs") for kind in ("*.md", "*.toml", "*.html", "*.json") for path in files(folder, kind)),
    *sorted(ROOT.glob("*.md")),
    *(ROOT / name for name in ("Makefile", "pyproject.toml", "mkdocs.yml")),
]
MAX_LINES = 500
UNPLANNED = re.compile(r"(?:#|<!--|//)\s*\b(?:TODO|FIXME|XXX|HACK)\b")
PRIVATE = re.compile(r"(?<![\w./~-])/(?:home|root|work|Users|mnt)/[\w.-]+")
PLAIN_SECRET = re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----")


def named(path):
    """Return how a file is called in the list of tests."""
    return path.relative_to(ROOT).as_posix()


def lines_with(pattern, paths):
    """Return `file:line` of every line that `pattern` finds, this file left out."""
    found = []
    for path in paths:
        if path != Path(__file__) and path.is_file():
            for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
                if pattern.search(line):
                    found.append(f"{named(path)}:{number}: {line.strip()[:120]}")
    return found


def test_no_file_is_too_long():
    """A file above 500 lines wants to be two."""
    lengths = {named(path): len(path.read_text(encoding="utf-8").splitlines()) for path in SOURCES}

    assert {} == {name: n for name, n in lengths.items() if n > MAX_LINES}


def test_every_module_says_what_it_is():
    """Its first statement is a sentence; packages too."""
    silent = [
        named(path)
        for path in SOURCES
        if path.is_relative_to(ROOT / "src")
        and path.read_text(encoding="utf-8").strip()
        and not ast.get_docstring(ast.parse(path.read_bytes()))
    ]

    assert [] == silent


@pytest.mark.parametrize("path", TESTS, ids=named)
def test_every_test_says_which_behaviour_it_holds(path):
    """A failing test whose name is all there is would have to be reverse-engineered."""
    functions = [node for node in ast.walk(ast.parse(path.read_bytes())) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    silent = [f"{node.name}:{node.lineno}" for node in functions if node.name.startswith("test_") and not ast.get_docstring(node)]

    assert [] == silent


def test_test_files_have_names_of_their_own():
    """`tests/` is not a package: two files of one name would be one module."""
    counts = Counter(path.name for path in TESTS)

    assert [] == [name for name, n in counts.items() if n > 1]


def test_nothing_is_left_for_later_in_a_comment():
    """What is open stands in the tracker, with a plan."""
    assert [] == lines_with(UNPLANNED, PUBLISHED)


def test_no_path_of_a_machine_is_published():
    """A folder of the machine somebody worked on means nothing to anybody else."""
    assert [] == lines_with(PRIVATE, PUBLISHED)


def test_no_private_key_is_published():
    """Keys of tests are made by the tests."""
    assert [] == lines_with(PLAIN_SECRET, PUBLISHED)


def test_no_room_for_leftovers():
    """There is no `utils`, `helpers` or `misc`: a thing has a place, or the house lacks a room."""
    assert [] == [
        named(path) for path in SOURCES if {"utils", "util", "helpers", "misc", "common"} & {path.stem, *path.relative_to(ROOT).parts}
    ]


@pytest.mark.parametrize(
    ("pattern", "line", "found"),
    [
        pytest.param(UNPLANNED, "# " + "TODO: later", True, id="a comment that puts something off"),
        pytest.param(UNPLANNED, "the word stands in a sentence, not as a mark", False, id="a sentence is no mark"),
        pytest.param(PRIVATE, "see " + "/home/" + "somebody/project", True, id="somebody's folder"),
        pytest.param(PRIVATE, "https://example.com/home/page and ../work/here", False, id="a part of an address is no folder"),
        pytest.param(PLAIN_SECRET, "-----BEGIN " + "EC PRIVATE KEY-----", True, id="a key"),
    ],
)
def test_what_must_not_be_published_is_recognised(pattern, line, found):
    """The searches above can say no."""
    assert found == bool(pattern.search(line))
