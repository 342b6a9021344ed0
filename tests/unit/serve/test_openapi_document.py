"""`/openapi.json` and `/docs`: valid, complete for every kind of model, self-contained, with examples that really work."""

import asyncio
import json
import re

import pytest

from mulle.serve.http.messages import Request
from mulle.serve.plane.costs import CostCurve
from mulle.serve.plane.deployment import Serving
from mulle.serve.plane.served import make_served
from mulle.serve.protocols.invocations import invocations
from mulle.serve.protocols.oip_json import BodyDecoder
from mulle.serve.protocols.oip_view import view_of
from mulle.serve.protocols.openapi import CONTENT_POLICY, Api, render_docs, render_openapi
from support.bundles import GOLDEN_ROWS
from support.oip import close_plane, make_plane, make_runtimes

EXAMPLES = {"churn": dict(GOLDEN_ROWS[0])}


@pytest.fixture(scope="module")
def runtimes(tmp_path_factory):
    import os

    home = os.environ.get("MULLE_HOME")
    os.environ["MULLE_HOME"] = str(tmp_path_factory.mktemp("key"))
    try:
        yield make_runtimes(tmp_path_factory.mktemp("bundles"), ("churn", "typed", "colours", "sums"))
    finally:
        if home is None:
            del os.environ["MULLE_HOME"]
        else:
            os.environ["MULLE_HOME"] = home


def servings(runtimes, *names):
    """Return deployments called like their bundles, or `name=bundle`."""
    found = []
    for name in names or ("churn", "typed", "colours", "sums"):
        own, _, bundle = name.partition("=")
        served = make_served(runtimes[bundle or own], CostCurve({1: 1_000}), revision=3, model_version=7)
        found.append(Serving(own, "local", 1, (served,)))
    return found


def document(runtimes, *names, api=None):
    return json.loads(render_openapi(servings(runtimes, *names), EXAMPLES, api))


@pytest.mark.parametrize(
    "names",
    [
        pytest.param(("churn",), id="columns"),
        pytest.param(("typed",), id="a regression without an example"),
        pytest.param(("colours",), id="pictures"),
        pytest.param(("sums",), id="tensors"),
        pytest.param(("churn", "typed", "colours", "sums"), id="all of them"),
        pytest.param(("이탈 예측=churn", "a/b=typed"), id="names that are percent-encoded in a path"),
    ],
)
@pytest.mark.parametrize("keys", [False, True], ids=["open", "with keys"])
def test_the_document_is_valid(runtimes, names, keys):
    """It follows OpenAPI's own schema, and every operation has an id of its own."""
    validator = pytest.importorskip("openapi_spec_validator")
    found = document(runtimes, *names, api=Api(keys=keys))
    validator.validate(found)
    ids = [operation["operationId"] for path in found["paths"].values() for operation in path.values()]

    assert len(ids) == len(set(ids))


def test_every_path_there_is_is_told(runtimes):
    """Short paths for the first deployment, its own paths for every one, by what it takes."""
    paths = set(document(runtimes)["paths"])
    own = {
        "churn": {"predict", "invocations", "feedback"},
        "typed": {"predict", "invocations", "feedback"},
        "colours": {"predict", "feedback"},
        "sums": {"feedback"},
    }
    expected = {f"/deployments/{name}/{path}" for name, names in own.items() for path in names}
    expected |= {f"/v2/models/{name}{path}" for name in own for path in ("", "/ready", "/infer")}
    expected |= {
        "/predict",
        "/invocations",
        "/feedback",
        "/health",
        "/metrics",
        "/docs",
        "/openapi.json",
        "/v2",
        "/v2/health/live",
        "/v2/health/ready",
    }

    assert expected == paths


def test_a_picture_is_a_form_or_a_body(runtimes):
    """And the answer is a class with its confidence."""
    found = document(runtimes, "colours")
    operation = found["paths"]["/predict"]["post"]
    answer = found["components"]["schemas"]["Answer1"]["properties"]["predictions"]["items"]

    assert {"multipart/form-data", "image/jpeg", "image/png", "image/webp"} == set(operation["requestBody"]["content"])
    assert {"class", "confidence", "probabilities", "processing_time_ms"} == set(answer["required"])


def test_keys_are_asked_for_where_they_are_wanted(runtimes):
    """Live and ready checks stay open: load balancers have no key."""
    found = document(runtimes, "churn", api=Api(keys=True))
    paths = found["paths"]

    assert [{"bearer": []}, {"header": []}] == found["security"]
    assert {"bearer", "header"} == set(found["components"]["securitySchemes"])
    assert "401" in paths["/predict"]["post"]["responses"]
    assert ([], []) == (paths["/v2/health/live"]["get"]["security"], paths["/v2/health/ready"]["get"]["security"])
    assert "security" not in paths["/metrics"]["get"]
    assert "security" not in document(runtimes, "churn")


def test_the_examples_work(runtimes, tmp_path):
    """What the document shows as a request is answered: MLflow's form by the handler, tensors by the protocol's view."""
    paths = document(runtimes, "churn")["paths"]
    shown = {path: paths[path]["post"]["requestBody"]["content"]["application/json"]["example"] for path in paths if "post" in paths[path]}

    async def main():
        plane = make_plane(tmp_path, {"churn": runtimes["churn"]})
        request = Request("POST", "/invocations", "", {}, json.dumps(shown["/invocations"]).encode())
        reply = await invocations(plane, request, max_rows=5)
        asked = BodyDecoder()(json.dumps(shown["/v2/models/churn/infer"]).encode(), None, model="churn", version="")
        work = view_of(plane.pick("churn")).accept(asked.inputs, max_rows=5)
        close_plane(plane)
        return reply, work

    reply, work = asyncio.run(main())

    assert [EXAMPLES["churn"]] == shown["/predict"]
    assert (200, 1) == (reply.status, work.n_rows)


def test_a_row_may_hold_what_the_encoder_takes_and_nothing_else(runtimes):
    """The schema of a row and `encode_body` agree on names, on what must be there, and on null."""
    row = document(runtimes, "churn")["components"]["schemas"]["Row1"]

    assert {"tenure", "monthly", "계약", "prediction_id", "customer_id"} == set(row["properties"])
    assert (["monthly"], False) == (row["required"], row["additionalProperties"])
    assert {"type": "null"} in row["properties"]["tenure"]["anyOf"]
    assert "number" == row["properties"]["monthly"]["type"]


def test_the_page_needs_nobody_else(runtimes):
    """No script, style or picture from elsewhere; the policy names exactly what is in it."""
    page = render_docs(servings(runtimes), EXAMPLES, keys=True).decode()

    assert not re.search(r"(src|href)=[\"']?(https?:)?//", page)
    assert "http://" not in page
    assert "https://" not in page
    assert 2 == CONTENT_POLICY.count("sha256-")
    assert (1, 1) == (page.count("<script>"), page.count("<style>"))


def test_the_page_says_what_each_model_takes(runtimes):
    """A row that works, a file for pictures, tensors by name; a field for the key where one is wanted."""
    page = render_docs(servings(runtimes), EXAMPLES).decode()

    assert "월별" in page
    assert 'type="file"' in page
    assert "/v2/models/sums/infer" in page
    assert "/deployments/colours/predict" in page
    assert 'type="password"' not in page
    assert 'type="password"' in render_docs(servings(runtimes), EXAMPLES, keys=True).decode()


def test_names_are_text_on_the_page(runtimes):
    """A deployment named like markup stays a name."""
    page = render_docs(servings(runtimes, "<b>x</b>=churn"), {}).decode()

    assert "<b>x" not in page
    assert "&lt;b&gt;x&lt;/b&gt;" in page
