"""The outbox killed before every one of its steps: the next drain ends where an undisturbed one would have ended."""

import json
import os
import shutil
from pathlib import Path

import pytest

from mulle.formats.deployment import read_signed_spec
from mulle.formats.events import verify_chain
from mulle.loop.outbox import CURSORS, DrainReport, Outbox
from mulle.loop.paths import StatePaths
from mulle.loop.release import load_state, promote, register_version
from mulle.registry.decide import Target, Who
from mulle.registry.projection_file import FileProjection
from mulle.registry.state_sqlite import SqliteStateStore
from mulle.registry.versions import VersionRecord

pytestmark = pytest.mark.chaos

KEY = bytes(range(32))
TARGETS = (Target("이탈", "local", "이탈"), Target("서울", "local", "이탈"))


class Killer:
    """Ends the process before its n-th step, as `kill -9` would: no handler, no flush, no unlock."""

    def __init__(self, n: int) -> None:
        self.left = n

    def __call__(self, name: str) -> None:
        if self.left == 0:
            os._exit(9)
        self.left -= 1


class Steps(list):
    """Writes down the steps instead."""

    def __call__(self, name: str) -> None:
        self.append(name)


def outbox(root: Path, on_step) -> Outbox:
    paths = StatePaths(root)
    return Outbox(
        store=SqliteStateStore(paths.state_db),
        paths=paths,
        environment="local",
        private_key=KEY,
        projection=lambda: FileProjection(root / "projection.json"),
        now_ns=lambda: 9,
        on_step=on_step,
    )


def prepare(root: Path) -> None:
    """Two versions, two deployments, one promotion, and a projection somebody edited."""
    StatePaths(root).ensure()
    store = SqliteStateStore(StatePaths(root).state_db)
    who = Who("민지", 1)
    for digit in "ab":
        for target in TARGETS:
            record = VersionRecord(model="이탈", number=0, bundle_digest=digit * 64, bundle_path=f"bundles/{digit * 64}")
            register_version(store, record, target, who)
    outbox(root, Steps()).drain()
    promote(store, 2, TARGETS[0], who)
    document = json.loads((root / "projection.json").read_text(encoding="utf-8"))
    document["이탈"]["aliases"]["champion"] = 2
    del document["이탈"]["aliases"]["challenger"]
    (root / "projection.json").write_text(json.dumps(document), encoding="utf-8")


def result(root: Path) -> dict:
    """Return everything the outside world can see, and the cursors' distance from the head as it should be."""
    paths = StatePaths(root)
    store = SqliteStateStore(paths.state_db)
    verify_chain(store.events())
    return {
        "specs": {target.deployment: read_signed_spec(paths.spec(target.deployment)) for target in TARGETS},
        "tables": store.tables(),
        "projection": json.loads((root / "projection.json").read_text(encoding="utf-8")),
        "done": [store.cursor(name) > 0 for name in CURSORS],
        "open drifts": dict(load_state(store).open_drifts),
        "drifts": [event.after for event in store.events() if event.kind == "projection-drift"],
        "repairs": sum(event.kind == "projection-repaired" for event in store.events()),
        "leftovers": sorted(path.name for path in paths.serving.iterdir() if path.suffix != ".json"),
    }


def drain(root: Path, verb: str, on_step) -> DrainReport:
    box = outbox(root, on_step)
    return box.rebuild() if verb == "rebuild" else box.drain(reconcile=True)


def drain_in_child(root: Path, verb: str, kill_before: int) -> int:
    child = os.fork()
    if child == 0:
        drain(root, verb, Killer(kill_before))
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("verb", ["drain", "rebuild"])
def test_a_kill_before_any_step_changes_nothing_in_the_end(tmp_path, verb):
    """Every step is tried once as the last one before the kill; then one ordinary drain puts everything right."""
    prepare(tmp_path / "before")
    shutil.copytree(tmp_path / "before", tmp_path / "calm")
    steps = Steps()
    drain(tmp_path / "calm", verb, steps)
    expected = result(tmp_path / "calm")
    outcomes = []
    for n in range(len(steps) + 1):
        root = tmp_path / f"killed-{n}"
        shutil.copytree(tmp_path / "before", root)
        code = drain_in_child(root, verb, n)
        drain(root, "drain", Steps())
        outcomes.append((code, result(root)))

    assert len(steps) >= 8
    assert [(9, expected)] * len(steps) + [(0, expected)] == outcomes


def test_a_drain_without_work_takes_no_step(tmp_path):
    """Nothing is written where nothing is to be done, so that a controller may drain every second."""
    prepare(tmp_path)
    # The first drain records the edit it found; the second renews the tables for that.
    drain(tmp_path, "drain", Steps())
    drain(tmp_path, "drain", Steps())
    steps = Steps()
    outbox(tmp_path, steps).drain()

    assert [] == steps


def test_two_drains_at_once_leave_the_newest_spec(tmp_path):
    """A slow drainer that started earlier cannot write an older generation over a newer one."""
    prepare(tmp_path)
    children = []
    for _ in range(4):
        child = os.fork()
        if child == 0:
            drain(tmp_path, "drain", Steps())
            os._exit(0)
        children.append(child)
    store = SqliteStateStore(StatePaths(tmp_path).state_db)
    for number in (1, 2, 1):
        promote(store, number, TARGETS[0], Who("민지", 2))
        drain(tmp_path, "drain", Steps())
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    spec = read_signed_spec(StatePaths(tmp_path).spec("이탈")).spec
    deployment = load_state(store).require_deployment("이탈", "local")

    assert [0, 0, 0, 0] == codes
    assert (deployment.generation, deployment.champion) == (spec.generation, spec.revisions[0].model_version)
