"""Claims, data and bodies of the Open Inference Protocol: what is read is what was sent, and nothing hostile gets through."""

import gzip
import json
import struct
import zlib

import numpy as np
import pytest
from tritonclient.grpc import service_pb2

from mulle.core.errors import SpecError
from mulle.serve.protocols.oip import DATATYPES, InferResponse, InputSpec, OutputTensor, RequestedOutput, Tensor
from mulle.serve.protocols.oip_json import BodyDecoder, encode_infer
from mulle.serve.protocols.oip_protobuf import size_of, varints
from mulle.serve.protocols.oip_rest import inflate
from mulle.serve.protocols.oip_wire import InferDecoder, ResponseEncoder, decode_names, encode_flag, encode_model, encode_server
from mulle.serve.protocols.oip_wire import encode_parameter as encode_one

NUMERIC = {
    "BOOL": [True, False, True],
    "UINT8": [0, 7, 255],
    "UINT16": [0, 7, 65_535],
    "UINT32": [0, 7, 2**32 - 1],
    "UINT64": [0, 7, 2**64 - 1],
    "INT8": [-128, 0, 127],
    "INT16": [-32_768, 0, 32_767],
    "INT32": [-(2**31), 0, 2**31 - 1],
    "INT64": [-(2**63), 0, 2**63 - 1],
    "FP16": [-1.5, 0.0, 2.25],
    "FP32": [-1.5, 0.0, 3.25],
    "FP64": [-1.5, 0.0, 1e300],
}
TYPED = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
}


def rest(inputs, tail=b"", *, length=None, **more):
    """Return what the REST decoder makes of a request."""
    head = json.dumps({"inputs": inputs, **more}).encode()
    header = str(len(head)) if length is None and tail else length
    return BodyDecoder()(head + tail, header, model="m", version="")


def one(datatype="FP32", shape=(2,), data=None, name="x", **parameters):
    """Return one input of a REST request."""
    entry = {"name": name, "datatype": datatype, "shape": list(shape)}
    if data is not None:
        entry["data"] = data
    if parameters:
        entry["parameters"] = parameters
    return entry


def message(datatype="FP32", shape=(2,), raw=None, **contents):
    """Return a ModelInferRequest made by the public client's own classes."""
    request = service_pb2.ModelInferRequest(model_name="m", id="한글-7")
    tensor = request.inputs.add(name="x", datatype=datatype)
    tensor.shape.extend(shape)
    for field, values in contents.items():
        getattr(tensor.contents, field).extend(values)
    if raw is not None:
        request.raw_input_contents.append(raw)
    return request


@pytest.mark.parametrize("datatype", NUMERIC)
def test_numbers_arrive_bit_for_bit_by_every_road(datatype):
    """JSON flat and nested, binary behind the JSON, raw and typed contents: one tensor, whichever way it came."""
    expected = np.array(NUMERIC[datatype], DATATYPES[datatype])
    raw = expected.tobytes()
    found = [
        rest([one(datatype, (3,), expected.tolist())]).inputs[0].values(),
        rest([one(datatype, (3, 1), [[v] for v in expected.tolist()])]).inputs[0].values().reshape(3),
        rest([one(datatype, (3,), binary_data_size=len(raw))], raw).inputs[0].values(),
        InferDecoder()(message(datatype, (3,), raw).SerializeToString()).inputs[0].values(),
    ]
    if datatype in TYPED:
        typed = message(datatype, (3,), **{TYPED[datatype]: expected.tolist()})
        found.append(InferDecoder()(typed.SerializeToString()).inputs[0].values())

    assert [expected.tolist()] * len(found) == [array.tolist() for array in found]
    assert {DATATYPES[datatype]} == {array.dtype for array in found}


def test_texts_arrive_whole_by_every_road():
    """Empty, Korean, with zeros and separators inside."""
    texts = ["", "월별 계약", "a\x00b", 'quote " and , comma']
    raw = b"".join(struct.pack("<I", len(t.encode())) + t.encode() for t in texts)
    binary = rest([one("BYTES", (4,), binary_data_size=len(raw))], raw)
    wire = InferDecoder()(message("BYTES", (4,), raw).SerializeToString())
    typed = InferDecoder()(message("BYTES", (4,), bytes_contents=[t.encode() for t in texts]).SerializeToString())

    assert texts == rest([one("BYTES", (4,), texts)]).inputs[0].values().tolist()
    assert [texts] * 3 == [[v.decode() for v in r.inputs[0].values().tolist()] for r in (binary, wire, typed)]


def test_a_binary_tensor_is_looked_at_and_not_copied():
    """The elements are the body's own memory, unless their address does not suit their type."""
    raw = np.arange(4, dtype=np.float32).tobytes()
    for pad in range(4):
        head = json.dumps({"inputs": [one("FP32", (4,), binary_data_size=16)]}) + " " * pad
        body = head.encode() + raw
        values = BodyDecoder()(body, str(len(head)), model="m", version="").inputs[0].values()
        shares = np.shares_memory(values, np.frombuffer(body, np.uint8))

        assert [0.0, 1.0, 2.0, 3.0] == values.tolist()
        assert values.flags.aligned
        assert shares == ((np.frombuffer(body, np.uint8).ctypes.data + len(head)) % 4 == 0)


@pytest.mark.parametrize(
    ("inputs", "tail", "code", "fragment"),
    [
        pytest.param([one("FP32", (-1,), [1])], b"", "oip-shape", "[-1]", id="a negative dimension"),
        pytest.param([one("FP32", (2**62, 4), [1])], b"", "oip-shape", "more elements", id="a product beyond 64 bits"),
        pytest.param(
            [one("FP32", (2**62,), binary_data_size=4)], b"abcd", "oip-shape", "more elements", id="2**62 elements of binary data"
        ),
        pytest.param(
            [one("FP32", (10**9,), binary_data_size=4)], b"abcd", "oip-data", "4 bytes", id="a claim of four gigabytes in four bytes"
        ),
        pytest.param([one("FP32", (10**9,), [1])], b"", "oip-data", "limit", id="a claim of a billion numbers in JSON"),
        pytest.param([one("BYTES", (10**9,), binary_data_size=4)], b"\0\0\0\0", "oip-shape", "limit", id="a claim of a billion texts"),
        pytest.param([one("FP32", (0,), [])], b"", "rows-empty", "no rows", id="no rows"),
        pytest.param([one("FP32", (1, 0), [])], b"", "oip-shape", "[1, 0]", id="a row of nothing"),
        pytest.param([one("FP32", (), 1.0)], b"", "oip-shape", "0 dimensions", id="a scalar"),
        pytest.param([one("FP32", (1,) * 40, [1.0])], b"", "oip-shape", "40 dimensions", id="forty dimensions"),
        pytest.param([one("FP32", (2,), [1.0])], b"", "oip-data", "1 elements", id="too few numbers"),
        pytest.param([one("FP32", (2,), [1.0, 2.0, 3.0])], b"", "oip-data", "3 elements", id="too many numbers"),
        pytest.param([one("FP32", (2, 2), [[1, 2, 3], [4]])], b"", "oip-data", "other lengths", id="ragged lists"),
        pytest.param([one("FP32", (2, 2), [[[1, 2], [3, 4]]])], b"", "oip-data", "nested 3", id="nested deeper than the shape"),
        pytest.param([one("FP32", (1,), "1.0")], b"", "oip-data", "nested 0", id="text instead of a list"),
        pytest.param([one("FP32", (1,), ["1.0"])], b"", "oip-data", "not FP32", id="a number in quotes"),
        pytest.param([one("FP32", (1,), [1e300])], b"", "oip-data", "cannot hold", id="a number beyond float32"),
        pytest.param([one("INT8", (1,), [128])], b"", "oip-data", "cannot hold", id="a number beyond int8"),
        pytest.param([one("INT64", (1,), [2**80])], b"", "oip-data", "cannot hold", id="a number beyond any integer"),
        pytest.param([one("UINT8", (1,), [-1])], b"", "oip-data", "cannot hold", id="a negative number without a sign"),
        pytest.param([one("INT32", (1,), [1.5])], b"", "oip-data", "not INT32", id="a fraction as an integer"),
        pytest.param([one("INT32", (1,), [True])], b"", "oip-data", "not INT32", id="true as an integer"),
        pytest.param([one("BOOL", (1,), [1])], b"", "oip-data", "not BOOL", id="one as a boolean"),
        pytest.param([one("BYTES", (1,), [1])], b"", "oip-data", "not BYTES", id="a number as text"),
        pytest.param([one("BOOL", (2,), binary_data_size=2)], b"\x01\x02", "oip-data", "BOOL byte is 2", id="a boolean that is neither"),
        pytest.param([one("BF16", (1,), binary_data_size=2)], b"ab", "oip-datatype", "BF16", id="bfloat16"),
        pytest.param([one("FLOAT", (1,), [1])], b"", "oip-datatype", "FLOAT", id="a datatype of another protocol"),
        pytest.param([one("FP32", (2,), binary_data_size=8)], b"abcd", "oip-data", "4 bytes are left", id="a size larger than the body"),
        pytest.param([one("FP32", (1,), binary_data_size=-4)], b"abcd", "oip-data", "-4", id="a negative size"),
        pytest.param([one("FP32", (1,), binary_data_size=True)], b"abcd", "oip-data", "True", id="a size that is a boolean"),
        pytest.param([one("FP32", (1,), binary_data_size="4")], b"abcd", "oip-data", "'4'", id="a size that is text"),
        pytest.param([one("FP32", (1,), binary_data_size=4)], b"abcdX", "oip-data", "1 bytes stand behind", id="bytes nobody claims"),
        pytest.param([one("FP32", (2,), binary_data_size=4)], b"abcd", "oip-data", "8 bytes", id="shape and size disagree"),
        pytest.param([one("FP32", (1,))], b"", "oip-data", "no data", id="no data at all"),
        pytest.param([one("BYTES", (1,), binary_data_size=2)], b"ab", "oip-data", "at least 4", id="a length cut in two"),
        pytest.param(
            [one("BYTES", (1,), binary_data_size=6)], b"\x09\0\0\0ab", "oip-data", "9 bytes; 2 are left", id="an element beyond the end"
        ),
        pytest.param(
            [one("BYTES", (1,), binary_data_size=6)], b"\x01\0\0\0ab", "oip-data", "left behind", id="bytes behind the last element"
        ),
        pytest.param(
            [one("BYTES", (2,), binary_data_size=8)], b"\xff\xff\xff\xff" * 2, "oip-data", "says it has", id="a length of four gigabytes"
        ),
        pytest.param([one("FP32", (1,), shared_memory_region="r")], b"", "oip-unsupported", "shared memory", id="somebody else's memory"),
    ],
)
def test_hostile_tensors_are_refused_before_anything_is_made_of_them(inputs, tail, code, fragment):
    """Every refusal names the input and what was wrong with it; none allocates what was merely claimed."""
    with pytest.raises(SpecError) as caught:
        rest(inputs, tail).inputs[0].values()

    assert code == caught.value.code
    assert fragment in str(caught.value)


@pytest.mark.parametrize(
    ("body", "length", "code"),
    [
        pytest.param(b"", None, "oip-malformed", id="nothing"),
        pytest.param(b"[]", None, "oip-malformed", id="a list"),
        pytest.param(b'{"inputs": 1}', None, "oip-malformed", id="inputs that are a number"),
        pytest.param(b'{"inputs": [{"name": "x"}]}', None, "oip-malformed", id="an input without shape"),
        pytest.param(
            b'{"inputs": [{"name": "x", "shape": [1.5], "datatype": "FP32"}]}', None, "oip-malformed", id="a dimension with a fraction"
        ),
        pytest.param(b'{"inputs": [{"name": "x", "shape": [NaN], "datatype": "FP32"}]}', None, "oip-malformed", id="NaN in the JSON"),
        pytest.param(b'{"inputs": [{"name": "x\xff"}]}', None, "oip-malformed", id="a name that is not UTF-8"),
        pytest.param(b"[" * 100_000, None, "oip-malformed", id="a list a hundred thousand deep"),
        pytest.param(b'{"inputs": [], "parameters": {"a": ' + b"[" * 100_000, None, "body-too-deep", id="a parameter without a bottom"),
        pytest.param(b'{"inputs": [], "parameters": {"a": []}}', None, "oip-parameter", id="a parameter that is a list"),
        pytest.param(b"{}", "3", "header-invalid", id="a header longer than the body"),
        pytest.param(b"{}", "-1", "header-invalid", id="a negative header length"),
        pytest.param(b"{}", "two", "header-invalid", id="a header length in words"),
        pytest.param(b"{}", "9" * 5_000, "header-invalid", id="a header length of five thousand digits"),
        pytest.param(b"{}", "²", "header-invalid", id="a digit that is none of ASCII's"),
        pytest.param(b"{}", "0", "oip-malformed", id="no JSON at all"),
        pytest.param(
            b'{"inputs": [' + b'{"name":"x","shape":[1],"datatype":"FP32","data":[1]},' * 5_000 + b"]}",
            None,
            "oip-malformed",
            id="a comma too many",
        ),
        pytest.param(
            b'{"inputs": [' + b",".join([b'{"name":"x","shape":[1],"datatype":"FP32","data":[1]}'] * 5_000) + b"]}",
            None,
            "oip-malformed",
            id="five thousand inputs",
        ),
    ],
)
def test_hostile_bodies_are_refused_with_a_code(body, length, code):
    """JSON that is none, or means something else, never gets further than the decoder."""
    with pytest.raises(SpecError) as caught:
        BodyDecoder()(body, length, model="m", version="")

    assert code == caught.value.code


def test_a_null_is_missing_in_numbers_and_in_texts():
    """NaN cannot be spelt in JSON, and an empty text is not a missing one."""
    found = rest([one("FP64", (2,), [None, 1.5]), one("BYTES", (2,), [None, ""], name="t")])

    assert np.isnan(found.inputs[0].values()[0])
    assert [None, ""] == found.inputs[1].values().tolist()


@pytest.mark.parametrize(
    ("data", "code"),
    [
        pytest.param(b"\x0a", "oip-malformed", id="a field without its length"),
        pytest.param(b"\x0a\xff\xff\xff\xff\x0f", "oip-malformed", id="a field of four gigabytes"),
        pytest.param(b"\x0a" + b"\xff" * 11, "oip-malformed", id="a length of eleven bytes"),
        pytest.param(b"\x00\x01", "oip-malformed", id="field number 0"),
        pytest.param(b"\x0b\x0c", "oip-malformed", id="a group"),
        pytest.param(b"\x0a\x02\xff\xfe", "oip-malformed", id="a model name that is not UTF-8"),
        pytest.param(b"\x1a\x02\xff\xfe" + message(raw=b"12345678").SerializeToString(), "oip-malformed", id="an id that is not UTF-8"),
        pytest.param(b"\x3a\x01a", "oip-data", id="raw data of no input"),
        pytest.param(b"\x22\x00" * 300_000, "oip-malformed", id="three hundred thousand parameters"),
        pytest.param(b"\x2a\x00" * 5_000, "oip-datatype", id="five thousand empty inputs"),
        pytest.param(message("FP32", (2**62, 4), b"abcd").SerializeToString(), "oip-shape", id="a product beyond 64 bits"),
        pytest.param(message("FP32", (-5,), b"abcd").SerializeToString(), "oip-shape", id="a negative dimension"),
        pytest.param(message("FP32", (2**40,), b"abcd").SerializeToString(), "oip-data", id="a claim of terabytes"),
        pytest.param(message("FP32", (2**24,), fp32_contents=[1.0]).SerializeToString(), "oip-data", id="too much for typed contents"),
        pytest.param(message("FP32", (2,), fp32_contents=[1.0]).SerializeToString(), "oip-data", id="too few typed contents"),
        pytest.param(message("FP32", (1,), fp32_contents=[1.0, 2.0]).SerializeToString(), "oip-data", id="too many typed contents"),
        pytest.param(message("FP32", (1,), int_contents=[1]).SerializeToString(), "oip-data", id="contents in another field"),
        pytest.param(message("INT8", (1,), int_contents=[300]).SerializeToString(), "oip-data", id="contents int8 cannot hold"),
        pytest.param(message("FP16", (1,), fp32_contents=[1.0]).SerializeToString(), "oip-data", id="float16, which has no typed contents"),
        pytest.param(message("FP32", (1,), b"abcd", fp32_contents=[1.0]).SerializeToString(), "oip-malformed", id="raw and typed at once"),
        pytest.param(message("FP32", (1,)).SerializeToString(), "oip-data", id="neither raw nor typed"),
        pytest.param(message("BF16", (2,), b"abcd").SerializeToString(), "oip-datatype", id="bfloat16"),
    ],
)
def test_hostile_messages_are_refused_with_a_code(data, code):
    """What the wire can say and a request cannot mean; the decoder stays usable afterwards."""
    decoder = InferDecoder()
    with pytest.raises(SpecError) as caught:
        decoder(data)

    assert code == caught.value.code
    assert [1.0, 2.0] == decoder(message(raw=np.array([1, 2], np.float32).tobytes()).SerializeToString()).inputs[0].values().tolist()


def test_a_head_met_before_means_what_it_meant_and_nothing_of_its_data():
    """Same head, other id and other data: remembered is only what the client says about its tensors."""
    decoder = InferDecoder()
    for i in range(3):
        request = message(raw=np.array([i, -i], np.float32).tobytes())
        request.id = f"id {i}"
        found = decoder(request.SerializeToString())

        assert (f"id {i}", [float(i), float(-i)]) == (found.id, found.inputs[0].values().tolist())
    assert 1 == len(decoder._heads)


def test_heads_are_forgotten_before_they_fill_the_memory():
    """A client that never repeats itself cannot make the server remember everything."""
    decoder = InferDecoder()
    for i in range(3_000):
        request = message(raw=b"12345678")
        request.model_name = f"m{i}"
        decoder(request.SerializeToString())

    assert len(decoder._heads) <= 1_024


def test_json_met_before_means_what_it_meant_and_nothing_of_its_data():
    """The same JSON before other bytes: remembered are claims; JSON that carries data is not remembered at all."""
    decoder = BodyDecoder()
    head = json.dumps({"inputs": [one("FP32", (2,), binary_data_size=8)]}).encode()
    for i in range(3):
        body = head + np.array([i, -i], np.float32).tobytes()

        assert [i, -i] == decoder(body, str(len(head)), model="m", version="").inputs[0].values().tolist()
    for body in (head + b"1234567", head + b"123456789"):
        with pytest.raises(SpecError):
            decoder(body, str(len(head)), model="m", version="")
    with_data = json.dumps({"inputs": [one("FP32", (1,), [1])]}).encode()
    decoder(with_data, str(len(with_data)), model="m", version="")

    assert [head] == list(decoder._plans)


def test_fields_in_any_order_and_unknown_ones_are_understood():
    """The wire format promises neither order nor that everybody knows all fields."""
    request = message(raw=np.array([1, 2], np.float32).tobytes())
    request.outputs.add(name="y")
    request.parameters["mulle_unit"].string_param = "u"
    request.parameters["timeout"].int64_param = 5
    request.parameters["d"].double_param = 0.5
    request.parameters["b"].bool_param = True
    request.parameters["u"].uint64_param = 2**63
    whole = request.SerializeToString()
    reordered = b"\x3a\x08" + np.array([1, 2], np.float32).tobytes() + whole[: whole.rindex(b"\x3a\x08")]
    for data in (whole, reordered, b"\xfa\x3f\x03abc" + whole, b"\xf8\x3f\x07" + whole):
        found = InferDecoder()(data)

        assert ("m", "한글-7", [1.0, 2.0]) == (found.model, found.id, found.inputs[0].values().tolist())
        assert {"mulle_unit": "u", "timeout": 5, "d": 0.5, "b": True, "u": 2**63} == found.parameters
        assert [RequestedOutput("y")] == found.outputs


def test_answers_are_read_by_the_public_clients_own_classes():
    """What is written by hand is what generated code reads."""
    outputs = [
        OutputTensor("p", "FP32", np.array([[0.25, 0.75]], np.float32)),
        OutputTensor("label", "BYTES", np.array(["예"], dtype=object)),
        OutputTensor("big", "INT64", np.arange(5_000)),
    ]
    parameters = {"s": "글", "i": -3, "b": False, "f": 0.5}
    encoder = ResponseEncoder()
    for value in ("", "a", "ab", "글", "x" * 300, "a"):
        again = encoder(InferResponse("모델", "3", "", [], {"s": value}))

        assert value == service_pb2.ModelInferResponse.FromString(again).parameters["s"].string_param
    data = encoder(InferResponse("모델", "3", "id", outputs, parameters))
    found = service_pb2.ModelInferResponse.FromString(data)

    assert ("모델", "3", "id") == (found.model_name, found.model_version, found.id)
    assert [("p", "FP32", [1, 2]), ("label", "BYTES", [1]), ("big", "INT64", [5_000])] == [
        (o.name, o.datatype, list(o.shape)) for o in found.outputs
    ]
    assert [0.25, 0.75] == np.frombuffer(found.raw_output_contents[0], np.float32).tolist()
    assert b"\x03\0\0\0" + "예".encode() == found.raw_output_contents[1]
    assert list(range(5_000)) == np.frombuffer(found.raw_output_contents[2], np.int64).tolist()
    assert ("글", -3, False, 0.5) == (
        found.parameters["s"].string_param,
        found.parameters["i"].int64_param,
        found.parameters["b"].bool_param,
        found.parameters["f"].double_param,
    )


def test_metadata_is_read_by_the_public_clients_own_classes():
    """Live, ready, server, model and the names in a question."""
    info = [InputSpec("x", "FP32", (1,))]
    model = service_pb2.ModelMetadataResponse.FromString(encode_model("m", ["1", "2"], "p", [], []))
    server = service_pb2.ServerMetadataResponse.FromString(encode_server("mulle", "1", ["a", "b"]))
    asked = service_pb2.ModelReadyRequest(name="모델", version="4").SerializeToString()

    assert "x" == info[0].name
    assert ("m", ["1", "2"], "p") == (model.name, list(model.versions), model.platform)
    assert ("mulle", "1", ["a", "b"]) == (server.name, server.version, list(server.extensions))
    assert [True, False] == [service_pb2.ServerLiveResponse.FromString(encode_flag(value=v)).live for v in (True, False)]
    assert ("모델", "4") == decode_names(asked)
    assert encode_one("x", 1) == service_pb2.ModelInferRequest(parameters={"x": {"int64_param": 1}}).SerializeToString()


@pytest.mark.parametrize("value", [0, 1, 127, 128, 300, 2**32, 2**63, 2**64 - 1])
def test_a_number_on_the_wire_reads_back(value):
    """At every length a varint can have."""
    assert [value] == varints(memoryview(size_of(value))).tolist()


def test_rest_answers_put_asked_outputs_behind_the_json():
    """Per output, or all of them; the length says where the JSON ends."""
    outputs = [OutputTensor("a", "FP32", np.array([1, 2], np.float32)), OutputTensor("b", "BYTES", np.array(["x", "yz"], dtype=object))]
    response = InferResponse("m", "1", "i", outputs, {})
    plain, nothing = encode_infer(response, None, all_binary=False)
    body, n_json = encode_infer(response, [RequestedOutput("a", False), RequestedOutput("b")], all_binary=True)
    head = json.loads(body[:n_json])

    assert (None, [[1.0, 2.0], ["x", "yz"]]) == (nothing, [o["data"] for o in json.loads(plain)["outputs"]])
    assert [1.0, 2.0] == head["outputs"][0]["data"]
    assert (11, b"\x01\0\0\0x\x02\0\0\0yz") == (head["outputs"][1]["parameters"]["binary_data_size"], body[n_json:])


def test_compressed_bodies_are_inflated_to_the_limit_and_no_further():
    """A bomb of a few kilobytes is refused at the limit; what is cut off or followed by something is refused too."""
    data = b"tensor" * 1_000

    assert data == inflate(gzip.compress(data), 31, 10_000)
    assert data == inflate(zlib.compress(data), 15, 6_000)
    for body, code in [
        (gzip.compress(b"\0" * 50_000_000), "body-too-large"),
        (gzip.compress(data)[:-3], "oip-encoding"),
        (gzip.compress(data) + b"x", "oip-encoding"),
        (gzip.compress(data) * 2, "oip-encoding"),
        (b"not gzip at all", "oip-encoding"),
        (b"", "oip-encoding"),
    ]:
        with pytest.raises(SpecError) as caught:
            inflate(body, 31, 10_000)

        assert code == caught.value.code


def test_text_that_is_not_utf8_is_only_refused_where_text_is_wanted():
    """BYTES may be anything until a model wants text of it."""
    spec = InputSpec("x", "BYTES", (1,))

    assert [b"\xff"] == Tensor(spec, memoryview(b"\x01\0\0\0\xff")).values().tolist()
