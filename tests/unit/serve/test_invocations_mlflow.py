"""The answers of /invocations beside those of MLflow's own scoring server for the same model, digit for digit."""

import io
import json
import os
import warnings

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from mulle.bundle.mlflow_model import write_mlflow_model
from mulle.bundle.seal import BundleContent, seal_bundle
from mulle.core.schema import ColumnType
from mulle.formats.bundle import ColumnInfo, Graph, GraphInput
from mulle.formats.golden import Golden
from mulle.formats.rows import encode_rows, feeds
from mulle.serve.protocols.invocations import parse_invocations, render_invocations
from mulle.serve.runtimes.onnx import OnnxRuntime
from support.bundles import private_key

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import mlflow.pyfunc
    from mlflow.pyfunc import scoring_server

# MLflow and its dependencies warn about themselves; our own modules are held to the strict rule elsewhere.
pytestmark = pytest.mark.filterwarnings("ignore")

COLUMNS = (
    ColumnInfo("tenure", ColumnType.NUMBER),
    ColumnInfo("monthly", ColumnType.NUMBER, nullable=False),
    ColumnInfo("active", ColumnType.BOOLEAN),
    ColumnInfo("since", ColumnType.DATETIME),
    ColumnInfo("계약", ColumnType.TEXT),
)
ROWS = (
    {"tenure": 1, "monthly": 70.3, "active": True, "since": "2020-05-17T03:04:05+09:00", "계약": "월별"},
    {"tenure": 60.5, "monthly": 20, "active": False, "since": "2024-02-29T00:00:00Z", "계약": "2년"},
    {"tenure": None, "monthly": 99.125, "active": None, "since": None, "계약": None},
    {"tenure": -3, "monthly": 1e-7, "active": True, "since": "1999-12-31T23:59:59+00:00", "계약": '월별, "새"'},
)
NAMES = [column.name for column in COLUMNS]


def weighted_sum(task):
    """Return a graph over all five columns: a weighted sum, missing counting as 0, and for classes its sigmoid."""
    node = helper.make_node
    weights = {"tenure": -0.04, "monthly": 0.03, "active": 0.7, "since": 1e-10}
    constants = {"zero": np.zeros((1, 1)), "kind": np.array([["월별"]], dtype=object), "one": np.ones((1, 1), np.float32)}
    nodes = [node("Equal", ["계약", "kind"], ["is"]), node("Cast", ["is"], ["sum0"], to=TensorProto.DOUBLE)]
    for i, (name, weight) in enumerate(weights.items()):
        constants[f"w{i}"] = np.array([[weight]])
        nodes += [
            node("IsNaN", [name], [f"no{i}"]),
            node("Where", [f"no{i}", "zero", name], [f"filled{i}"]),
            node("Mul", [f"filled{i}", f"w{i}"], [f"part{i}"]),
            node("Add", [f"sum{i}", f"part{i}"], [f"sum{i + 1}"]),
        ]
    nodes.append(node("Cast", ["sum4"], ["prediction"], to=TensorProto.FLOAT))
    if task == "binary":
        nodes += [
            node("Sigmoid", ["prediction"], ["p"]),
            node("Sub", ["one", "p"], ["q"]),
            node("Concat", ["q", "p"], ["probabilities"], axis=1),
        ]
    name, width = ("probabilities", 2) if task == "binary" else ("prediction", 1)
    types = {c.name: TensorProto.STRING if c.type is ColumnType.TEXT else TensorProto.DOUBLE for c in COLUMNS}
    graph = helper.make_graph(
        nodes,
        "sum",
        [helper.make_tensor_value_info(column, kind, [None, 1]) for column, kind in types.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, width])],
        [numpy_helper.from_array(value, key) for key, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9).SerializeToString(), name


@pytest.fixture(scope="module", params=["binary", "regression"])
def both(request, tmp_path_factory):
    """The same bundle twice: our runtime over it, and MLflow's model of it."""
    import onnxruntime

    home = os.environ.get("MULLE_HOME")
    os.environ["MULLE_HOME"] = str(tmp_path_factory.mktemp("key"))
    root = tmp_path_factory.mktemp("bundle")
    data, output = weighted_sum(request.param)
    onnx.checker.check_model(data)
    inputs = tuple(GraphInput(c.name, "string" if c.type is ColumnType.TEXT else "double", (c.name,)) for c in COLUMNS)
    info = Graph(inputs=inputs, output=output)
    golden = onnxruntime.InferenceSession(data).run([output], feeds(encode_rows(ROWS, COLUMNS), info))[0]
    content = BundleContent(
        model_name="sum",
        task=request.param,
        graph=data,
        graph_info=info,
        columns=COLUMNS,
        baseline=b"{}",
        golden=Golden(rows=ROWS, outputs=tuple(tuple(row) for row in golden.tolist())).to_bytes(),
        classes=("No", "예") if request.param == "binary" else (),
        positive="예" if request.param == "binary" else None,
    )
    sealed = seal_bundle(root / "bundles", content, attestations={}, private_key=private_key())
    if home is None:
        del os.environ["MULLE_HOME"]
    else:
        os.environ["MULLE_HOME"] = home
    model = mlflow.pyfunc.load_model(str(write_mlflow_model(sealed.path, root / "mlflow")))
    from mulle.formats.bundle import verify_bundle

    return OnnxRuntime(sealed.path, verify_bundle(sealed.path)), model


def ours(runtime, body, content_type="application/json"):
    asked = parse_invocations(body, content_type, runtime.manifest, max_rows=100)
    return render_invocations(runtime.manifest, runtime.run(asked.arrays))


def theirs(model, body, content_type="application/json"):
    answer = scoring_server.invocations(body, content_type, model, model.metadata.get_input_schema())
    assert 200 == answer.status
    return answer.response


def split(rows, **more):
    return {"dataframe_split": {"columns": NAMES, "data": [[row[name] for name in NAMES] for row in rows], **more}}


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(split(ROWS), id="split"),
        pytest.param(split(ROWS, index=[9, 8, 7, 6]), id="split with an index"),
        pytest.param({"dataframe_records": list(ROWS)}, id="records"),
        pytest.param({"dataframe_records": [{k: v for k, v in row.items() if v is not None} for row in ROWS]}, id="records with gaps"),
        pytest.param({"dataframe_records": [row | {"stranger": i} for i, row in enumerate(ROWS)]}, id="records with a stranger"),
        pytest.param({"instances": [ROWS[0], ROWS[1], ROWS[3]]}, id="instances"),
        pytest.param({"inputs": {name: [row[name] for row in ROWS] for name in NAMES}}, id="inputs by column"),
        pytest.param({"inputs": list(ROWS)}, id="inputs as rows"),
        pytest.param(split(ROWS) | {"params": {"threshold": 0.3}}, id="params nobody declared"),
        pytest.param(split(ROWS) | {"params": 3, "client_request_id": "x"}, id="params that are none, and another key"),
    ],
)
def test_mlflow_would_have_answered_the_same(both, body):
    """Every form MLflow takes; the numbers are equal, not near."""
    runtime, model = both
    data = json.dumps(body, ensure_ascii=False).encode()

    assert json.loads(theirs(model, data)) == json.loads(ours(runtime, data))


def test_nan_is_what_mlflows_client_writes(both):
    """Python's encoder writes NaN, and both read it as missing."""
    runtime, model = both
    data = json.dumps(split([row | {"tenure": float("nan")} for row in ROWS])).encode()

    assert b"NaN" in data
    assert json.loads(theirs(model, data)) == json.loads(ours(runtime, data))


def test_csv_is_read_as_pandas_reads_it(both):
    """MLflow cannot parse CSV for a signature with columns of any type; the table pandas reads gets the same answers from its model."""
    import pandas as pd

    runtime, model = both
    rows = [{name: row[name] for name in ("monthly", "tenure", "since", "계약")} for row in ROWS]
    data = pd.DataFrame(rows).to_csv(index=False)
    table = model.predict(pd.read_csv(io.StringIO(data))).to_dict(orient="records")
    expected = [{name: float(value) for name, value in row.items()} for row in table]

    assert expected == json.loads(ours(runtime, data.encode(), "text/csv"))["predictions"]


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        pytest.param(b"{", "application/json", id="not JSON"),
        pytest.param(b"[[1]]", "application/json", id="a list"),
        pytest.param(b'{"rows": []}', "application/json", id="no form"),
        pytest.param(b'{"instances": [], "inputs": []}', "application/json", id="two forms"),
        pytest.param(b'{"dataframe_split": {"columns": ["tenure"], "data": [[1]]}}', "application/json", id="a column is missing"),
        pytest.param(b'{"dataframe_records": {"monthly": 1}}', "application/json", id="records that are an object"),
        pytest.param(b'{"inputs": {"monthly": [1, 2], "tenure": [1]}}', "application/json", id="columns of two lengths"),
        pytest.param(b'{"dataframe_records": [{"monthly": 1, "since": "soon"}]}', "application/json", id="a word for a date"),
        pytest.param(b'{"instances": [[1]]}', "application/json; format=pandas-split", id="the parameter of MLflow 1"),
        pytest.param(b"monthly", "text/plain", id="text"),
    ],
)
def test_what_mlflow_refuses_is_refused(both, body, content_type):
    """There is no body only MLflow finds wrong in a kind of its own; by position we are more generous."""
    from mulle.core.errors import SpecError

    runtime, model = both
    try:
        refused = scoring_server.invocations(body, content_type, model, model.metadata.get_input_schema()).status >= 400
    except Exception:  # noqa: BLE001 - whatever it raises, its server answers 4xx
        refused = True

    assert refused
    with pytest.raises(SpecError):
        ours(runtime, body, content_type)
