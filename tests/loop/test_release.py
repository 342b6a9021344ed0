"""Registering, promoting, rolling back, verifying and rebuilding, with sealed bundles, a signed spec and a real log."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from mulle.bundle.seal import BundleContent, seal_bundle
from mulle.core.errors import CheckError, ConflictError, MulleError, SpecError
from mulle.core.schema import ColumnType
from mulle.formats.bundle import ColumnInfo, Graph, GraphInput
from mulle.formats.deployment import read_signed_spec
from mulle.formats.events import EventDraft, verify_chain
from mulle.formats.golden import Golden
from mulle.formats.signing import public_key, require_signature
from mulle.loop.outbox import Outbox
from mulle.loop.paths import StatePaths
from mulle.loop.release import (
    compare_versions,
    gate_outcomes,
    load_state,
    promote,
    rebuild_projections,
    register_version,
    require_servable,
    rollback,
    verify_version,
)
from mulle.registry.decide import Target, Who
from mulle.registry.projection import Drift
from mulle.registry.projection_file import FileProjection
from mulle.registry.state_sqlite import SqliteStateStore
from mulle.registry.versions import VersionRecord

KEY = bytes(range(32))
TRUSTED = [public_key(KEY)]
TARGET = Target("이탈", "local", "이탈")


def who(reason: str = "") -> Who:
    return Who("민지", 1_000, reason)


class Project:
    """A project folder with an event log and a projection into a file."""

    def __init__(self, root) -> None:
        self.paths = StatePaths(root / ".mulle").ensure()
        self.store = SqliteStateStore(self.paths.state_db)
        self.projection_file = self.paths.root / "projection.json"
        self.outbox = Outbox(
            store=self.store,
            paths=self.paths,
            environment="local",
            private_key=KEY,
            projection=lambda: FileProjection(self.projection_file),
            now_ns=lambda: 2_000,
        )

    def record(self, text: str, **fields) -> VersionRecord:
        content = BundleContent(
            model_name="이탈",
            task="binary",
            graph=text.encode(),
            graph_info=Graph(inputs=(GraphInput("나이", "double", ("나이",)),), output="probabilities"),
            columns=[ColumnInfo("나이", ColumnType.NUMBER)],
            baseline=b"{}",
            golden=Golden(rows=({"나이": 3.0},), outputs=((0.25, 0.75),)).to_bytes(),
            classes=["No", "Yes"],
        )
        sealed = seal_bundle(self.paths.bundles, content, attestations={}, private_key=KEY)
        return VersionRecord(
            model="이탈", number=0, bundle_digest=sealed.digest, bundle_path=f"bundles/{sealed.digest}", run_id=f"run-{text}", **fields
        )

    def register(self, text: str, **fields):
        return register_version(self.store, self.record(text, **fields), TARGET, who())

    def verify(self, version: VersionRecord):
        return require_servable(self.paths.root, version, TRUSTED)

    def spec(self):
        signed = read_signed_spec(self.paths.spec("이탈"))
        require_signature(signed.spec.to_bytes(), signed.signature, trusted=TRUSTED, what="the spec", where="here")
        return signed.spec

    def shown(self) -> dict:
        return json.loads(self.projection_file.read_text(encoding="utf-8"))["이탈"]


@pytest.fixture
def project(tmp_path):
    """Return an empty project."""
    return Project(tmp_path)


def test_a_champion_is_served_by_a_signed_spec_with_a_rising_generation(project):
    """Register, register, promote, roll back: the spec on disk names the right bundle each time, signed."""
    first = project.register("one")
    project.outbox.drain()
    specs = [project.spec()]
    project.register("two")
    project.outbox.drain()
    specs.append(project.spec())
    promote(project.store, 2, TARGET, who(), verify=project.verify)
    project.outbox.drain()
    specs.append(project.spec())
    rollback(project.store, TARGET, who(), verify=project.verify)
    project.outbox.drain()
    specs.append(project.spec())

    assert ("champion", True) == (first.alias, first.created)
    assert [1, 1, 2, 3] == [spec.generation for spec in specs]
    assert [1, 1, 2, 1] == [spec.revisions[0].model_version for spec in specs]
    assert [{1: 100}, {1: 100}, {2: 100}, {1: 100}] == [spec.traffic.weights for spec in specs]
    assert (project.paths.root / specs[0].revisions[0].bundle_path / "bundle.json").is_file()
    assert {"champion": 1} == project.shown()["aliases"]


def test_draining_again_writes_nothing(project):
    """What is there already is left alone: same bytes, same file."""
    project.register("one")
    project.outbox.drain()
    before = project.paths.spec("이탈").stat().st_mtime_ns
    report = project.outbox.drain(reconcile=True)

    assert {"specs": [], "projected": [], "drifts": [], "warnings": []} == report.to_dict()
    assert before == project.paths.spec("이탈").stat().st_mtime_ns


@pytest.mark.parametrize(
    "harm",
    [
        pytest.param(lambda path: path.unlink(), id="removed"),
        pytest.param(lambda path: path.write_bytes(path.read_bytes()[:40]), id="cut off"),
        pytest.param(lambda path: path.write_bytes(path.read_bytes().replace(b'"generation":1', b'"generation":9')), id="edited by hand"),
    ],
)
def test_a_harmed_spec_is_written_again(project, harm):
    """A spec that is not whole and ours is not believed, whatever generation it claims."""
    project.register("one")
    project.outbox.drain()
    good = project.spec()
    harm(project.paths.spec("이탈"))
    project.outbox.drain()

    assert good == project.spec()


def test_a_state_database_put_back_to_an_older_one_does_not_move_traffic_backwards(project, tmp_path):
    """A spec of a later generation stays, with a warning, until somebody says that the log wins."""
    project.register("one")
    project.register("two")
    promote(project.store, 2, TARGET, who())
    project.outbox.drain()
    project.store.close()
    project.paths.state_db.unlink()
    older = Project(tmp_path)
    older.register("one")
    report = older.outbox.drain()
    kept = older.spec().generation
    again = older.outbox.drain()
    older.outbox.rebuild()

    assert 1 == len(report.warnings)
    assert "mulle events rebuild" in report.warnings[0]
    assert 2 == kept
    assert report.warnings == again.warnings
    assert 1 == older.spec().generation


def test_a_tampered_bundle_is_neither_promoted_nor_rolled_back_to(project):
    """The error names the file; nothing is recorded."""
    second = project.register("one") and project.register("two")
    graph = project.paths.bundles / second.version.bundle_digest / "model.onnx"
    graph.write_bytes(b"TWO")
    head = project.store.head()

    with pytest.raises(CheckError, match=r"model\.onnx"):
        promote(project.store, 2, TARGET, who(), verify=project.verify)

    assert head == project.store.head()


@pytest.mark.parametrize(
    ("name", "code"),
    [
        pytest.param("model.onnx", "bundle-tampered", id="the graph"),
        pytest.param("golden.json", "bundle-tampered", id="the golden requests"),
        pytest.param("bundle.json", "format-unreadable", id="the manifest"),
        pytest.param("attestations/signature.json", "signature-missing", id="the signature"),
    ],
)
def test_verify_names_the_file_that_was_changed(project, name, code):
    """One byte more in any file is found, and the file is in the report."""
    version = project.register("one").version
    good = verify_version(project.paths.root, version, TRUSTED)
    path = project.paths.bundles / version.bundle_digest / name
    path.write_bytes(path.read_bytes() + b"x")
    bad = verify_version(project.paths.root, version, TRUSTED)

    assert good.ok
    assert TRUSTED[0] == good.signed_by
    assert not bad.ok
    assert bad.problem is not None
    assert code == bad.problem.code
    assert name.split("/")[-1] in str(bad.problem)


def test_a_bundle_signed_by_a_stranger_does_not_verify(project):
    """Whole but not trusted is not enough."""
    version = project.register("one").version
    found = verify_version(project.paths.root, version, [public_key(bytes(32))])

    assert found.problem is not None
    assert "signature-untrusted" == found.problem.code


@pytest.mark.parametrize("path", ["../../etc", "bundles/missing"])
def test_a_bundle_path_that_leads_elsewhere_is_refused(project, path):
    """A recorded path stays inside the state folder and must be there."""
    record = VersionRecord(model="이탈", number=1, bundle_digest="a" * 64, bundle_path=path)

    found = verify_version(project.paths.root, record, TRUSTED)

    assert found.problem is not None
    assert found.problem.code in {"version-path", "bundle-missing"}


def test_somebody_elses_move_in_between_is_a_conflict(project):
    """Two promotions decided on the same state: the later one is told, and not recorded."""
    for text in ("one", "two", "three"):
        project.register(text)

    with pytest.raises(ConflictError) as caught:
        promote(project.store, 2, TARGET, who(), verify=lambda _: promote(project.store, 3, TARGET, who()))

    deployment = load_state(project.store).require_deployment("이탈", "local")
    assert "release-conflict" == caught.value.code
    assert (3, 2) == (deployment.champion, deployment.generation)


def test_an_unrelated_event_in_between_is_no_conflict(project):
    """Only what the decision stood on matters."""
    project.register("one")
    project.register("two")
    noise = EventDraft(time_ns=1, actor="mulle", kind="run-finished", subject="run/x")
    once = iter([lambda: project.store.append([noise], expected_seq=None)])

    move = promote(project.store, 2, TARGET, who(), verify=lambda _: next(once, lambda: None)())

    assert (1, 2, True) == (move.before, move.after, move.changed)


def test_many_at_once_never_mix(project):
    """Eight people promote different versions together: every recorded move starts where the one before it ended."""
    with ThreadPoolExecutor(4) as pool:
        numbers = [r.version.number for r in pool.map(lambda i: project.register(f"v{i}"), range(8))]

    def move(number: int) -> str:
        try:
            return "moved" if promote(project.store, number, TARGET, who()).changed else "same"
        except ConflictError:
            return "conflict"

    with ThreadPoolExecutor(8) as pool:
        outcomes = list(pool.map(move, range(1, 9)))

    deployment = load_state(project.store).require_deployment("이탈", "local")
    history = deployment.history
    assert list(range(1, 9)) == sorted(numbers)
    assert {"moved", "same", "conflict"} >= set(outcomes)
    assert outcomes.count("moved") == len(history) - 1
    assert [change.before for change in history[1:]] == [change.after for change in history[:-1]]
    assert project.store.head() == verify_chain(project.store.events())


def test_everything_but_the_log_can_be_thrown_away(project):
    """Specs, tables and the projection are the same after they were removed and rebuilt."""
    project.register("one", dataset_digest="d" * 64)
    project.register("two")
    promote(project.store, 2, TARGET, who())
    project.outbox.drain()
    before = (project.spec(), project.store.tables(), project.shown())
    project.paths.spec("이탈").unlink()
    project.projection_file.unlink()
    project.store.drop_tables()
    report = rebuild_projections(project.store, project.outbox)

    assert before == (project.spec(), project.store.tables(), project.shown())
    assert [] == report.warnings
    assert 2 == len(before[1]["versions"])


def test_nothing_is_rebuilt_from_a_log_that_was_tampered_with(project):
    """A broken chain stops before anything is removed."""
    import sqlite3

    project.register("one")
    project.outbox.drain()
    spec = project.spec()
    with sqlite3.connect(project.paths.state_db) as connection:
        connection.execute("DROP TRIGGER mulle_events_no_UPDATE")
        connection.execute("UPDATE mulle_events SET line = replace(CAST(line AS TEXT), '민지', '영희') WHERE seq = 1")
    connection.close()

    with pytest.raises(CheckError, match="event 1 was changed"):
        rebuild_projections(project.store, project.outbox)

    assert spec == project.spec()


def test_an_edit_in_the_projection_is_reported_once_and_undone(project):
    """The log says what was found and that it was put back; nobody's champion moved."""
    project.register("one")
    project.register("two")
    project.outbox.drain()
    document = json.loads(project.projection_file.read_text(encoding="utf-8"))
    document["이탈"]["aliases"]["champion"] = 2
    project.projection_file.write_text(json.dumps(document), encoding="utf-8")

    report = project.outbox.drain(reconcile=True)
    events = list(project.store.events())[-2:]

    assert ["projection-drift", "projection-repaired"] == [event.kind for event in events]
    assert [Drift("alias champion", "version 1", "version 2").to_dict()] == events[0].after
    assert 1 == len(report.drifts)
    assert {"champion": 1, "challenger": 2} == project.shown()["aliases"]
    assert [] == project.outbox.drain(reconcile=True).drifts


def test_a_projection_that_fails_holds_up_nothing_and_loses_nothing(project):
    """The spec is written; what the projection was to be told waits for it."""
    project.projection_file.write_text("{", encoding="utf-8")
    project.register("one")
    report = project.outbox.drain()
    project.projection_file.unlink()
    later = project.outbox.drain()

    assert ["이탈"] == report.specs
    assert 1 == len(report.warnings)
    assert ["이탈 version 1", "이탈 aliases"] == later.projected


def test_two_versions_stand_side_by_side(project):
    """Metrics come with their difference and its direction, gates with both outcomes, parameters with both values."""
    gates = {"format": "mulle.verdict", "results": [{"name": "roc_auc.min", "outcome": "pass", "reason": "0.84 >= 0.80"}]}
    project.register("one", metrics={"roc_auc": 0.8, "log_loss": 0.5}, parameters={"seed": 0}, verdict=gates)
    project.register("two", metrics={"roc_auc": 0.84, "log_loss": 0.6}, parameters={"seed": 1, "depth": 3})
    state = load_state(project.store)
    rows = {row.name: row for row in compare_versions(state, "이탈", 1, 2)}

    assert "+0.04 (better)" == rows["roc_auc"].note
    assert "+0.1 (worse)" == rows["log_loss"].note
    assert ("pass", "") == (rows["roc_auc.min"].a, rows["roc_auc.min"].b)
    assert (None, 3) == (rows["depth"].a, rows["depth"].b)
    assert {"roc_auc.min": ("pass", "0.84 >= 0.80")} == gate_outcomes(state.require_version("이탈", 1))


def test_what_is_no_digest_is_not_registered(project):
    """A version must name a bundle."""
    record = VersionRecord(model="이탈", number=0, bundle_digest="../x", bundle_path="bundles/x")

    with pytest.raises(SpecError) as caught:
        register_version(project.store, record, TARGET, who())

    assert "version-digest" == caught.value.code
    assert isinstance(caught.value, MulleError)
