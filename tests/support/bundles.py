"""Small sealed bundles: a real ONNX graph from raw columns, golden requests the graph itself answered, a signature.

The churn graph: score = sigmoid(0.05 * (monthly - 60) - 0.04 * tenure + 1.0 if contract is 월별 else 0). Missing numbers
count as 0.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from mulle.bundle.seal import BundleContent, SealedBundle, seal_bundle
from mulle.core.schema import ColumnType
from mulle.formats.bundle import ColumnInfo, Graph, GraphInput
from mulle.formats.deployment import DeploymentSpec, Revision, SignedSpec, Traffic, encode_signed_spec
from mulle.formats.golden import Golden
from mulle.formats.rows import encode_rows, feeds
from mulle.formats.signing import key_path, load_or_create_key, public_key, sign

MONTHLY = "월별"
COLUMNS = (
    ColumnInfo("tenure", ColumnType.NUMBER, nullable=True, minimum=0.0, maximum=72.0),
    ColumnInfo("monthly", ColumnType.NUMBER, nullable=False, minimum=18.0, maximum=120.0),
    ColumnInfo("계약", ColumnType.TEXT, nullable=True, categories=(MONTHLY, "1년", "2년")),
)
GRAPH = Graph(
    inputs=(
        GraphInput("tenure", "double", ("tenure",)),
        GraphInput("monthly", "double", ("monthly",)),
        GraphInput("계약", "string", ("계약",)),
    ),
    output="probabilities",
)
GOLDEN_ROWS: tuple[dict[str, str | float | bool | None], ...] = (
    {"tenure": 1.0, "monthly": 70.0, "계약": MONTHLY},
    {"tenure": 60.0, "monthly": 20.5, "계약": "2년"},
    {"tenure": None, "monthly": 99.0, "계약": None},
)


def private_key() -> bytes:
    """Return this test's own signing key."""
    return load_or_create_key(key_path())


def trusted_key() -> str:
    """Return the public half of `private_key`."""
    return public_key(private_key())


def churn_graph(*, shift: float = 0.0, regression: bool = False) -> bytes:
    """Return the ONNX bytes of the churn graph; `shift` makes another version of it."""
    constants = {
        "zero": np.array([[0.0]], np.float64),
        "slope_tenure": np.array([[-0.04]], np.float64),
        "slope_monthly": np.array([[0.05]], np.float64),
        "offset": np.array([[-3.0 + shift]], np.float64),
        "monthly_text": np.array([[MONTHLY]], dtype=object),
    }
    node = helper.make_node
    nodes = [
        node("IsNaN", ["tenure"], ["no_tenure"]),
        node("Where", ["no_tenure", "zero", "tenure"], ["tenure_filled"]),
        node("Mul", ["tenure_filled", "slope_tenure"], ["a"]),
        node("Mul", ["monthly", "slope_monthly"], ["b"]),
        node("Equal", ["계약", "monthly_text"], ["is_monthly"]),
        node("Cast", ["is_monthly"], ["c"], to=TensorProto.DOUBLE),
        node("Add", ["a", "b"], ["ab"]),
        node("Add", ["ab", "c"], ["abc"]),
        node("Add", ["abc", "offset"], ["logit"]),
        node("Cast", ["logit"], ["logit32"], to=TensorProto.FLOAT),
    ]
    if regression:
        nodes.append(node("Identity", ["logit32"], ["prediction"]))
        output = helper.make_tensor_value_info("prediction", TensorProto.FLOAT, [None, 1])
    else:
        one = np.array([[1.0]], np.float32)
        constants["one"] = one
        nodes += [
            node("Sigmoid", ["logit32"], ["p"]),
            node("Sub", ["one", "p"], ["q"]),
            node("Concat", ["q", "p"], ["probabilities"], axis=1),
        ]
        output = helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, [None, 2])
    inputs = [
        helper.make_tensor_value_info("tenure", TensorProto.DOUBLE, [None, 1]),
        helper.make_tensor_value_info("monthly", TensorProto.DOUBLE, [None, 1]),
        helper.make_tensor_value_info("계약", TensorProto.STRING, [None, 1]),
    ]
    initializers = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "churn", inputs, [output], initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def answers(graph: bytes, rows: Sequence[dict[str, str | float | bool | None]], info: Graph = GRAPH) -> np.ndarray:
    """Return what plain ONNX Runtime answers, without any of the code under test but the row encoder."""
    import onnxruntime

    session = onnxruntime.InferenceSession(graph)
    return session.run([info.output], feeds(encode_rows(rows, COLUMNS, absent_is_missing=True), info))[0]


def seal_churn(
    root: Path,
    *,
    shift: float = 0.0,
    regression: bool = False,
    graph: bytes | None = None,
    golden_outputs: Sequence[Sequence[float]] | None = None,
    key: bytes | None = None,
    model_name: str = "churn",
) -> SealedBundle:
    """Return a sealed churn bundle under `root`."""
    info = Graph(inputs=GRAPH.inputs, output="prediction") if regression else GRAPH
    data = churn_graph(shift=shift, regression=regression) if graph is None else graph
    outputs = answers(data, GOLDEN_ROWS, info).tolist() if golden_outputs is None else golden_outputs
    content = BundleContent(
        model_name=model_name,
        task="regression" if regression else "binary",
        graph=data,
        graph_info=info,
        columns=COLUMNS,
        baseline=b"{}",
        golden=Golden(rows=GOLDEN_ROWS, outputs=tuple(tuple(row) for row in outputs)).to_bytes(),
        classes=() if regression else ("No", "Yes"),
        positive=None if regression else "Yes",
        target="churn",
        entity="customer_id",
    )
    return seal_bundle(root, content, attestations={}, private_key=key or private_key())


def write_spec(
    state_dir: Path,
    bundles: Sequence[SealedBundle],
    *,
    generation: int,
    deployment: str = "churn",
    weights: dict[int, int] | None = None,
    key: bytes | None = None,
) -> Path:
    """Write the signed spec that serves `bundles` as revisions numbered by the generation they came with, and return its path."""
    revisions = tuple(
        Revision(
            number=generation + i,
            model="churn",
            model_version=generation + i,
            bundle_digest=bundle.digest,
            bundle_path=str(bundle.path),
            run_id=f"run-{generation + i}",
        )
        for i, bundle in enumerate(bundles)
    )
    spec = DeploymentSpec(
        deployment=deployment,
        environment="local",
        generation=generation,
        revisions=revisions,
        traffic=Traffic(weights=weights or {generation: 100}, salt="소금"),
    )
    path = state_dir / "serving" / f"{deployment}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".draft")
    draft.write_bytes(encode_signed_spec(SignedSpec(spec, sign(spec.to_bytes(), key or private_key()))))
    draft.replace(path)
    return path
