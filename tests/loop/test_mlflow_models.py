"""A registered version in MLflow: loads with plain mlflow, serves with `mlflow models serve`, and is kept as we say."""

import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mulle.bundle.seal import BundleContent, seal_bundle
from mulle.core.schema import ColumnType
from mulle.formats.bundle import ColumnInfo, Graph, GraphInput
from mulle.formats.events import verify_chain
from mulle.formats.golden import Golden
from mulle.loop.outbox import PROJECTION, Outbox
from mulle.loop.paths import StatePaths
from mulle.loop.release import load_state, promote, register_version, resolve_bundle, rollback
from mulle.registry.decide import Target, Who
from mulle.registry.mlflow_projection import MlflowProjection
from mulle.registry.projection import version_tags
from mulle.registry.state_memory import MemoryStateStore
from mulle.registry.versions import VersionRecord

KEY = bytes(range(32))
TARGET = Target("이탈", "local", "이탈")
WHO = Who("minji", 1_000)

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import mlflow.pyfunc
    from mlflow.tracking import MlflowClient

# MLflow and its dependencies warn about themselves; our own modules are held to the strict rule elsewhere.
pytestmark = pytest.mark.filterwarnings("ignore")


def graph_bytes(bias: float = 0.0) -> bytes:
    """Return a graph: p(Yes) = 0.25 + bias, plus 0.5 where the plan is '월간', plus tenure / 100."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    nodes = [
        helper.make_node("Equal", ["요금제", "monthly"], ["is_monthly"]),
        helper.make_node("Cast", ["is_monthly"], ["plan"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["plan", "half"], ["a"]),
        helper.make_node("Cast", ["tenure"], ["t32"], to=TensorProto.FLOAT),
        helper.make_node("IsNaN", ["t32"], ["gap"]),
        helper.make_node("Where", ["gap", "zero", "t32"], ["t"]),
        helper.make_node("Mul", ["t", "hundredth"], ["b"]),
        helper.make_node("Add", ["a", "b"], ["c"]),
        helper.make_node("Add", ["c", "base"], ["yes"]),
        helper.make_node("Sub", ["one", "yes"], ["no"]),
        helper.make_node("Concat", ["no", "yes"], ["probabilities"], axis=1),
    ]
    values = {"half": 0.5, "zero": 0.0, "hundredth": 0.01, "base": 0.25 + bias, "one": 1.0}
    constants = [numpy_helper.from_array(np.array([[v]], dtype=np.float32), name) for name, v in values.items()]
    constants.append(helper.make_tensor("monthly", TensorProto.STRING, [1, 1], ["월간".encode()]))
    graph = helper.make_graph(
        nodes,
        "tiny",
        [
            helper.make_tensor_value_info("tenure", TensorProto.DOUBLE, [None, 1]),
            helper.make_tensor_value_info("요금제", TensorProto.STRING, [None, 1]),
        ],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, [None, 2])],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def seal(root: Path, bias: float = 0.0):
    rows = ({"tenure": 10, "요금제": "월간"}, {"tenure": None, "요금제": None})
    content = BundleContent(
        model_name="이탈",
        task="binary",
        graph=graph_bytes(bias),
        graph_info=Graph(
            inputs=(GraphInput("tenure", "double", ("tenure",)), GraphInput("요금제", "string", ("요금제",))), output="probabilities"
        ),
        columns=[ColumnInfo("tenure", ColumnType.NUMBER), ColumnInfo("요금제", ColumnType.TEXT)],
        baseline=b"{}",
        golden=Golden(rows=rows, outputs=((0.15 - bias, 0.85 + bias), (0.75 - bias, 0.25 + bias))).to_bytes(),
        classes=["아니요", "예"],
        positive="예",
    )
    return seal_bundle(root, content, attestations={}, private_key=KEY)


class Wheel:
    """A project's registry with a real MLflow on SQLite beside it."""

    def __init__(self, root: Path) -> None:
        self.paths = StatePaths(root / ".mulle").ensure()
        self.paths.mlflow_artifacts.mkdir(parents=True)
        self.uri = f"sqlite:///{self.paths.mlflow_db}"
        self.store = MemoryStateStore()
        self.outbox = Outbox(
            store=self.store,
            paths=self.paths,
            environment="local",
            private_key=KEY,
            projection=self.projection,
            now_ns=lambda: 5_000,
        )

    def projection(self) -> MlflowProjection:
        from mulle.bundle.mlflow_model import write_mlflow_model

        return MlflowProjection(
            self.uri,
            str(self.paths.mlflow_artifacts),
            lambda version, out: write_mlflow_model(resolve_bundle(self.paths.root, version), out),
        )

    def register(self, bias: float = 0.0, **fields):
        sealed = seal(self.paths.bundles, bias)
        record = VersionRecord(
            model="이탈", number=0, bundle_digest=sealed.digest, bundle_path=f"bundles/{sealed.digest}", run_id=f"r{bias}", **fields
        )
        return register_version(self.store, record, TARGET, WHO)

    @property
    def client(self) -> MlflowClient:
        return MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)

    def aliases(self) -> dict[str, int]:
        return {name: int(number) for name, number in dict(self.client.get_registered_model("이탈").aliases).items()}

    def kinds(self) -> list[str]:
        return [event.kind for event in self.store.events()]


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """Return a folder with one registered and projected version; tests work on copies of it."""
    root = tmp_path_factory.mktemp("template")
    wheel = Wheel(root)
    wheel.register(dataset="고객", dataset_digest="d" * 64, git_commit="c" * 40)
    report = wheel.outbox.drain()
    assert [] == report.warnings
    return wheel


@pytest.fixture
def wheel(template, tmp_path):
    """Return a wheel of its own: a fresh log on a copy of the template's migrated database."""
    shutil.copytree(template.paths.mlflow, tmp_path / "mlflow-template")
    fresh = Wheel(tmp_path)
    shutil.copyfile(template.paths.mlflow_db, fresh.paths.mlflow_db)
    client = fresh.client
    client.delete_registered_model("이탈")
    client.create_experiment("이탈 2", artifact_location=str(fresh.paths.mlflow_artifacts))
    client.rename_experiment(client.get_experiment_by_name("이탈").experiment_id, "옛")
    return fresh


def test_the_champion_loads_with_plain_mlflow_and_answers_as_the_graph_does(template):
    """`models:/NAME@champion` predicts from a table by column names: every class by its name, gaps allowed."""
    mlflow.set_tracking_uri(template.uri)
    model = mlflow.pyfunc.load_model("models:/이탈@champion")
    table = pd.DataFrame({"요금제": ["월간", None, "연간"], "extra": [1, 2, 3], "tenure": [10, 20, 0]}, index=[7, 8, 9])

    answer = model.predict(table)

    assert ["아니요", "예"] == list(answer.columns)
    assert [7, 8, 9] == list(answer.index)
    np.testing.assert_allclose([0.85, 0.45, 0.25], answer["예"], atol=1e-6)
    np.testing.assert_allclose([1, 1, 1], answer.sum(axis=1), atol=1e-6)


def test_the_model_says_where_it_comes_from_and_nothing_about_this_machine(template):
    """Tags lead to run, data, commit and bundle; the model folder holds code and JSON, no pickle, no path of ours."""
    version = next(iter(template.client.search_model_versions("name='이탈'")))
    folder = Path(version.source)
    text = (folder / "MLmodel").read_text(encoding="utf-8")

    assert version_tags(load_state(template.store).require_version("이탈", 1)) == version.tags
    assert {"champion": 1} == template.aliases()
    assert str(template.paths.root) not in text
    assert "site-packages" not in text
    assert "input_example.json" in {path.name for path in folder.iterdir()}
    assert [] == [path.name for path in folder.rglob("*") if path.suffix in {".pkl", ".pickle", ".cloudpickle"}]


@pytest.mark.parametrize(
    ("table", "words"),
    [
        pytest.param({"tenure": ["열"], "요금제": ["월간"]}, "tenure", id="words where a number belongs"),
        pytest.param({"tenure": [1], "요금제": [3]}, "요금제", id="a number where text belongs"),
    ],
)
def test_a_value_of_the_wrong_kind_is_named(template, table, words):
    """The message names the column, so that its sender can find it."""
    mlflow.set_tracking_uri(template.uri)
    model = mlflow.pyfunc.load_model("models:/이탈@champion")

    with pytest.raises(Exception, match=words):
        model.predict(pd.DataFrame(table))


def test_a_changed_graph_in_the_model_folder_is_refused(template, tmp_path):
    """The loader compares the graph with the manifest before onnxruntime sees it."""
    version = next(iter(template.client.search_model_versions("name='이탈'")))
    copy = tmp_path / "model"
    shutil.copytree(version.source, copy)
    graph = next(copy.rglob("model.onnx"))
    graph.write_bytes(graph.read_bytes()[:-1] + b"\x00")

    with pytest.raises(ValueError, match="changed after the bundle was sealed"):
        mlflow.pyfunc.load_model(str(copy))


def test_aliases_follow_promotion_and_rollback(wheel):
    """Champion and challenger in MLflow are those of the log after every drain, and a second drain changes nothing."""
    wheel.register(0.0)
    wheel.register(0.1)
    wheel.outbox.drain()
    first = wheel.aliases()
    promote(wheel.store, 2, TARGET, WHO)
    wheel.outbox.drain()
    second = wheel.aliases()
    rollback(wheel.store, TARGET, WHO)
    wheel.outbox.drain()
    again = wheel.outbox.drain(reconcile=True)

    assert {"champion": 1, "challenger": 2} == first
    assert {"champion": 2} == second
    assert {"champion": 1} == wheel.aliases()
    assert ([], [], []) == (again.projected, again.drifts, again.warnings)


def test_an_edit_made_in_mlflow_is_reported_undone_and_not_obeyed(wheel):
    """Moving an alias, editing a tag and deleting a version there are events in our log, and then gone."""
    wheel.register(0.0, git_commit="c" * 40)
    wheel.register(0.1)
    wheel.outbox.drain()
    wheel.client.set_registered_model_alias("이탈", "champion", "2")
    wheel.client.set_model_version_tag("이탈", "1", "mulle.commit", "f" * 40)

    before = load_state(wheel.store).deployments
    report = wheel.outbox.drain(reconcile=True)
    quiet = wheel.outbox.drain(reconcile=True)

    assert before == load_state(wheel.store).deployments
    assert {"champion": 1, "challenger": 2} == wheel.aliases()
    assert 2 == len(report.drifts)
    assert "tag mulle.commit of version 1" in report.drifts[0]
    assert "alias champion" in report.drifts[1]
    assert ["projection-drift", "projection-repaired"] == wheel.kinds()[-2:]
    assert [] == quiet.drifts
    assert wheel.store.head() == verify_chain(wheel.store.events())


def test_a_version_deleted_in_mlflow_comes_back(wheel):
    """The version is published again under another MLflow number, and the alias finds it by its tag."""
    wheel.register(0.0)
    wheel.outbox.drain()
    wheel.client.delete_model_version("이탈", "1")

    report = wheel.outbox.drain(reconcile=True)
    found = list(wheel.client.search_model_versions("name='이탈'"))

    assert report.drifts
    assert ["1"] == [one.tags["mulle.version"] for one in found]
    assert {"champion": int(found[0].version)} == wheel.aliases()


def test_an_mlflow_that_is_away_loses_nothing_and_blocks_nothing(wheel):
    """The spec is written, the warning says what waits, and the next drain carries it out."""
    away = Outbox(
        store=wheel.store,
        paths=wheel.paths,
        environment="local",
        private_key=KEY,
        projection=lambda: MlflowProjection("sqlite:////proc/nowhere/mlflow.db", "unused", lambda version, out: None),
        now_ns=lambda: 5_000,
    )
    wheel.register(0.0)

    report = away.drain()
    waiting = wheel.store.cursor(PROJECTION)
    later = wheel.outbox.drain()

    assert ["이탈"] == report.specs
    assert 1 == len(report.warnings)
    assert 0 == waiting
    assert [] == later.warnings
    assert {"champion": 1} == wheel.aliases()


def test_a_damaged_bundle_is_not_published(wheel):
    """What fails its digest does not reach MLflow; the warning names the file."""
    registered = wheel.register(0.0)
    graph = resolve_bundle(wheel.paths.root, registered.version) / "model.onnx"
    graph.chmod(0o644)
    graph.write_bytes(b"x" + graph.read_bytes()[1:])

    report = wheel.outbox.drain()

    assert "model.onnx" in report.warnings[0]


@pytest.mark.slow
def test_mlflow_models_serve_answers_with_all_probabilities(template):
    """`mlflow models serve --env-manager local` on the alias answers /invocations, as MLflow's own server does."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", "models:/이탈@champion", "--env-manager", "local", "-p", str(port)]
    environment = {**os.environ, "MLFLOW_TRACKING_URI": template.uri, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    server = subprocess.Popen(command, env=environment, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        body = {"dataframe_split": {"columns": ["tenure", "요금제"], "data": [[10, "월간"], [None, None]]}}
        answer = _post(port, body, deadline_s=90)
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.communicate(timeout=20)

    assert [["아니요", "예"]] * 2 == [list(row) for row in answer["predictions"]]
    np.testing.assert_allclose([0.85, 0.25], [row["예"] for row in answer["predictions"]], atol=1e-6)


def _post(port: int, body: object, *, deadline_s: float) -> dict:
    end = time.monotonic() + deadline_s
    while True:
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
            connection.request("POST", "/invocations", json.dumps(body).encode(), {"Content-Type": "application/json"})
            return json.loads(connection.getresponse().read())
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.3)
