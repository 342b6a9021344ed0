"""Features at request time on a real server: only the key is sent, the whole row is answered, logged and refused by policy."""

import time

import pytest

from mulle.formats.feature_rows import FeatureRow, write_feature_rows
from mulle.formats.prediction_log import find_prediction
from mulle.serve.plane.features import FeaturePolicy
from support.bundles import COLUMNS, GOLDEN_ROWS, answers, churn_graph
from support.http_client import RawClient
from support.serving import running


@pytest.fixture
def served(tmp_path):
    """A server whose store knows the golden rows as customers 0, 1 and 2."""
    rows = [FeatureRow(str(i), {k: v for k, v in row.items() if v is not None}) for i, row in enumerate(GOLDEN_ROWS)]
    path = tmp_path / ".mulle" / "features" / "clients.features"
    write_feature_rows(path, rows, service="clients", entity="customer_id", columns=COLUMNS, now_ns=time.time_ns())
    with running(tmp_path, features={"churn": FeaturePolicy(service="clients", budget_s=5)}) as both:
        yield both


def test_a_key_alone_is_answered_like_the_whole_row(served):
    """By /predict and by /invocations, beside requests that bring everything."""
    keys = [{"customer_id": i} for i in range(len(GOLDEN_ROWS))]
    expected = answers(churn_graph(), GOLDEN_ROWS)[:, 1]
    with RawClient(served[0].host, served[0].port) as client:
        by_key = client.request("POST", "/predict", keys)
        whole = client.request("POST", "/predict", [dict(row) for row in GOLDEN_ROWS])
        invoked = client.request("POST", "/invocations", {"dataframe_records": keys})
    logged = find_prediction(served[1] / "logs", by_key.json["prediction_ids"][0])

    assert whole.json["predictions"] == by_key.json["predictions"]
    assert expected.tolist() == [row["Yes"] for row in invoked.json["predictions"]]
    assert (dict(GOLDEN_ROWS[0]), "0") == (dict(logged.features), logged.entity)


def test_an_unknown_customer_is_refused_and_the_next_one_answered(served):
    """The policy is to refuse; a request that brings its own columns needs no store."""
    with RawClient(served[0].host, served[0].port) as client:
        unknown = client.request("POST", "/predict", [{"customer_id": "nobody"}])
        own = client.request("POST", "/predict", [{"customer_id": "nobody", "tenure": 1, "monthly": 2, "계약": None}])

    assert (422, "features-missing", 200) == (unknown.status, unknown.code, own.status)
