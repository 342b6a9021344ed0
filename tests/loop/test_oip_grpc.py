"""The gRPC server itself: statuses, keys, limits, deadlines, cancellation, ports."""

import asyncio
import http.client
import sys
import threading
import time

import grpc
import numpy as np
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from mulle.core.errors import CheckError, ConflictError, MulleError, SpecError, UnavailableError
from mulle.formats.api_keys import KeySource, add_key, make_key
from mulle.serve.access.guard import Guard
from mulle.serve.access.keys import KeyRing
from mulle.serve.access.rates import RateTable
from mulle.serve.protocols.oip_grpc import GrpcServer, status_name
from mulle.serve.protocols.oip_service import OipService, error_text
from mulle.serve.state import ServerState
from support.oip import close_plane, make_plane, make_runtimes, oip_server, points
from support.serving import wait_until

LIMIT = 1 << 20


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Return a server of the points model; its messages are bounded."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MULLE_HOME", str(tmp_path_factory.mktemp("home")))
        with oip_server(tmp_path_factory.mktemp("server"), names=("points",), max_message_bytes=LIMIT) as running:
            yield running


def connect(port):
    """Return a channel of its own to a port."""
    return grpc.insecure_channel(f"127.0.0.1:{port}", options=[("grpc.use_local_subchannel_pool", 1)])


def request_of(matrix, *, model="points"):
    """Return a request for the points model."""
    matrix = np.asarray(matrix, np.float32)
    request = service_pb2.ModelInferRequest(model_name=model)
    request.inputs.add(name="features", datatype="FP32").shape.extend(matrix.shape)
    request.raw_input_contents.append(matrix.tobytes())
    return request


def status_of_call(call, *args, **more):
    """Return the status and the text a call fails with."""
    with pytest.raises(grpc.RpcError) as caught:
        call(*args, **more)
    return caught.value.code().name, caught.value.details()


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        pytest.param(SpecError("oip-shape", "w", fix="f"), "INVALID_ARGUMENT", id="the caller's mistake"),
        pytest.param(SpecError("deployment-unknown", "w", fix="f"), "NOT_FOUND", id="no such model"),
        pytest.param(SpecError("revision-unknown", "w", fix="f"), "NOT_FOUND", id="no such version"),
        pytest.param(SpecError("key-missing", "w", fix="f"), "UNAUTHENTICATED", id="no key"),
        pytest.param(SpecError("key-scope", "w", fix="f"), "PERMISSION_DENIED", id="another's key"),
        pytest.param(UnavailableError("rate-limited", "w", fix="f"), "RESOURCE_EXHAUSTED", id="too often"),
        pytest.param(UnavailableError("overloaded", "w", fix="f"), "UNAVAILABLE", id="too much: clients may try again"),
        pytest.param(UnavailableError("deadline-expired", "w", fix="f"), "DEADLINE_EXCEEDED", id="too late"),
        pytest.param(CheckError("model-failed", "w", fix="f"), "INTERNAL", id="the model broke"),
        pytest.param(ConflictError("x", "w", fix="f"), "INTERNAL", id="what cannot happen here"),
        pytest.param(ValueError("secret"), "INTERNAL", id="a mistake of ours"),
    ],
)
def test_every_error_has_its_status(error, expected):
    """Whether to mend, to wait or to give up is told by the status alone."""
    assert expected == status_name(error)


def test_a_fault_of_the_servers_own_tells_no_internals():
    """Of the model's failure only the code leaves the process; of the caller's mistake everything that helps."""
    ours = error_text(CheckError("model-failed", "the graph failed: /srv/secret", fix="look into /srv"), hide=True)
    theirs = error_text(SpecError("oip-shape", "what", fix="fix"), hide=False)

    assert "/srv" not in ours
    assert ("[model-failed]", "[oip-shape] what; fix") == (ours.split()[0], theirs)


def test_an_overloaded_server_says_when_to_come_again(tmp_path):
    """503 with Retry-After over REST, UNAVAILABLE over gRPC: both at once, both in our words."""
    body = b'{"inputs": [{"name": "features", "datatype": "FP32", "shape": [1, 3], "data": [0, 0, 0]}]}'
    seen = set()
    options = {"max_wait_ms": 0.001, "cost_ns": 50_000_000}
    with oip_server(tmp_path, names=("points",), plane_options=options) as running, connect(running.grpc) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        # Held up, so that all of them are there at once.
        running.loop.call_soon_threadsafe(time.sleep, 0.3)
        connections = [http.client.HTTPConnection("127.0.0.1", running.http) for _ in range(20)]
        for connection in connections:
            connection.request("POST", "/v2/models/points/infer", body)
        for connection in connections:
            answer = connection.getresponse()
            seen.add((answer.status, answer.headers["retry-after"], "[overloaded]" in answer.read().decode()))
            connection.close()
        running.loop.call_soon_threadsafe(time.sleep, 0.3)
        for call in [stub.ModelInfer.future(request_of([[0, 0, 0]])) for _ in range(100)]:
            error = call.exception(30)
            if error is not None:
                seen.add((error.code().name, error.details().split()[0]))

    assert (503, "1", True) in seen
    assert ("UNAVAILABLE", "[overloaded]") in seen


def test_noise_is_an_invalid_argument_and_unknown_methods_are_unimplemented(server):
    """What is no message of the protocol is the caller's mistake, in our words; the server goes on."""
    with connect(server.grpc) as channel:
        infer = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        noise = status_of_call(infer, b"\xff\xff\xff")
        ready = status_of_call(channel.unary_unary("/inference.GRPCInferenceService/ModelMetadata"), b"\x0a\x02\xff\xff")
        unknown = status_of_call(channel.unary_unary("/inference.GRPCInferenceService/ModelStreamInfer"), b"")
        good = service_pb2.ModelInferResponse.FromString(infer(request_of([[1, 2, 3]]).SerializeToString()))

    assert ("INVALID_ARGUMENT", True) == (noise[0], noise[1].startswith("[oip-malformed]"))
    assert "INVALID_ARGUMENT" == ready[0]
    assert "UNIMPLEMENTED" == unknown[0]
    assert np.allclose(points([[1, 2, 3]])[0], np.frombuffer(good.raw_output_contents[0], np.float32), atol=1e-6)


def test_a_message_too_large_is_refused_plain_or_inflated(server):
    """The limit counts what a compressed message becomes; small compressed ones are answered."""
    with connect(server.grpc) as channel:
        infer = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        plain = status_of_call(infer, b"\0" * (LIMIT + 1))
        bomb = status_of_call(infer, b"\0" * (64 * LIMIT), compression=grpc.Compression.Gzip)
        small = infer(request_of([[0, 0, 0]]).SerializeToString(), compression=grpc.Compression.Gzip)

    assert ["RESOURCE_EXHAUSTED"] * 2 == [plain[0], bomb[0]]
    assert service_pb2.ModelInferResponse.FromString(small).outputs


def test_a_deadline_of_the_call_is_the_predictions(server):
    """A call whose time is over while the server is busy ends with that status; one with time is answered."""
    with connect(server.grpc) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        server.loop.call_soon_threadsafe(time.sleep, 0.4)
        late = status_of_call(stub.ModelInfer, request_of([[0, 0, 0]]), timeout=0.1)
        expired = request_of([[0, 0, 0]])
        expired.parameters["timeout"].int64_param = 60_000_000
        answer = stub.ModelInfer(expired, timeout=30)

    assert "DEADLINE_EXCEEDED" == late[0]
    assert answer.outputs
    assert wait_until(lambda: server.plane.batcher.n_jobs == 0)


def test_a_cancelled_call_leaves_alone(server):
    """Fifty calls, half of them cancelled at once: the others have their own answers."""
    with connect(server.grpc) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        calls = [stub.ModelInfer.future(request_of([[i, 0, 0]])) for i in range(50)]
        for call in calls[::2]:
            call.cancel()
        found = [np.frombuffer(call.result(30).raw_output_contents[0], np.float32) for call in calls[1::2]]

    assert np.allclose(points([[i, 0, 0] for i in range(1, 50, 2)]), found, atol=1e-6)
    assert wait_until(lambda: server.plane.batcher.n_jobs == 0)


def test_a_server_that_drains_is_not_ready_and_still_live(server):
    """Readiness follows the server's state, over gRPC as over REST."""
    with connect(server.grpc) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        server.state.ready = False
        try:
            found = [
                stub.ServerLive(service_pb2.ServerLiveRequest()).live,
                stub.ServerReady(service_pb2.ServerReadyRequest()).ready,
                stub.ModelReady(service_pb2.ModelReadyRequest(name="points")).ready,
            ]
        finally:
            server.state.ready = True

    assert [True, False, False] == found


def test_keys_are_asked_for_in_the_metadata(tmp_path):
    """Live and ready are open; everything else wants a key that is for the deployment; in either of two headers."""
    now_ns = time.time_ns()
    path = tmp_path / "keys.json"
    good, secret = make_key("tester", now_ns=now_ns, deployments=("points",))
    other, foreign = make_key("stranger", now_ns=now_ns, deployments=("churn",))
    add_key(path, good)
    add_key(path, other)
    rates = RateTable(None)
    guard = Guard(KeyRing(KeySource(path=str(path)), required=True, rates=rates, now_ns=now_ns))

    def authorize(metadata, deployment):
        try:
            guard.authorize(metadata, deployment or "points", now_ns=time.time_ns(), now_s=time.monotonic())
        except MulleError as error:
            return error
        return None

    with oip_server(tmp_path / "server", names=("points",), authorize=authorize) as running, connect(running.grpc) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        infer, request = stub.ModelInfer, request_of([[0, 0, 0]])
        found = [
            status_of_call(infer, request),
            status_of_call(infer, request, metadata=[("x-api-key", secret + "0")]),
            status_of_call(infer, request, metadata=[("x-api-key", foreign)]),
            status_of_call(stub.ModelMetadata, service_pb2.ModelMetadataRequest(name="points")),
            status_of_call(stub.ServerMetadata, service_pb2.ServerMetadataRequest()),
        ]
        live = stub.ServerLive(service_pb2.ServerLiveRequest()).live
        answers = [infer(request, metadata=[m]) for m in (("x-api-key", secret), ("authorization", f"Bearer {secret}"))]
        name = stub.ServerMetadata(service_pb2.ServerMetadataRequest(), metadata=[("x-api-key", secret)]).name

    assert ["UNAUTHENTICATED", "UNAUTHENTICATED", "PERMISSION_DENIED", "UNAUTHENTICATED", "UNAUTHENTICATED"] == [s for s, _ in found]
    assert ["[key-missing]", "[key-unknown]", "[key-scope]"] == [text.split()[0] for _, text in found[:3]]
    assert (True, True, "mulle") == (live, all(a.outputs for a in answers), name)


def test_two_servers_share_a_port_when_asked_to(tmp_path):
    """Workers share one; whoever did not ask for it is told that the port is taken."""

    async def work():
        plane = make_plane(tmp_path, make_runtimes(tmp_path / "b", ("points",)))
        service = OipService(plane, ServerState(ready=True), max_rows=10)
        first, second, third = (GrpcServer(service) for _ in range(3))
        port = await first.start("127.0.0.1", 0, reuse_port=True)
        again = await second.start("127.0.0.1", port, reuse_port=True)
        try:
            await third.start("127.0.0.1", port)
        except MulleError as error:
            code = error.code
        else:
            code = "shared by accident"
        await asyncio.gather(first.stop(0), second.stop(0), third.stop(0))
        close_plane(plane)
        return port == again, code

    assert (True, "serve-port") == asyncio.run(work())


def test_without_grpcio_the_extra_is_named(monkeypatch):
    """A server that was installed thin says what to install."""
    monkeypatch.setitem(sys.modules, "grpc", None)
    with pytest.raises(SpecError) as caught:
        GrpcServer(None)

    assert ("extra-missing", True) == (caught.value.code, "mulle[grpc]" in caught.value.fix)


def test_more_requests_than_allowed_are_refused_at_once(tmp_path):
    """Beyond the bound a call ends with a status, instead of waiting in memory."""
    with oip_server(tmp_path, names=("points",), max_requests=1) as running:
        statuses = set()

        def ask():
            with connect(running.grpc) as channel:
                stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
                for _ in range(100):
                    try:
                        stub.ModelInfer(request_of([[0, 0, 0]]))
                        statuses.add("OK")
                    except grpc.RpcError as error:
                        statuses.add(error.code().name)

        threads = [threading.Thread(target=ask) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    assert {"OK", "RESOURCE_EXHAUSTED"} == statuses
