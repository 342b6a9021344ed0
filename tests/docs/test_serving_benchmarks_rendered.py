"""The serving figures that are published are the measured ones: rendered from `benchmarks/serving/results.json`, and from nothing else."""

import copy
import importlib
import importlib.util
import json
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "benchmarks" / "serving"


def _load(name):
    """Return a module of the benchmark's package; those asked for here import nothing but each other."""
    if "serving" not in sys.modules:
        spec = importlib.util.spec_from_file_location("serving", FOLDER / "__init__.py", submodule_search_locations=[str(FOLDER)])
        sys.modules["serving"] = importlib.util.module_from_spec(spec)
    return importlib.import_module(f"serving.{name}")


render, targets, names, figures = (_load(name) for name in ("render", "targets", "names", "figures"))


@pytest.fixture
def results():
    """Return the published results."""
    return json.loads((FOLDER / "results.json").read_bytes())


def _row(rate, cpu, p99, samples):
    return {"rate": {"rounds": rate}, "cpu_us": {"rounds": cpu}, "p99_ms": {"rounds": [p99], "pooled": p99, "samples": samples}}


@pytest.fixture
def small():
    """Return results with one table: ours, and the tutorial app."""
    columns = [
        {"key": "rate", "label": "requests/s", "unit": "rate"},
        {"key": "cpu_us", "label": "CPU", "unit": "µs"},
        {"key": "p99_ms", "label": "p99", "unit": "ms"},
    ]
    rows = {
        names.FULL: _row([80_000.0, 90_000.0, 100_000.0], [11.5, 12.0, 13.0], 1.5, 50_000),
        names.TUTORIAL: _row([10_000.0, 9_000.0, 8_000.0], [100.0], 20.0, 4_000),
    }
    shown = {"title": "One row", "columns": columns, "rows": rows, "base": names.TUTORIAL, "ratio": "rate"}
    group = {
        "title": "Tabular",
        "tables": {"json-64": shown},
        "skipped": {"Triton": "it cannot be installed here"},
        "notes": ["말"],
        "configured": {names.TUTORIAL: "as tutorials do"},
        "seconds": 1.0,
    }
    machine = {"cpu": "CPU", "cores": 2, "memory_gib": 24.0, "system": "Linux", "python": "3.11", "load_min": 0.1, "load_max": 0.5}
    return {"date": "2026-01-01", "quick": False, "machine": machine, "versions": {"mulle": "1"}, "groups": {"tabular": group}}


def test_the_serving_page_says_what_was_measured(results):
    """A page that was edited, or not rendered after a measurement, fails here."""
    assert render.render_page(results) == (FOLDER / "RESULTS.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("path", ["README.md", "README.ko.md"])
def test_the_readme_says_what_the_serving_benchmark_measured(results, path):
    """Where a README shows the performance table, it is that of the results."""
    text = (ROOT / path).read_text(encoding="utf-8")

    assert render.place_block(text, render.figures_block(results)) == text


def test_the_published_serving_results_are_whole(results):
    """Full settings, every group with figures, and no path or address of the machine they come from."""
    text = json.dumps(results, ensure_ascii=False)

    assert results["quick"] is False
    assert {"tabular", "grpc", "small", "resnet", "overload", "footprint"} == set(results["groups"])
    assert [] == [name for name, group in results["groups"].items() if not any(shown["rows"] for shown in group["tables"].values())]
    assert [] == re.findall(r"(?<![\w.])/(?:home|root|tmp|work|usr|Users|var)/\S*", text)


def test_a_changed_serving_figure_changes_page_and_readme(small):
    """The comparisons above can fail: nothing is cached or rounded away."""
    other = copy.deepcopy(small)
    other["groups"]["tabular"]["tables"]["json-64"]["rows"][names.FULL]["cpu_us"]["rounds"] = [15.0]

    assert render.render_page(other) != render.render_page(small)
    assert render.figures_block(other) != render.figures_block(small)


@pytest.mark.parametrize(
    ("cpu", "must", "aim"),
    [
        pytest.param([10.0, 11.0, 12.0], "kept", "kept", id="the median is at the aim: both kept"),
        pytest.param([12.0, 12.5, 40.0], "kept", "missed", id="between: only the must is kept"),
        pytest.param([14.1], "missed", "missed", id="just above the limit: missed, not rounded"),
        pytest.param(None, "not measured", "not measured", id="no figure: never passed over in silence"),
    ],
)
def test_serving_promises_are_judged(small, cpu, must, aim):
    """What is lost is published like what is won."""
    row = small["groups"]["tabular"]["tables"]["json-64"]["rows"][names.FULL]
    if cpu is None:
        del row["cpu_us"]
    else:
        row["cpu_us"]["rounds"] = cpu
    found = {one.kind: one.verdict for one in targets.targets(small) if one.what.endswith("server CPU per request")}

    assert {"must": must, "aim": aim} == found


def test_ratios_are_taken_round_by_round(small):
    """A busy minute hits both contestants of its round: the median of 2, 1 and 3, not 9 over 3."""
    assert 2.0 == figures.rate_ratio({"rounds": [2.0, 9.0, 9.0]}, {"rounds": [1.0, 9.0, 3.0]})
    assert 10.0 == figures.ratio(small, "json-64", names.FULL, names.TUTORIAL)
    assert None is figures.ratio(small, "json-64", names.FULL, names.TRITON)


def test_a_percentile_on_few_samples_says_so(small):
    """Below 10,000 samples the cell shows `~` and their number; above, the bare figure."""
    page = render.render_page(small)

    assert "| **mulle serve, everything on** | 90,000 (80,000–100,000) | 12.0 µs (11.5–13.0) | 1.50 ms | × 10.0 |" in page
    assert "~ 20.0 ms (n = 4,000)" in page


def test_the_serving_page_names_who_is_missing_and_how_each_was_configured(small):
    """A peer that took no part stands there with its reason."""
    page = render.render_page(small)

    assert "- Not measured: Triton: it cannot be installed here" in page
    assert f"| {names.TUTORIAL} | as tutorials do | tabular |" in page
    assert "말" in page


def test_a_readme_without_serving_markers_is_left_alone(small):
    """Nothing is written where nobody asked for figures; between markers everything is replaced, twice the same."""
    block = render.figures_block(small)
    once = render.place_block(f"# 물레\n\n{render.START}\nold\n{render.END}\n\nrest\n", block)

    assert "# 물레\n" == render.place_block("# 물레\n", block)
    assert f"# 물레\n\n{block}\n\nrest\n" == once
    assert once == render.place_block(once, block)


@pytest.mark.parametrize(
    ("figure", "unit", "expected"),
    [
        pytest.param(123456.7, "rate", "123,457", id="a rate: no digits"),
        pytest.param(9.64, "µs", "9.64 µs", id="microseconds: three digits"),
        pytest.param(0.046, "ms", "0.046 ms", id="small times are not nothing"),
        pytest.param(0.9, "percent", "90 %", id="a share"),
        pytest.param(8.0, "times", "× 8.00", id="a ratio"),
        pytest.param(1.0, "count", "1.00", id="a small count"),
        pytest.param(0.0, "rate", "0", id="nothing"),
    ],
)
def test_serving_figures_have_as_many_digits_as_they_deserve(figure, unit, expected):
    """Four digits of a noisy second would be a lie."""
    assert expected == render.with_unit(figure, unit)
