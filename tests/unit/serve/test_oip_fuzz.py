"""Bytes nobody meant: whatever is sent, the decoders answer with a request or with an error that has a code."""

import json

import numpy as np
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2

from mulle.core.errors import SpecError
from mulle.serve.http.messages import Response, problem
from mulle.serve.protocols.oip_json import BodyDecoder
from mulle.serve.protocols.oip_protobuf import fields
from mulle.serve.protocols.oip_rest import as_oip, inflate
from mulle.serve.protocols.oip_wire import InferDecoder, decode_names

TENSORS = [("x", "FP32", [1, 2], b"\0" * 8), ("문자", "BYTES", [2], b"\1\0\0\0a\0\0\0\0"), ("b", "BOOL", [1], b"\1")]


def valid_message(*, typed):
    """Return a request as the public client would write it."""
    request = service_pb2.ModelInferRequest(model_name="m", model_version="1", id="i")
    request.parameters["timeout"].int64_param = 5
    for name, datatype, shape, raw in TENSORS:
        tensor = request.inputs.add(name=name, datatype=datatype)
        tensor.shape.extend(shape)
        if not typed:
            request.raw_input_contents.append(raw)
    if typed:
        request.inputs[0].contents.fp32_contents.extend([1.0, 2.0])
        request.inputs[1].contents.bytes_contents.extend([b"a", b""])
        request.inputs[2].contents.bool_contents.append(True)
    request.outputs.add(name="y").parameters["classification"].int64_param = 2
    return request.SerializeToString()


def valid_body():
    """Return a request with binary tensors, and the length of its JSON."""
    inputs = [
        {"name": name, "datatype": datatype, "shape": shape, "parameters": {"binary_data_size": len(raw)}}
        for name, datatype, shape, raw in TENSORS
    ]
    inputs.append({"name": "j", "datatype": "INT8", "shape": [2, 1], "data": [[1], [2]]})
    head = json.dumps({"id": "i", "inputs": inputs, "outputs": [{"name": "y", "parameters": {"binary_data": True}}]}).encode()
    return head + b"".join(raw for *_, raw in TENSORS), len(head)


MESSAGES = [valid_message(typed=True), valid_message(typed=False)]
BODY, N_JSON = valid_body()


@st.composite
def mutated(draw, originals):
    """Draw valid bytes with some of them changed, cut out, doubled or inserted."""
    data = bytearray(draw(st.sampled_from(originals)))
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        match draw(st.integers(0, 3)):
            case 0 if data:
                data[at] = draw(st.sampled_from([0, 1, 0x7F, 0x80, 0xFF])) if draw(st.booleans()) else draw(st.integers(0, 255))
            case 1:
                del data[at : at + draw(st.integers(1, 9))]
            case 2:
                data[at:at] = data[at : at + draw(st.integers(1, 40))]
            case _:
                data[at:at] = draw(st.binary(min_size=1, max_size=12))
    return bytes(data)


def settle(call):
    """Return "refused" or "read"; anything else a call raises is the test's failure."""
    try:
        request = call()
        for tensor in request.inputs:
            values = tensor.values()
            assert tensor.shape == values.shape
    except SpecError as error:
        return "refused" if error.code and error.fix else "refused without a word"
    return "read"


def test_the_unchanged_ones_are_read():
    """The fuzzing starts from requests that work."""
    assert ["read"] * 3 == [
        *(settle(lambda data=data: InferDecoder()(data)) for data in MESSAGES),
        settle(lambda: BodyDecoder()(BODY, str(N_JSON), model="m", version="")),
    ]


@given(mutated(MESSAGES))
def test_mutated_messages_are_read_or_refused(data):
    """By a decoder that has met the originals, and by one that has not: with the same outcome."""
    warm = InferDecoder()
    for original in MESSAGES:
        warm(original)

    assert settle(lambda: InferDecoder()(data)) == settle(lambda: warm(data))


@given(mutated(MESSAGES))
def test_what_the_public_classes_read_means_the_same_here(data):
    """Where generated code and ours both read a message, they read the same model, id, names and shapes."""
    try:
        theirs = service_pb2.ModelInferRequest.FromString(data)
        ours = InferDecoder()(data)
    except (SpecError, DecodeError):
        return

    assert (theirs.model_name, theirs.id) == (ours.model, ours.id)
    assert [(t.name, t.datatype, tuple(t.shape)) for t in theirs.inputs] == [(t.name, t.spec.datatype, t.shape) for t in ours.inputs]


@given(st.binary(max_size=200))
def test_noise_is_refused_as_a_message_or_names_nothing(data):
    """Pure noise, also as the questions for metadata."""
    settle(lambda: InferDecoder()(data))
    try:
        found = decode_names(data)
    except SpecError as error:
        found = error.code

    assert "oip-malformed" == found or isinstance(found, tuple)


@given(mutated([BODY]), st.one_of(st.none(), st.integers(-3, len(BODY) + 3).map(str), st.text(max_size=5)))
def test_mutated_bodies_are_read_or_refused(data, length):
    """JSON and binary tensors, with a header length that may be anything."""
    warm = BodyDecoder()
    warm(BODY, str(N_JSON), model="m", version="")
    found = settle(lambda: BodyDecoder()(data, length, model="m", version=""))

    assert found == settle(lambda: warm(data, length, model="m", version=""))
    assert found in {"read", "refused"}


@given(
    st.fixed_dictionaries(
        {
            "name": st.text(max_size=3),
            "datatype": st.sampled_from(["FP32", "BYTES", "BOOL", "INT8", "UINT64", "FP16", "BF16", ""]),
            "shape": st.lists(st.one_of(st.integers(-2, 4), st.sampled_from([2**31, 2**62, 2**63, 10**30])), max_size=3),
            "data": st.recursive(
                st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=3)),
                lambda inner: st.lists(inner, max_size=4),
                max_leaves=10,
            ),
        }
    )
)
def test_any_json_tensor_is_read_or_refused(entry):
    """Shapes, datatypes and data drawn independently: they rarely agree, and never crash."""
    body = json.dumps({"inputs": [entry]}).encode()

    assert settle(lambda: BodyDecoder()(body, None, model="m", version="")) in {"read", "refused"}


@given(st.binary(max_size=100), st.sampled_from([15, 31]))
def test_noise_does_not_inflate(data, window):
    """Compressed noise is refused or, by chance, empty."""
    try:
        found = inflate(data, window, 1_000)
    except SpecError as error:
        found = error.code.encode()

    assert found in {b"oip-encoding", b"body-too-large"} or len(found) <= 1_000


@given(st.binary(max_size=60))
def test_fields_never_reach_beyond_their_message(data):
    """What is yielded is inside the message, in order, and adds up to no more than it."""
    total = 0
    try:
        for number, _, _, value in fields(memoryview(data)):
            total += len(value) + 1

            assert number > 0
    except SpecError:
        pass

    assert total <= len(data)


def test_an_answer_that_is_no_error_keeps_its_shape():
    """Only the transport's own error shape is rewritten."""
    plain = Response(200, b'{"live":true}')
    refusal = problem(503, "overloaded", "too much", fix="later", headers={"retry-after": "1"})
    found = as_oip(refusal)

    assert plain is as_oip(plain)
    assert (503, "1", "[overloaded] too much; later") == (found.status, found.headers["retry-after"], json.loads(found.body)["error"])
    assert "overloaded" == json.loads(found.body)["code"]
    assert np.frombuffer(found.body, np.uint8).size == len(found.body)
