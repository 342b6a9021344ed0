"""`mulle predict`: a table gets the answers the server gives, row by row."""

import json

import polars as pl
import pytest

from mulle.apps.cli.main import main
from mulle.core.errors import SpecError
from mulle.loop.predict import predict_row, read_table, score_file, score_table
from mulle.serve.reload import load_bundle
from support.bundles import GOLDEN_ROWS, answers, churn_graph, seal_churn, trusted_key

TABLE = pl.DataFrame(
    {
        "extra": [1, 2, 3],
        "customer_id": ["가", "나", "다"],
        "tenure": [1, 60, None],
        "monthly": [70.0, 20.5, 99.0],
        "계약": ["월별", "2년", None],
    }
)


@pytest.fixture
def runtime(tmp_path):
    return load_bundle(seal_churn(tmp_path).path, trusted=[trusted_key()])


@pytest.mark.parametrize("ending", [".parquet", ".csv", ".json", ".ndjson"])
def test_every_format_gives_the_graphs_own_answers(runtime, tmp_path, ending):
    """Parquet, CSV, JSON and JSON lines of one table give one answer; the entity stays, other columns go."""
    source, output = tmp_path / f"표{ending}", tmp_path / "답.parquet"
    writer = {".parquet": TABLE.write_parquet, ".csv": TABLE.write_csv, ".json": TABLE.write_json, ".ndjson": TABLE.write_ndjson}[ending]
    writer(source)
    scored = score_file(runtime, source, output)
    found = pl.read_parquet(output)

    assert (3, ("customer_id", "prediction", "probability_No", "probability_Yes")) == (scored.n_rows, scored.columns)
    assert answers(churn_graph(), GOLDEN_ROWS)[:, 1].tolist() == found["probability_Yes"].to_list()
    assert ["가", "나", "다"] == found["customer_id"].to_list()


def test_batches_change_no_answer(runtime):
    """Memory is bounded by batches, answers are not theirs, and progress reaches the end."""
    table = pl.concat([TABLE] * 7)
    seen = []
    whole = score_table(runtime, table)
    pieces = score_table(runtime, table, batch_rows=4, on_progress=lambda done, total: seen.append((done, total)))

    assert whole.equals(pieces)
    assert (21, 21) == seen[-1]


def test_an_empty_table_gives_an_empty_answer(runtime):
    """No rows is not an error, and the columns are there."""
    assert (0, 4) == score_table(runtime, TABLE.head(0)).shape


def test_one_row_is_answered_as_the_server_does(runtime):
    """The same words as /predict."""
    answer = predict_row(runtime, {"tenure": 1, "monthly": 70, "계약": "월별", "customer_id": "가"})

    assert ("Yes", ["No", "Yes"]) == (answer["label"], list(answer["probabilities"]))


@pytest.mark.parametrize(
    ("table", "code"),
    [
        pytest.param(TABLE.drop("monthly"), "column-missing", id="a column is missing"),
        pytest.param(TABLE.with_columns(monthly=pl.lit("x")), "column-type", id="text for a number"),
        pytest.param(
            TABLE.with_columns(monthly=pl.lit(None, pl.Float64)), "rows-missing-column", id="missing where the model needs a value"
        ),
    ],
)
def test_a_table_that_does_not_fit_is_refused(runtime, table, code):
    """Named before any row is scored."""
    with pytest.raises(SpecError) as caught:
        score_table(runtime, table)

    assert code == caught.value.code


@pytest.mark.parametrize(
    ("name", "content", "code"),
    [
        pytest.param("x.xlsx", b"", "table-ending", id="an unknown ending"),
        pytest.param("x.json", b"{", "table-unreadable", id="broken JSON"),
        pytest.param("x.json", None, "file-missing", id="no such file"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused(runtime, tmp_path, name, content, code):
    """No traceback for what a user can mistype."""
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(SpecError) as caught:
        read_table(tmp_path / name, runtime.manifest)

    assert code == caught.value.code


def test_the_command_scores_a_row_and_a_table(tmp_path, capsys):
    """From the command line, with a folder and without a project."""
    folder = str(seal_churn(tmp_path / "bundles").path)
    TABLE.write_csv(tmp_path / "x.csv")
    common = ["--bundle", folder, "-p", str(tmp_path), "--json"]
    codes = [main(["predict", "--row", '{"monthly": 70}', *common])]
    answer = json.loads(capsys.readouterr().out)
    codes.append(main(["predict", "-i", str(tmp_path / "x.csv"), "-o", str(tmp_path / "y.csv"), *common]))
    report = json.loads(capsys.readouterr().out)
    codes.append(main(["predict", *common]))

    assert [0, 0, 2] == codes
    assert ("Yes", 3) == (answer["label"], report["rows"])
    assert "predict-usage" == json.loads(capsys.readouterr().out)["error"]["code"]
