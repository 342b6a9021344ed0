"""A data plane over small real bundles, spoken to in the Open Inference Protocol: REST and gRPC on loopback, or none of both.

Deployments: `churn` (numbers and text), `points` (three numbers, two classes), `typed` (number, boolean, date: a value), `mixed`
(tensors of four datatypes in and out), `sums` and `colours` (see `support/tensors.py`).
"""

import asyncio
import contextlib
import threading
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper

from mulle.bundle.seal import BundleContent, seal_bundle
from mulle.core.schema import ColumnType
from mulle.formats.bundle import ColumnInfo, Graph, GraphInput, GraphOutput, read_manifest
from mulle.formats.feedback_log import FeedbackWriter
from mulle.formats.golden import Golden
from mulle.formats.golden_tensors import GoldenTensors, golden_case
from mulle.formats.prediction_log import LogWriter
from mulle.serve.http.checks import Limits
from mulle.serve.http.listener import HttpServer
from mulle.serve.http.messages import Response, problem
from mulle.serve.http.plain import Plain
from mulle.serve.plane.costs import CostCurve
from mulle.serve.plane.dataplane import DataPlane
from mulle.serve.plane.deployment import Deployment, Serving
from mulle.serve.plane.served import make_served
from mulle.serve.protocols.oip_grpc import GrpcServer
from mulle.serve.protocols.oip_rest import OipRoutes
from mulle.serve.protocols.oip_service import OipService
from mulle.serve.runtimes.onnx import OnnxRuntime, require_golden
from mulle.serve.state import ServerState
from mulle.serve.telemetry.registry import MetricsRegistry
from support.bundles import private_key, seal_churn
from support.tensors import finish, plain_answer, seal_image, seal_tensors

MAX_ROWS = 1_000
MAX_BODY_BYTES = 1 << 20


def points_graph():
    """Return a graph of one matrix: sigmoid(x·(1, -2, 0.5))."""
    node, value = helper.make_node, helper.make_tensor_value_info
    nodes = [
        node("MatMul", ["x", "w"], ["logit"]),
        node("Sigmoid", ["logit"], ["p"]),
        node("Sub", ["one", "p"], ["q"]),
        node("Concat", ["q", "p"], ["probabilities"], axis=1),
    ]
    constants = {"w": np.array([[1.0], [-2.0], [0.5]], np.float32), "one": np.array([[1.0]], np.float32)}
    return finish(
        nodes,
        [value("x", TensorProto.FLOAT, [None, 3])],
        [value("probabilities", TensorProto.FLOAT, [None, 2])],
        constants,
    )


def points(features):
    """Return what the points graph answers, in numpy."""
    p = 1 / (1 + np.exp(-(np.asarray(features, np.float64) @ [1.0, -2.0, 0.5])))
    return np.stack([1 - p, p], axis=1)


def seal_points(root):
    """Return a sealed bundle of three columns that go into one tensor."""
    columns = tuple(ColumnInfo(name, ColumnType.NUMBER, nullable=False) for name in ("x0", "x1", "x2"))
    content = BundleContent(
        model_name="points",
        task="binary",
        graph=points_graph(),
        graph_info=Graph(inputs=(GraphInput("x", "float", ("x0", "x1", "x2")),), output="probabilities"),
        columns=columns,
        baseline=b"{}",
        golden=Golden(rows=({"x0": 1.0, "x1": 2.0, "x2": 3.0},), outputs=(tuple(points([[1.0, 2.0, 3.0]])[0].tolist()),)).to_bytes(),
        classes=("left", "right"),
        positive="right",
        threshold=0.5,
    )
    return seal_bundle(root, content, attestations={}, private_key=private_key())


def seal_typed(root):
    """Return a sealed regression: value = number + 10 · boolean + days since 1970; a missing one counts as nothing."""
    node, value = helper.make_node, helper.make_tensor_value_info
    nodes = []
    for name in ("number", "flag", "day"):
        nodes += [node("IsNaN", [name], [f"no_{name}"]), node("Where", [f"no_{name}", "zero", name], [f"{name}_filled"])]
    nodes += [
        node("Mul", ["flag_filled", "ten"], ["flags"]),
        node("Div", ["day_filled", "seconds"], ["days"]),
        node("Sum", ["number_filled", "flags", "days"], ["sum"]),
        node("Cast", ["sum"], ["value"], to=TensorProto.FLOAT),
    ]
    constants = {"zero": np.array([[0.0]]), "ten": np.array([[10.0]]), "seconds": np.array([[86400.0]])}
    names = (("number", ColumnType.NUMBER), ("flag", ColumnType.BOOLEAN), ("day", ColumnType.DATETIME))
    graph = finish(
        nodes,
        [value(name, TensorProto.DOUBLE, [None, 1]) for name, _ in names],
        [value("value", TensorProto.FLOAT, [None, 1])],
        constants,
    )
    content = BundleContent(
        model_name="typed",
        task="regression",
        graph=graph,
        graph_info=Graph(inputs=tuple(GraphInput(name, "double", (name,)) for name, _ in names), output="value"),
        columns=tuple(ColumnInfo(name, kind) for name, kind in names),
        baseline=b"{}",
        golden=Golden(rows=({"number": 1.0, "flag": True, "day": 86400.0},), outputs=((12.0,),)).to_bytes(),
    )
    return seal_bundle(root, content, attestations={}, private_key=private_key())


MIXED = Graph(
    inputs=(
        GraphInput("x", "float", shape=(3,)),
        GraphInput("k", "int64", shape=()),
        GraphInput("flag", "bool", shape=(1,)),
        GraphInput("words", "string", shape=(2,)),
    ),
    output="y",
    outputs=(
        GraphOutput("y", "float", (3,)),
        GraphOutput("k_doubled", "int64", ()),
        GraphOutput("flipped", "bool", (1,)),
        GraphOutput("said", "string", (2,)),
    ),
)


def mixed_request(n, *, seed=0):
    """Return tensors the mixed graph takes."""
    rng = np.random.default_rng(seed)
    return {
        "x": rng.normal(size=(n, 3)).astype(np.float32),
        "k": rng.integers(-99, 99, size=n),
        "flag": rng.random((n, 1)) < 0.5,
        "words": np.array([[f"말 {seed}-{i}", f"word {i}"] for i in range(n)], dtype=object),
    }


def mixed_answer(request):
    """Return what the mixed graph answers, in numpy."""
    return {
        "y": request["x"] + np.float32(1),
        "k_doubled": request["k"] * 2,
        "flipped": ~request["flag"],
        "said": request["words"],
    }


def seal_mixed(root):
    """Return a sealed tensor bundle of four datatypes."""
    node, value = helper.make_node, helper.make_tensor_value_info
    nodes = [
        node("Add", ["x", "one"], ["y"]),
        node("Add", ["k", "k"], ["k_doubled"]),
        node("Not", ["flag"], ["flipped"]),
        node("Identity", ["words"], ["said"]),
    ]
    graph = finish(
        nodes,
        [
            value("x", TensorProto.FLOAT, ["n", 3]),
            value("k", TensorProto.INT64, ["n"]),
            value("flag", TensorProto.BOOL, ["n", 1]),
            value("words", TensorProto.STRING, ["n", 2]),
        ],
        [
            value("y", TensorProto.FLOAT, ["n", 3]),
            value("k_doubled", TensorProto.INT64, ["n"]),
            value("flipped", TensorProto.BOOL, ["n", 1]),
            value("said", TensorProto.STRING, ["n", 2]),
        ],
        {"one": np.array(1, np.float32)},
    )
    request = mixed_request(2)
    content = BundleContent(
        model_name="mixed",
        task="tensor",
        graph=graph,
        graph_info=MIXED,
        columns=(),
        baseline=None,
        golden=GoldenTensors(cases=(golden_case(request, plain_answer(graph, request)),)).to_bytes(),
    )
    return seal_bundle(root, content, attestations={}, private_key=private_key())


SEALERS = {
    "churn": seal_churn,
    "points": seal_points,
    "typed": seal_typed,
    "mixed": seal_mixed,
    "sums": seal_tensors,
    "colours": seal_image,
}


def make_runtimes(root: Path, names=tuple(SEALERS)):
    """Return the proven runtimes of the named bundles, sealed under `root`."""
    runtimes = {}
    for name in names:
        folder = SEALERS[name](root / name).path
        runtimes[name] = OnnxRuntime(folder, read_manifest(folder))
        require_golden(folder, runtimes[name])
    return runtimes


def make_plane(root: Path, runtimes, *, cost_ns=20_000, **options):
    """Return a data plane that serves every runtime as revision 3; call it on a running loop, and `close_plane` at the end."""
    registry = MetricsRegistry()
    plane = DataPlane(registry, **options)
    for name, runtime in runtimes.items():
        served = make_served(runtime, CostCurve({1: cost_ns, 64: 2 * cost_ns}), revision=3, model_version=7)
        serving = Serving(deployment=name, environment="local", generation=1, revisions=(served,))
        plane.add(Deployment(serving, LogWriter(root / "logs", name), FeedbackWriter(root / "logs", name), registry))
    return plane


def close_plane(plane):
    """End the plane and its logs."""
    plane.close()
    for deployment in plane.deployments.values():
        deployment.log.close(plane.now_ns())
        deployment.feedback.close()


@dataclass
class Running:
    """A server in a thread."""

    http: int
    grpc: int
    plane: DataPlane
    state: ServerState
    loop: asyncio.AbstractEventLoop


@contextlib.contextmanager
def oip_server(root: Path, *, names=tuple(SEALERS), authorize=None, loop_factory=None, plane_options=None, **grpc_options):
    """Serve both transports on loopback while the block runs."""
    runtimes = make_runtimes(root / "bundles", names)
    ready, box, failure = threading.Event(), [], []

    async def work():
        ended = asyncio.Event()
        plane = make_plane(root, runtimes, **(plane_options or {}))
        state = ServerState(ready=True)
        service = OipService(plane, state, max_rows=MAX_ROWS)
        routes = OipRoutes(service, max_body_bytes=MAX_BODY_BYTES)

        def nothing(request) -> Response:
            return problem(404, "route-unknown", f"there is no {request.path!r}", fix="see /v2")

        def route(method, path):
            return Plain(routes.match(path, method) or nothing)

        http = HttpServer(route, limits=Limits(body_bytes=MAX_BODY_BYTES), allowed_hosts=None)
        loop = asyncio.get_running_loop()
        listener = await loop.create_server(http, "127.0.0.1", 0)
        grpc = GrpcServer(service, authorize=authorize, **grpc_options)
        port = await grpc.start("127.0.0.1", 0)
        box.append((Running(listener.sockets[0].getsockname()[1], port, plane, state, loop), ended))
        ready.set()
        await ended.wait()
        await grpc.stop(0.1)
        listener.close()
        http.abort()
        await asyncio.sleep(0)
        close_plane(plane)

    def run():
        try:
            with asyncio.Runner(loop_factory=loop_factory) as runner:
                runner.run(work())
        except BaseException as error:  # noqa: BLE001 - carried to the caller's thread
            failure.append(error)
            ready.set()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    ready.wait(60)
    if failure:
        raise failure[0]
    running, ended = box[0]
    try:
        yield running
    finally:
        running.loop.call_soon_threadsafe(ended.set)
        thread.join(30)
    if failure:
        raise failure[0]
