"""The public Triton clients, unchanged, against a real server: REST and gRPC say and do the same."""

import asyncio
import concurrent.futures

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.grpc.aio
import tritonclient.http
import tritonclient.http.aio
import uvloop
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from support.oip import mixed_answer, mixed_request, oip_server, points
from support.tensors import picture, plain_answer, tensor_graph, tensor_request

CLIENTS = {"rest": tritonclient.http, "grpc": tritonclient.grpc}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Return a server of all small bundles, on the loop it runs on in production."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MULLE_HOME", str(tmp_path_factory.mktemp("home")))
        with oip_server(tmp_path_factory.mktemp("server"), loop_factory=uvloop.new_event_loop) as running:
            yield running


@pytest.fixture(params=list(CLIENTS))
def kind(request):
    """Return which client."""
    return request.param


@pytest.fixture
def library(kind):
    """Return the client's module."""
    return CLIENTS[kind]


@pytest.fixture
def client(kind, library, server):
    """Return a connected client."""
    options = {"network_timeout": 60.0} if kind == "rest" else {}
    made = library.InferenceServerClient(f"127.0.0.1:{server.http if kind == 'rest' else server.grpc}", **options)
    yield made
    made.close()


def tensors(library, arrays, **how):
    """Return the client's inputs for arrays."""
    made = []
    for name, array in arrays.items():
        tensor = library.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
        tensor.set_data_from_numpy(array, **how)
        made.append(tensor)
    return made


def texts(array):
    """Return an answer's BYTES as text."""
    return [v.decode() if isinstance(v, bytes) else v for v in array.ravel().tolist()]


def test_health_and_metadata_are_what_the_client_expects(client, kind):
    """Live, ready, model ready with and without version; names, shapes and versions."""
    server_info, model = client.get_server_metadata(), client.get_model_metadata("mixed")
    if kind == "grpc":
        server_info = {"name": server_info.name, "extensions": list(server_info.extensions)}
        model = {
            "name": model.name,
            "versions": list(model.versions),
            "inputs": [{"name": t.name, "datatype": t.datatype, "shape": list(t.shape)} for t in model.inputs],
            "outputs": [{"name": t.name, "datatype": t.datatype, "shape": list(t.shape)} for t in model.outputs],
        }
    ready = [client.is_model_ready(*which) for which in [("mixed",), ("mixed", "3"), ("mixed", "9"), ("nobody",)]]

    assert client.is_server_live()
    assert client.is_server_ready()
    assert [True, True, False, False] == ready
    assert ("mulle", True) == (server_info["name"], "binary_tensor_data" in server_info["extensions"])
    assert ("mixed", ["3"]) == (model["name"], model["versions"])
    assert [("x", "FP32", [-1, 3]), ("k", "INT64", [-1]), ("flag", "BOOL", [-1, 1]), ("words", "BYTES", [-1, 2])] == [
        (t["name"], t["datatype"], t["shape"]) for t in model["inputs"]
    ]
    assert ["y", "k_doubled", "flipped", "said"] == [t["name"] for t in model["outputs"]]


def test_four_datatypes_go_in_and_come_back(client, library):
    """FP32, INT64, BOOL and BYTES in one request; every output, the id and the version in the answer."""
    request = mixed_request(4)
    answer = client.infer("mixed", tensors(library, request), request_id="nr 7")
    found = {name: answer.as_numpy(name) for name in mixed_answer(request)}
    expected = mixed_answer(request)

    assert all(np.array_equal(expected[name], found[name]) for name in ("y", "k_doubled", "flipped"))
    assert texts(expected["said"]) == texts(found["said"])
    assert {"y": np.float32, "k_doubled": np.int64, "flipped": np.bool_} == {
        name: found[name].dtype.type for name in ("y", "k_doubled", "flipped")
    }


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False])
def test_json_and_binary_say_the_same_over_rest(server, binary_in, binary_out):
    """Each of the four combinations, with only some outputs asked for."""
    library = tritonclient.http
    request = mixed_request(3)
    wanted = [library.InferRequestedOutput(name, binary_data=binary_out) for name in ("said", "flipped", "y")]
    with library.InferenceServerClient(f"127.0.0.1:{server.http}") as client:
        answer = client.infer("mixed", tensors(library, request, binary_data=binary_in), outputs=wanted)
    expected = mixed_answer(request)

    assert np.array_equal(expected["y"], answer.as_numpy("y"))
    assert np.array_equal(expected["flipped"], answer.as_numpy("flipped"))
    assert texts(expected["said"]) == texts(answer.as_numpy("said"))
    assert answer.as_numpy("k_doubled") is None
    assert [binary_out] * 3 == ["parameters" in output for output in answer.get_response()["outputs"]]


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_compressed_requests_are_understood_over_rest(server, algorithm):
    """The client may compress; the answer comes as it is."""
    library = tritonclient.http
    with library.InferenceServerClient(f"127.0.0.1:{server.http}") as client:
        answer = client.infer(
            "points",
            tensors(library, {"features": np.zeros((50, 3), np.float32)}),
            request_compression_algorithm=algorithm,
            response_compression_algorithm=algorithm,
        )

    assert np.allclose(0.5, answer.as_numpy("probabilities"))


def test_columns_are_asked_one_by_one_or_as_a_matrix(client, library):
    """Numbers and Korean text by name; a matrix where all columns are numbers."""
    churn = client.infer("churn", tensors(library, {"monthly": np.array([70.0, 20.0]), "계약": np.array(["월별", "2년"], dtype=object)}))
    matrix = np.array([[1, 2, 3], [0, 0, 0]], np.float32)
    found = client.infer("points", tensors(library, {"features": matrix}))

    assert ["Yes", "No"] == texts(churn.as_numpy("label"))
    assert np.allclose(points(matrix), found.as_numpy("probabilities"), atol=1e-6)
    assert 2 == len(set(texts(found.as_numpy("prediction_id"))))


def test_pictures_go_encoded_and_are_classified(client, library):
    """BYTES of a PNG in, the best classes out."""
    encoded = np.array([picture((20, 40, 220)), picture((220, 40, 20))], dtype=object)
    wanted = [library.InferRequestedOutput("probabilities", class_count=2), library.InferRequestedOutput("label")]
    answer = client.infer("colours", tensors(library, {"image": encoded}), outputs=wanted)
    best = [[text.split(":")[2] for text in texts(row)] for row in answer.as_numpy("probabilities")]

    assert ["blue", "red"] == texts(answer.as_numpy("label")) == [row[0] for row in best]


@pytest.mark.parametrize(
    ("model", "arrays", "more", "fragment"),
    [
        pytest.param("nobody", {"x": np.ones(1)}, {}, "[deployment-unknown] there is no deployment 'nobody'", id="no such model"),
        pytest.param("points", {"features": np.ones((1, 3))}, {"model_version": "9"}, "[revision-unknown]", id="no such version"),
        pytest.param("churn", {"monthley": np.ones(1)}, {}, "did you mean 'monthly'?", id="a misspelt name"),
        pytest.param("points", {"features": np.ones((1, 4))}, {}, "[oip-shape]", id="a wrong shape"),
        pytest.param("churn", {"monthly": np.array(["x"], dtype=object)}, {}, "[oip-datatype]", id="a wrong datatype"),
        pytest.param("points", {"features": np.full((1, 3), np.nan)}, {}, "[rows-missing-column]", id="a missing value"),
        pytest.param("points", {"features": np.ones((1, 3))}, {"sequence_id": 5}, "[oip-unsupported]", id="a sequence"),
        pytest.param("points", {"features": np.ones((1_001, 3))}, {}, "[rows-too-many]", id="too many rows"),
    ],
)
def test_a_refusal_is_an_exception_with_our_words(client, library, model, arrays, more, fragment):
    """The client shows code, what and fix; and works on."""
    with pytest.raises(InferenceServerException) as caught:
        client.infer(model, tensors(library, arrays), **more)

    assert fragment in str(caught.value)
    assert client.infer("points", tensors(library, {"features": np.zeros((1, 3))})) is not None


def test_parameters_reach_the_prediction(client, library, server):
    """The client's own id is the prediction's; one that cannot be an id is refused."""
    inputs = tensors(library, {"features": np.ones((1, 3))})
    answer = client.infer("points", inputs, parameters={"mulle_prediction_id": "my-own", "mulle_unit": "u1"})
    with pytest.raises(InferenceServerException) as caught:
        client.infer("points", inputs, parameters={"mulle_prediction_id": "not an id"})

    assert ["my-own"] == texts(answer.as_numpy("prediction_id"))
    assert "[prediction-id-invalid]" in str(caught.value)
    assert server.plane.deployments["points"].knows("my-own")


def test_rest_and_grpc_answer_the_same_bits(server):
    """One data plane under both transports."""
    request = tensor_request(6, width=4)
    found = []
    for kind, library in CLIENTS.items():
        with library.InferenceServerClient(f"127.0.0.1:{server.http if kind == 'rest' else server.grpc}") as client:
            answer = client.infer("sums", tensors(library, request))
        found.append([answer.as_numpy(name) for name in ("sums", "doubled")])
    expected = plain_answer(tensor_graph(), request)

    assert all(np.array_equal(a, b) for a, b in zip(found[0], found[1], strict=True))
    assert np.array_equal(expected["sums"], found[0][0])


def test_two_hundred_at_once_each_get_their_own_answer(server, kind):
    """Different rows of different sizes at the same time: N requests, N answers, each its own."""
    library = CLIENTS[kind]
    address = f"127.0.0.1:{server.http if kind == 'rest' else server.grpc}"
    matrices = [np.random.default_rng(i).normal(size=(1 + i % 5, 3)).astype(np.float32) for i in range(200)]

    async def ask(client, i):
        answer = await client.infer("points", tensors(library, {"features": matrices[i]}), request_id=f"r{i}")
        said = answer.get_response()
        return (said["id"] if kind == "rest" else said.id), answer.as_numpy("probabilities")

    async def work():
        module = tritonclient.http.aio if kind == "rest" else tritonclient.grpc.aio
        client = module.InferenceServerClient(address)
        try:
            return await asyncio.gather(*(ask(client, i) for i in range(200)))
        finally:
            await client.close()

    found = asyncio.run(work())

    assert [f"r{i}" for i in range(200)] == [request_id for request_id, _ in found]
    assert all(np.allclose(points(m), p, atol=1e-6) for m, (_, p) in zip(matrices, found, strict=True))


def test_async_infer_of_the_blocking_client_calls_back(server):
    """`async_infer` over gRPC, from many threads."""
    library = tritonclient.grpc
    futures = [concurrent.futures.Future() for _ in range(20)]
    with library.InferenceServerClient(f"127.0.0.1:{server.grpc}") as client:
        for i, future in enumerate(futures):
            inputs = tensors(library, {"features": np.full((1, 3), i, np.float32)})
            client.async_infer("points", inputs, lambda result, error, future=future: future.set_result((result, error)))
        answers = [future.result(30) for future in futures]

    assert [None] * 20 == [error for _, error in answers]
    assert np.allclose(points(np.arange(20)[:, None] * np.ones((1, 3))), [r.as_numpy("probabilities")[0] for r, _ in answers], atol=1e-6)
