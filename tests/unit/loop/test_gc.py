"""What retention lets go, and what it never touches."""

import json
import os
from pathlib import Path

import pytest

from mulle.core.errors import CheckError
from mulle.loop.gc import collect, plan_gc
from mulle.loop.paths import state_paths
from mulle.loop.settings import load_settings
from support.wheel import Wheel

DAY_NS = 86_400 * 10**9
FAR_NS = 2_000_000_000 * 10**9 * 2


@pytest.fixture
def wheel(tmp_path):
    """Return a project with three runs, each on other data, that keeps one run and no days."""
    wheel = Wheel(tmp_path)
    wheel.write("mulle.toml", '[project]\nname = "말"\n[retention]\nkeep_runs = 1\nkeep_days = 0\nlogs_days = 1\n')
    wheel.ids = []
    for text in ("하나", "둘 둘", "셋 셋 셋"):
        wheel.write("data.txt", text)
        wheel.ids.append(wheel.run().run_id)
    # Runs of one second have no order in time: give them one.
    for day, run_id in enumerate(wheel.ids):
        path = tmp_path / f".mulle/runs/{run_id}.json"
        document = json.loads(path.read_text(encoding="utf-8"))
        document["started"] = f"2026-01-0{day + 1}T00:00:00Z"
        path.write_text(json.dumps(document), encoding="utf-8")
    return wheel


def plan(wheel, events=()):
    found = plan_gc(load_settings(wheel.folder), state_paths(wheel.folder), events=events, now_ns=FAR_NS)
    return found, sorted((candidate.kind, str(candidate.path.relative_to(wheel.folder / ".mulle"))) for candidate in found.candidates)


def put(folder: Path, text: str = "x") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "file").write_text(text, encoding="utf-8")
    return folder


def test_results_of_old_runs_go_and_the_last_run_stays(wheel):
    """One run is kept: the other two, with their results, would go; after it, nothing has to run again."""
    found, rows = plan(wheel)

    # A snapshot lies under one key whatever the data: only the stages behind it have a folder per dataset.
    assert 2 * 3 == len([kind for kind, _ in rows if kind == "stage result"])
    assert {wheel.ids[0], wheel.ids[1]} == {Path(path).name.removesuffix(".json") for kind, path in rows if kind == "run"}
    wheel.calls()
    freed = collect(found, state_paths(wheel.folder))
    assert found.n_bytes == freed > 0
    assert ([], []) == (plan(wheel)[1], wheel.drafts())
    wheel.run()
    assert [] == wheel.calls()


def test_what_an_event_names_stays(wheel):
    """A registered version names its run, its bundle and its dataset: all of them stay, however old."""
    paths = state_paths(wheel.folder)
    named, other = "a" * 64, "b" * 64
    for digest in (named, other):
        put(paths.bundles / digest)
        put(paths.datasets / "말" / digest)
    event = {"after": {"bundle_path": f"bundles/{named}", "run_id": wheel.ids[0], "dataset_digest": named}}
    _, rows = plan(wheel, [event])

    assert [("bundle", f"bundles/{other}"), ("dataset", f"datasets/말/{other}")] == [row for row in rows if row[0] in {"bundle", "dataset"}]
    assert wheel.ids[0] not in str(rows)


def test_what_a_spec_names_stays(wheel):
    """The champion's bundle is in a deployment spec; so is the one the data plane remembers."""
    paths = state_paths(wheel.folder)
    for digest, spec in (("a" * 64, paths.serving / "말.json"), ("c" * 64, paths.serving_cache / "말.json")):
        put(paths.bundles / digest)
        spec.parent.mkdir(parents=True, exist_ok=True)
        spec.write_text(json.dumps({"revisions": [{"bundle_digest": digest}]}), encoding="utf-8")

    assert [] == [row for row in plan(wheel)[1] if row[0] == "bundle"]


@pytest.mark.parametrize("name", ["serving/말.json", "runs/20260101-000000-aaaaaaaa.json"])
def test_an_unreadable_document_stops_everything(wheel, name):
    """When it is unknown what is needed, nothing is removed."""
    path = wheel.folder / ".mulle" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("{broken", encoding="utf-8")
    with pytest.raises(CheckError, match="cannot be read"):
        plan(wheel)


def test_old_logs_go_and_young_ones_stay(wheel):
    """Prediction logs go by age; the folder of the deployment stays."""
    logs = put(state_paths(wheel.folder).logs / "말")
    (logs / "young").write_text("y", encoding="utf-8")
    os.utime(logs / "young", ns=(FAR_NS, FAR_NS))

    assert [("prediction log", "logs/말/file")] == [row for row in plan(wheel)[1] if row[0] == "prediction log"]


def test_links_out_of_the_state_folder_are_not_followed(wheel, tmp_path_factory):
    """A link planted in the cache cannot make the collector remove something elsewhere."""
    outside = put(tmp_path_factory.mktemp("outside") / "precious")
    paths = state_paths(wheel.folder)
    paths.bundles.mkdir()
    (paths.bundles / ("d" * 64)).symlink_to(outside)
    found, _ = plan(wheel)
    collect(found, paths)

    assert (outside / "file").exists()


def test_a_project_that_never_ran_has_nothing_to_give_back(tmp_path):
    """No state folder: an empty plan, and none is made."""
    (tmp_path / "mulle.toml").write_text('[project]\nname = "p"\n', encoding="utf-8")
    found = plan_gc(load_settings(tmp_path), state_paths(tmp_path), events=(), now_ns=DAY_NS)

    assert (0, False) == (found.n_bytes, (tmp_path / ".mulle").exists())
