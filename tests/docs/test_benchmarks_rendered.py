"""The published figures are the measured ones: every page is rendered from `benchmarks/results.json`, and from nothing else."""

import copy
import importlib.util
import json
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results.json"


def _load(name):
    spec = importlib.util.spec_from_file_location(f"benchmarks_{name}", ROOT / "benchmarks" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


render = _load("render")


@pytest.fixture
def results():
    """Return the published results."""
    return json.loads(RESULTS.read_bytes())


@pytest.fixture
def small():
    """Return results of one benchmark with one promise and one peer that could not be installed."""
    wall = {"median": 0.2, "min": 0.1, "max": 0.5, "n": 3}
    shown = {
        "title": "",
        "columns": [{"key": "wall_s", "label": "wall", "unit": "s"}],
        "rows": {"mulle": {"wall_s": wall}, "other": {"wall_s": {**wall, "median": 0.6}}},
        "ratio": "wall_s",
        "headlines": [{"what": "`mulle --help`", "row": "mulle", "key": "wall_s", "below": 0.3}],
    }
    machine = {
        "cpu": "CPU",
        "cores": 2,
        "memory_gib": 24.0,
        "system": "Linux x86_64",
        "python": "3.11.7",
        "load_min": 0.1,
        "load_max": 0.4,
    }
    return {
        "date": "2026-01-01",
        "quick": False,
        "machine": machine,
        "versions": {"mulle": "1"},
        "benchmarks": {"startup": {"title": "Help", "tables": [shown], "skipped": {"dvc": "it cannot be installed here"}, "notes": ["말"]}},
    }


@pytest.mark.parametrize("path", ["benchmarks/RESULTS.md", "docs/reference/benchmarks.md"])
def test_the_pages_say_what_was_measured(results, path):
    """A page that was edited, or not rendered after a measurement, fails here."""
    assert render.render_page(results) == (ROOT / path).read_text(encoding="utf-8")


@pytest.mark.parametrize("path", ["README.md", "README.ko.md"])
def test_the_readme_says_what_was_measured(results, path):
    """Where a README shows figures, they are those of the results."""
    page = ROOT / path
    text = page.read_text(encoding="utf-8") if page.exists() else ""

    assert render.place_block(text, render.figures_block(results)) == text


def test_the_published_results_are_whole_and_name_no_machine(results):
    """Full settings, every benchmark with figures, and no path or host name of the machine they come from."""
    text = RESULTS.read_text(encoding="utf-8")

    assert results["quick"] is False
    assert [] == [name for name, one in results["benchmarks"].items() if not one["tables"]]
    assert [] == re.findall(r"(?<![\w.])/(?:home|root|tmp|work|usr|Users|var)/\S*", text)
    assert [] == re.findall(r"https?://(?!127\.0\.0\.1)\S+", text)


def test_a_changed_figure_changes_every_page(small):
    """The comparison above can fail: nothing is cached or rounded away."""
    other = copy.deepcopy(small)
    other["benchmarks"]["startup"]["tables"][0]["rows"]["mulle"]["wall_s"]["median"] = 0.25

    assert render.render_page(other) != render.render_page(small)
    assert render.figures_block(other) != render.figures_block(small)


@pytest.mark.parametrize(
    ("median", "said"),
    [
        pytest.param(0.299, "kept", id="below the limit: kept"),
        pytest.param(0.3, "**missed**", id="at the limit: missed, and said so in bold"),
        pytest.param(None, "**not measured**", id="no figure: never passed over in silence"),
    ],
)
def test_promises_are_judged(small, median, said):
    """What is lost is published like what is won."""
    rows = small["benchmarks"]["startup"]["tables"][0]["rows"]
    if median is None:
        del rows["mulle"]
    else:
        rows["mulle"]["wall_s"]["median"] = median

    assert f"| < 0.300 s: {said} |" in render.figures_block(small)
    assert f"Promised: `mulle --help` < 0.300 s: {said}." in render.render_page(small)


def test_a_page_shows_ranges_ratios_and_who_is_missing(small):
    """One median says little: its range, the ratio, and the peer that took no part stand beside it."""
    page = render.render_page(small)

    assert "| mulle | 0.200 s (0.100–0.500) | × 1.00 |" in page
    assert "| other | 0.600 s (0.100–0.500) | × 3.00 |" in page
    assert "- Not measured: dvc: it cannot be installed here" in page
    assert "말" in page


@pytest.mark.parametrize(
    ("load", "busy"), [pytest.param(0.5, False, id="an idle machine"), pytest.param(9.0, True, id="a machine with other work")]
)
def test_a_busy_machine_is_admitted(small, load, busy):
    """Wall times of a busy machine mean little, and the page says so."""
    small["machine"]["load_max"] = load

    assert busy == ("The machine was busy" in render.render_page(small))


@pytest.mark.parametrize(
    ("value", "unit", "expected"),
    [
        pytest.param(0.0123, "s", "0.012", id="milliseconds of a second"),
        pytest.param(12.34, "ms", "12.3", id="tens: one digit"),
        pytest.param(1234.5, "ms", "1,234", id="thousands: none"),
        pytest.param(0.000045, "ms", "5e-05", id="a function call is not nothing"),
        pytest.param(0.0, "s", "0", id="nothing"),
        pytest.param(0.821084, "share", "0.8211", id="a metric"),
        pytest.param(-0.0042, "signed", "-0.0042", id="a difference shows its sign"),
        pytest.param(0.045, "percent", "4.5 %", id="a share of windows"),
        pytest.param(13900.4, "rate", "13,900", id="a rate"),
    ],
)
def test_figures_have_as_many_digits_as_they_deserve(value, unit, expected):
    """Four digits of a noisy second would be a lie; one digit of a metric would hide it."""
    assert expected == render.number(value, unit)


def test_a_readme_without_markers_is_left_alone(small):
    """Nothing is written where nobody asked for figures; between markers everything is replaced, twice the same."""
    block = render.figures_block(small)
    marked = f"# 물레\n\n{render.START}\nold\n{render.END}\n\nrest\n"
    once = render.place_block(marked, block)

    assert "# 물레\n" == render.place_block("# 물레\n", block)
    assert f"# 물레\n\n{block}\n\nrest\n" == once
    assert once == render.place_block(once, block)
