"""Schemathesis on our own OpenAPI document: every operation keeps what the document says of it, whatever is sent."""

import os
import warnings

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from mulle.serve.http.checks import Limits
from support.http_client import RawClient
from support.serving import running
from support.tensors import picture, seal_image

with warnings.catch_warnings():
    # It warns about libraries of its own.
    warnings.simplefilter("ignore")
    import schemathesis
    from schemathesis import GenerationMode
    from schemathesis.checks import not_a_server_error
    from schemathesis.specs.openapi.checks import content_type_conformance, response_schema_conformance, status_code_conformance

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
EXAMPLES = 60


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """One real server, and its document as schemathesis reads it."""
    old = os.environ.get("MULLE_HOME")
    os.environ["MULLE_HOME"] = str(tmp_path_factory.mktemp("key"))
    try:
        with running(tmp_path_factory.mktemp("project"), limits=Limits(body_bytes=2 << 20), max_rows=50) as (started, _):
            with RawClient(started.host, started.port) as client:
                document = client.request("GET", "/openapi.json").json
            schema = schemathesis.openapi.from_dict(document)
            schema.config.update(base_url=started.url)
            yield started, schema
    finally:
        if old is None:
            del os.environ["MULLE_HOME"]
        else:
            os.environ["MULLE_HOME"] = old


OPERATIONS = [
    ("POST", "/predict"),
    ("POST", "/invocations"),
    ("POST", "/feedback"),
    ("POST", "/deployments/churn/predict"),
    ("POST", "/deployments/churn/invocations"),
    ("POST", "/deployments/churn/feedback"),
    ("POST", "/v2/models/churn/infer"),
    ("GET", "/v2/models/churn"),
    ("GET", "/v2/models/churn/ready"),
    ("GET", "/v2"),
    ("GET", "/v2/health/live"),
    ("GET", "/v2/health/ready"),
    ("GET", "/health"),
    ("GET", "/metrics"),
    ("GET", "/docs"),
    ("GET", "/openapi.json"),
]


def test_every_operation_of_the_document_is_tried(served):
    """A path that is added is added to the list above."""
    found = {(method.upper(), path) for path, methods in served[1].raw_schema["paths"].items() for method in methods}

    assert set(OPERATIONS) == found


RIGHT, WRONG = GenerationMode.POSITIVE, GenerationMode.NEGATIVE
CASES = [
    pytest.param(method, path, mode, id=f"{method} {path} {'as the document says' if mode is RIGHT else 'otherwise'}")
    for method, path in OPERATIONS
    # There is nothing to send wrongly with GET.
    for mode in ((RIGHT, WRONG) if method == "POST" else (RIGHT,))
]


@pytest.mark.parametrize(("method", "path", "mode"), CASES)
def test_an_operation_keeps_what_the_document_says(served, method, path, mode):
    """No 5xx; no status, media type or body the document does not tell of; what it calls right is answered at least once."""
    started, schema = served
    operation = schema[path][method]
    statuses = []

    @given(data=st.data())
    @settings(max_examples=EXAMPLES, phases=[Phase.generate], suppress_health_check=list(HealthCheck), deadline=None, derandomize=True)
    def run(data):
        case = data.draw(operation.as_strategy(generation_mode=mode))
        answer = case.call(base_url=started.url)
        statuses.append(answer.status_code)
        case.validate_response(
            answer, checks=[not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
        )

    run()

    # Tensors must fit the model, of which the document says nothing.
    assert 200 in statuses or mode is WRONG or path.endswith("/infer")
    assert set(statuses) - {200} or mode is RIGHT


def test_an_answer_about_a_picture_is_as_the_document_says(tmp_path):
    """A form and a bare body, sent by hand: schemathesis draws no pictures."""
    import jsonschema

    bundle = seal_image(tmp_path / ".mulle" / "bundles")
    form = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.png"\r\n\r\n' + picture() + b"\r\n--x--\r\n"
    with running(tmp_path, bundle=bundle) as (started, _), RawClient(started.host, started.port) as client:
        document = client.request("GET", "/openapi.json").json
        answers = [
            client.request("POST", "/predict", form, {"content-type": "multipart/form-data; boundary=x"}),
            client.request("POST", "/predict", picture(), {"content-type": "image/png"}),
        ]
    schema = document["paths"]["/predict"]["post"]["responses"]["200"]["content"]["application/json"]["schema"]
    for answer in answers:
        jsonschema.validate(answer.json, {**schema, "components": document["components"]})

    assert [200, 200] == [answer.status for answer in answers]
