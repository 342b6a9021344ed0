"""Bad tables through `mulle run`: one clear error with a fix, no traceback, and the champion is served as before.

The rules one by one are in `unit/data/test_expectations.py` and `test_sources_files.py`; here is what a person sees.
"""

import math

import polars as pl
import pytest

from support.projects import ENGLISH, finished

pytestmark = pytest.mark.slow

W = ENGLISH


@pytest.fixture
def tiny(tmp_path, own_key_folder, monkeypatch):
    """Return a project whose wheel has turned once: there is a champion to lose."""
    return finished(tmp_path / "tiny", monkeypatch)


def state(project):
    """Return what a failed run must not touch: the event log's head, bundles, the served spec."""
    root = project.folder / ".mulle"
    return [
        sorted(path.name for path in (root / "bundles").iterdir()),
        (root / "serving/tiny.json").read_bytes(),
        sorted(path.name for path in (root / "stages/register").iterdir()),
    ]


def require_refused(project, capsys, before, code, exit_code, said):
    """Assert that a run ends with this error, in both spellings, and that nothing was lost."""
    machine = project.call(capsys, "run", "--json")
    person = project.call(capsys, "run")

    assert (exit_code, code) == (machine.code, machine.error["code"]), machine.out
    assert said in f"{machine.error['what']} {machine.error['facts']} {machine.error['where']}"
    assert machine.error["fix"].strip()
    assert exit_code == person.code
    assert f"error[{code}]" in person.err
    assert "Traceback" not in person.err + machine.err + machine.out
    assert before == state(project)
    assert [] == project.drafts()
    assert [(1, ("champion",))] == project.versions(capsys)


TABLES = [
    pytest.param(lambda t: t.head(0), "data-unsound", 1, "0 rows", id="no rows"),
    pytest.param(lambda t: t.head(1), "data-unsound", 1, "1 row;", id="one row"),
    pytest.param(lambda t: t.with_columns(pl.lit("no").alias(W.target)), "data-unsound", 1, "class", id="one class"),
    pytest.param(lambda t: t.drop(W.target), "data-unsound", 1, W.target, id="no target"),
    pytest.param(lambda t: t.with_columns(pl.lit(None, pl.String).alias(W.target)), "data-unsound", 1, W.target, id="an empty target"),
    pytest.param(lambda t: t.with_columns(pl.lit(None, pl.Float64).alias(W.gappy)), "data-unsound", 1, W.gappy, id="an all-null column"),
    pytest.param(lambda t: pl.concat([t, t.head(3)]), "data-unsound", 1, W.entity, id="duplicated ids"),
    pytest.param(
        lambda t: t.with_columns(pl.lit("텔레비전").alias(W.category)), "data-unsound", 1, "텔레비전", id="a category not allowed"
    ),
    pytest.param(lambda t: t.rename({W.number: "minuts"}), "expression-column", 2, "minutes", id="a renamed column"),
    pytest.param(
        lambda t: t.with_columns(pl.col(W.number).cast(pl.String) + " min"),
        "expression-type",
        2,
        "helpers.py:2",
        id="text where numbers were",
    ),
    pytest.param(
        lambda t: t.with_columns(pl.concat_list(W.number, W.number).alias("pair")), "column-type", 2, "pair", id="a list in a column"
    ),
]


@pytest.mark.parametrize(("change", "code", "exit_code", "said"), TABLES)
def test_a_table_that_teaches_nothing_stops_the_run(tiny, capsys, change, code, exit_code, said):
    """Whatever is wrong with the table, it is named, and the champion stays."""
    before = state(tiny)
    tiny.write_table(change(tiny.table()))

    require_refused(tiny, capsys, before, code, exit_code, said)


SOURCES = [
    pytest.param("return None", "table-type", "None", id="a source that forgets to return"),
    pytest.param("return [1, 2, 3]", "table-type", "list", id="a source that returns a list"),
    pytest.param("return 1 / 0", "user-code", "ZeroDivisionError", id="a source that raises"),
    pytest.param("return mulle.read_parquet('data/rwos.parquet')", "source-missing", "rwos", id="a file that is not there"),
    pytest.param("return mulle.read_parquet('/etc/hosts')", "parquet-unreadable", "hosts", id="a file that is no table"),
    pytest.param(
        "import pandas as pd; return pd.DataFrame({'visitor': ['a', 'b'], 'minutes': [1, 'two']})",
        "column-mixed-types",
        "minutes",
        id="numbers and texts in one column",
    ),
    pytest.param("import sys; sys.exit(3)", "user-code", "SystemExit", id="a source that ends the process"),
]


@pytest.mark.parametrize(("body", "code", "said"), SOURCES)
def test_a_source_that_gives_no_table_stops_the_run(tiny, capsys, body, code, said):
    """The error says what came instead, or their own file and line."""
    before = state(tiny)
    tiny.change("project.py", 'return mulle.read_parquet("data/rows.parquet")', body)

    require_refused(tiny, capsys, before, code, 2, said)


def test_nan_and_infinity_are_missing_values(tiny, capsys):
    """They are warned about, counted as missing, and the wheel turns."""
    table = tiny.table()
    numbers = [math.nan if i % 20 == 0 else math.inf if i % 20 == 1 else value for i, value in enumerate(table[W.number])]
    tiny.write_table(table.with_columns(pl.Series(W.number, numbers)))
    answer = tiny.call(capsys, "run")
    row = '{"minutes": null, "spend": null, "channel": null, "member": null}'

    assert 0 == answer.code, answer.err
    assert "infinite" in answer.err
    assert 2 == len(tiny.versions(capsys))
    assert (
        0
        == tiny.call(capsys, "predict", "--version", "2", "--row", '{"minutes": null, "spend": 1, "channel": "mail", "member": true}').code
    )
    assert 2 == tiny.call(capsys, "predict", "--version", "2", "--row", row).code


PREDICT = [
    pytest.param('{"minutes": 1}', "rows-missing-column", id="columns left out"),
    pytest.param(
        '{"minutes": 1, "spend": 2, "channel": "mail", "member": true, "extra": 1}', "rows-unknown-column", id="a column too many"
    ),
    pytest.param('{"minutes": "one", "spend": 2, "channel": "mail", "member": true}', "rows-wrong-type", id="text for a number"),
    pytest.param('{"minutes": 1e999, "spend": 2, "channel": "mail", "member": true}', "body-invalid", id="a number beyond all numbers"),
    pytest.param("{", "body-invalid", id="half an object"),
    pytest.param("[1]", "predict-usage", id="a list"),
]


def test_one_row_that_does_not_fit_is_refused(tiny, capsys):
    """Every mistake in a row has its code, the column's name and a fix; a category nobody saw is answered."""
    found = []
    for param in PREDICT:
        answer = tiny.call(capsys, "predict", "--row", param.values[0], "--json")
        found.append((answer.code, answer.error["code"], bool(answer.error["fix"])))
    unseen = tiny.call(capsys, "predict", "--row", '{"minutes": 1, "spend": 2, "channel": "billboard", "member": true}', "--json")

    assert [(2, param.values[1], True) for param in PREDICT] == found
    assert 0 == unseen.code, unseen.out
