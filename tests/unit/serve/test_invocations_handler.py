"""/invocations over a real data plane: answered, logged, counted; every refusal in the one shape, with MLflow's 400."""

import asyncio
import json
import time

import numpy as np
import pytest

from mulle.formats.feature_rows import FeatureRow, write_feature_rows
from mulle.formats.prediction_log import find_prediction, read_predictions
from mulle.serve.http.messages import Request
from mulle.serve.plane.dataplane import SystemClock
from mulle.serve.plane.features import FeatureCompleter, FeaturePolicy, FileFeatureSource
from mulle.serve.protocols.completion import BodyCompleter
from mulle.serve.protocols.invocations import invocations
from support.bundles import COLUMNS, GOLDEN_ROWS, answers, churn_graph
from support.oip import close_plane, make_plane, make_runtimes

ROWS = {"dataframe_records": [dict(row) for row in GOLDEN_ROWS]}


@pytest.fixture
def ask(tmp_path):
    """Return a function that asks a fresh plane over the same bundles, some requests at once."""
    runtimes = make_runtimes(tmp_path / "bundles", ("churn", "colours", "sums"))

    def run(*requests, make_completer=None, **options):
        async def main():
            plane = make_plane(tmp_path, runtimes)
            completer = None if make_completer is None else make_completer()
            try:
                asked = [invocations(plane, one, max_rows=10, completer=completer, **options) for one in requests]
                return await asyncio.gather(*asked)
            finally:
                close_plane(plane)

        return asyncio.run(main())

    return run


def post(body, **headers):
    data = body if isinstance(body, bytes) else json.dumps(body, ensure_ascii=False).encode()
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Request("POST", "/invocations", "", {"content-type": "application/json"} | named, data)


def test_answers_are_the_graphs_own_and_logged(ask, tmp_path):
    """What leaves is what plain ONNX Runtime computes, and the log has every row under the id that was told."""
    (reply,) = ask(post(ROWS))
    found = [[row["No"], row["Yes"]] for row in json.loads(reply.body)["predictions"]]
    logged = read_predictions(tmp_path / "logs", "churn")

    assert (200, "application/json", "3") == (reply.status, reply.content_type, reply.headers["mulle-revision"])
    assert answers(churn_graph(), GOLDEN_ROWS).astype(np.float64).tolist() == found
    assert 3 == len(logged)
    assert find_prediction(tmp_path / "logs", reply.headers["mulle-prediction-id"]).features["tenure"] == 1.0


def test_many_at_once_each_get_their_own(ask):
    """A hundred requests of different rows in one tick: no answer is lost or swapped."""
    rows = [{"tenure": float(i), "monthly": 20.0 + i, "계약": "1년"} for i in range(100)]
    replies = ask(*(post({"dataframe_split": {"columns": list(row), "data": [list(row.values())]}}) for row in rows))
    expected = answers(churn_graph(), rows)[:, 1].tolist()

    assert expected == [json.loads(reply.body)["predictions"][0]["Yes"] for reply in replies]


def test_the_clients_id_and_the_entity_are_kept(ask, tmp_path):
    """The header names the row; the entity stands beside it in the log."""
    (reply,) = ask(post({"dataframe_records": [{"monthly": 30, "customer_id": 17}]}, mulle_prediction_id="order-9"))

    assert "order-9" == reply.headers["mulle-prediction-id"]
    assert "17" == find_prediction(tmp_path / "logs", "order-9").entity


@pytest.mark.parametrize(
    ("request_", "options", "status", "code"),
    [
        pytest.param(post(b"{"), {}, 400, "body-invalid", id="not JSON"),
        pytest.param(post([[1]]), {}, 400, "invocations-form", id="no form"),
        pytest.param(post({"instances": [{"tenure": 1}]}), {}, 400, "rows-missing-column", id="a column is missing: 400, as MLflow says"),
        pytest.param(post({"instances": [{"monthly": 1}] * 11}), {}, 413, "rows-too-many", id="too many rows"),
        pytest.param(post(b"x", content_type="text/plain"), {}, 415, "body-media-type", id="text"),
        pytest.param(post(ROWS, content_encoding="gzip"), {}, 415, "body-media-type", id="compressed"),
        pytest.param(post(ROWS, mulle_revision="9"), {}, 404, "revision-unknown", id="a revision that is not served"),
        pytest.param(post(ROWS, mulle_revision="x"), {}, 400, "header-invalid", id="a revision that is no number"),
        pytest.param(post(ROWS, mulle_unit="u" * 257), {}, 400, "header-invalid", id="a unit too long"),
        pytest.param(post(ROWS, mulle_timeout_ms="soon"), {}, 400, "header-invalid", id="a patience that is no number"),
        pytest.param(post(ROWS, mulle_prediction_id="a b"), {}, 400, "prediction-id-invalid", id="an id with a space"),
        pytest.param(post(ROWS), {"deployment": "nobody"}, 404, "deployment-unknown", id="a deployment that is not there"),
        pytest.param(post(ROWS), {"deployment": "colours"}, 400, "invocations-kind", id="pictures"),
        pytest.param(post(ROWS), {"deployment": "sums"}, 400, "invocations-kind", id="tensors"),
        pytest.param(post(ROWS), {"deadline_ns": 1}, 504, "deadline-expired", id="a deadline that has passed"),
    ],
)
def test_refusals_have_the_one_shape(ask, request_, options, status, code):
    """Code, what, fix and where; nothing of the inside."""
    (reply,) = ask(request_, **options)
    error = json.loads(reply.body)["error"]

    assert (status, code, {"code", "what", "fix", "where"}) == (reply.status, error["code"], set(error))


def test_a_clients_patience_bounds_the_wait(ask, tmp_path):
    """The store may take five seconds, the client waits 50 ms: it is told so in that time."""

    class Asleep:
        async def fetch(self, service, entities, *, deadline_ns):
            await asyncio.sleep(5)

    def completer():
        return BodyCompleter({"churn": FeatureCompleter(Asleep(), FeaturePolicy(service="clients", budget_s=5), clock=SystemClock())})

    started = time.monotonic()
    (reply,) = ask(post({"instances": [{"customer_id": "1"}]}, mulle_timeout_ms="50"), make_completer=completer)

    assert (503, "features-late") == (reply.status, json.loads(reply.body)["error"]["code"])
    assert time.monotonic() - started < 3


def test_what_the_request_leaves_out_comes_from_the_store(ask, tmp_path):
    """Only the key is sent; the answer and the log are those of the whole row."""
    rows = [FeatureRow(str(i), {k: v for k, v in row.items() if v is not None}) for i, row in enumerate(GOLDEN_ROWS)]
    write_feature_rows(tmp_path / "clients.features", rows, service="clients", entity="customer_id", columns=COLUMNS, now_ns=time.time_ns())

    def completer():
        source = FileFeatureSource(tmp_path, clock=SystemClock())
        return BodyCompleter({"churn": FeatureCompleter(source, FeaturePolicy(service="clients", budget_s=5), clock=SystemClock())})

    keys = [{"customer_id": i} for i in range(len(GOLDEN_ROWS))]
    whole, unknown = ask(post({"inputs": keys}), post({"instances": [{"customer_id": "9"}]}), make_completer=completer)
    logged = find_prediction(tmp_path / "logs", whole.headers["mulle-prediction-id"])

    assert answers(churn_graph(), GOLDEN_ROWS)[:, 1].tolist() == [row["Yes"] for row in json.loads(whole.body)["predictions"]]
    assert (dict(GOLDEN_ROWS[0]), "0") == (dict(logged.features), logged.entity)
    assert (400, "features-missing") == (unknown.status, json.loads(unknown.body)["error"]["code"])
