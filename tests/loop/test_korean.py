"""Korean everywhere: folder, project, columns, categories, features, slices, and what every command and page says of them."""

import json

import pytest

from support.projects import KOREAN, Sample, TinyProject, finished, json_rows, serving

pytestmark = pytest.mark.slow

RAW = [KOREAN.number, KOREAN.gappy, KOREAN.category, KOREAN.flag]


@pytest.fixture
def korean(tmp_path, own_key_folder, monkeypatch) -> TinyProject:
    """Return a project in Korean whose wheel has turned once, in a folder with a Korean name and spaces."""
    return finished(tmp_path / "내 프로젝트 #1", monkeypatch, words=KOREAN)


def test_from_the_table_to_the_trace(korean, capsys):
    """Predicted, fed back, monitored, traced: every name comes back as it was given."""
    rows = json_rows(korean.table(), RAW)
    with serving(korean) as client:
        reply = client.request("POST", "/predict", {"rows": rows})
        first, predicted = reply.json["prediction_ids"][0], reply.json["predictions"][0]
        odd = client.request("POST", "/predict", [{**rows[0], KOREAN.category: "처음 보는 경로"}])
        wrong = client.request("POST", "/predict", [{"이용시간": 1}])
        told = client.request("POST", "/feedback", {"prediction_id": first, "label": "예"})
        pages = [client.request("GET", path) for path in ("/openapi.json", "/docs")]
    traced = korean.call(capsys, "trace", first)
    checked = korean.call(capsys, "monitor", "check", "--last", "301")
    report = korean.call(capsys, "monitor", "report", "--json").json

    assert {"아니오", "예"} == set(predicted["probabilities"])
    assert (200, 200, 200) == (reply.status, odd.status, told.status)
    assert (422, "rows-unknown-column") == (wrong.status, wrong.code)
    assert KOREAN.number in wrong.json["error"]["fix"] + wrong.json["error"]["what"]
    assert all(name in page.body.decode() for page in pages for name in RAW)
    assert all(text in traced.out for text in (*RAW, "고객-이탈", "예"))
    assert 0 == checked.code, checked.out
    category = next(column for column in report["columns"] if column["name"] == KOREAN.category)
    assert any("처음 보는 경로" in text for text in category["anomalies"]), category
    assert "처음 보는 경로" in checked.out
    page = next((korean.folder / ".mulle/reports").rglob("monitor*/**/*.html"), None) or next(
        (korean.folder / ".mulle/reports").rglob("*.html")
    )
    assert KOREAN.number in page.read_text(encoding="utf-8")


def test_reports_and_tables_say_it_as_it_is(korean, capsys):
    """The evaluation's page, the summary of a run, the registry, JSON without escapes."""
    page = max((korean.folder / ".mulle/reports/evaluation").glob("*.html")).read_text(encoding="utf-8")
    listed = korean.call(capsys, "models", "list")
    shown = korean.call(capsys, "models", "show", "1", "--json")
    events = korean.call(capsys, "events", "show")
    row = json.dumps(dict(zip(RAW, [3, None, "검색", True], strict=True)), ensure_ascii=False)
    answer = korean.call(capsys, "predict", "--row", row)

    assert "고객-이탈" in page
    assert 0 == listed.code
    assert '"고객-이탈"' in shown.out
    assert "고객-이탈" in events.out
    assert (0, True) == (answer.code, "예" in answer.out), answer.err


def test_settings_name_columns_too(tmp_path, capsys):
    """Slices and the fairness gate by Korean columns; a wrong name is answered with the right one."""
    settings = {
        "evaluate": {"slices": [KOREAN.category, KOREAN.flag]},
        "gates": {"fairness": {"slice_by": [KOREAN.flag], "max_gap": 0.9}, "accuracy": {"min": 0.5}},
    }
    project = Sample(KOREAN, n_rows=600, settings=settings).write(tmp_path / "조각")
    answer = project.call(capsys, "run", "--json")
    page = max((project.folder / ".mulle/reports/evaluation").glob("*.html")).read_text(encoding="utf-8")
    project.change("mulle.toml", f'"{KOREAN.category}"', '"가입경로"')
    wrong = project.call(capsys, "run", "--json")

    assert 0 == answer.code, answer.out
    assert all(level in page for level in KOREAN.levels)
    assert 2 == wrong.code
    assert "가입경로" in wrong.error["what"]
    assert KOREAN.category in wrong.error["fix"] + str(wrong.error["facts"])


@pytest.mark.parametrize(
    ("file", "old", "new", "named"),
    [
        pytest.param("mulle.toml", "[train]", "[훈련]", "훈련", id="a Korean table in mulle.toml"),
        pytest.param("project.py", f"col({KOREAN.number!r}),", "col('이용 시깐'),", "이용 시깐", id="a misspelt column in a feature"),
        pytest.param("project.py", "per(col", "하나(col", "하나", id="a function nobody wrote"),
    ],
)
def test_a_mistake_is_named_in_its_own_letters(korean, capsys, file, old, new, named):
    """The error says the Korean name, the file and the line."""
    korean.change(file, old, new)
    answer = korean.call(capsys, "run", "--json")
    error = answer.error

    assert 2 == answer.code
    assert named in f"{error['what']} {error['facts']} {error['fix']}"
    assert file in error["where"]
    assert "Traceback" not in answer.out + answer.err
