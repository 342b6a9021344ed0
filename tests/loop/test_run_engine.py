"""The engine as a person meets it: what runs again, what is kept, what is said when something goes wrong."""

import fcntl
import io
import json
import os
import stat
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from mulle.core.errors import CheckError, ConflictError, MulleError, SpecError, UnavailableError, UserCodeError
from mulle.loop.plan import RunOptions
from mulle.loop.progress import PlainProgress, SilentProgress
from mulle.loop.record import read_record, read_run
from mulle.loop.run import Runner
from mulle.loop.settings import load_settings
from mulle.loop.stage import Stage
from mulle.loop.wiring import SystemClock
from support.wheel import BODIES, STAGES, Wheel

ALL = ["snapshot", "split", "train", "register"]


@pytest.fixture
def wheel(tmp_path):
    """Return a small project that has not run yet."""
    return Wheel(tmp_path)


def test_a_first_run_runs_everything_and_records_it(wheel):
    """Every stage leaves a record with what it was made of, what it put out and what it cost."""
    report = wheel.run()

    assert ALL == wheel.calls()
    assert ["done"] * 4 == [entry.status for entry in report.document.stages]
    record = read_record(report.folders["train"])
    assert record is not None
    assert (report.run_id, "first run") == (record.run_id, record.reason)
    assert {"split": {"count": record.ingredients["inputs"]["split"]["count"]}} == record.ingredients["inputs"]
    assert "helpers.py:widen" in record.ingredients["code"]
    assert record.peak_memory_bytes > 5 * 2**20
    assert {"count.txt", "given.json"} == set(record.files)
    document = read_run(wheel.folder / f".mulle/runs/{report.run_id}.json")
    assert document is not None
    assert "done" == document.status
    assert "*\n" == (wheel.folder / ".mulle/.gitignore").read_text(encoding="utf-8")


def test_a_second_run_runs_nothing(wheel):
    """Nothing changed: every stage is as it was, and no process is started."""
    wheel.run()
    wheel.calls()
    report = wheel.run()

    assert [] == wheel.calls()
    assert ["cached"] * 4 == [entry.status for entry in report.document.stages]
    assert not (wheel.folder / f".mulle/runs/{report.run_id}/engine.log").exists()


@pytest.mark.parametrize(
    ("change", "runs", "why"),
    [
        pytest.param(
            ("helpers.py", "return x", "return x + 1"),
            ["train"],
            "code of `features`, `model` changed: helpers.py:widen",
            id="a helper; its output is the same, so nothing follows",
        ),
        pytest.param(("helpers.py", "return 1", "return 2"), [], "", id="a function nobody uses"),
        pytest.param(("mulle.toml", '"말"\n', '"말"\n[train]\nseed = 1\n'), ["train"], "parameter seed 0 → 1", id="a parameter"),
        pytest.param(("data.txt", "하나 둘 셋", "하나 둘 셋 넷"), ALL, "data.txt changed", id="the data"),
        pytest.param(
            ("data.txt", "하나 둘 셋", "하나 둘 셋 "),
            ["snapshot"],
            "data.txt changed",
            id="bytes of the file that mean nothing: the same dataset",
        ),
        pytest.param(
            ("project.py", "return 3", "return 4"), ["train"], "code of `features`, `model` changed: project.py:model", id="the model"
        ),
    ],
)
def test_a_change_runs_exactly_what_it_touches(wheel, change, runs, why):
    """Keys hold digests of what went in, so equal outputs cut the work short."""
    wheel.run()
    wheel.calls()
    wheel.replace(*change)
    report = wheel.run()

    assert runs == wheel.calls()
    assert not runs or why == next(entry.why for entry in report.document.stages if entry.status == "done")


def test_going_back_finds_the_old_result(wheel):
    """The cache is addressed by content: undoing a change costs nothing."""
    wheel.run()
    wheel.replace("data.txt", "셋", "셋 넷")
    wheel.run()
    wheel.replace("mulle.toml", '"말"\n', '"말"\n[train]\nseed = 1\n')
    wheel.run()
    wheel.calls()
    wheel.write("mulle.toml", '[project]\nname = "말"\n')
    report = wheel.run()

    assert [] == wheel.calls()
    assert "done before" == report.document.stages[2].why


def test_a_dry_run_says_what_and_why_and_writes_nothing(wheel):
    """Before the first run: everything; after a change: what is certain, and what depends on it."""
    assert dict.fromkeys(ALL, ("run", "first run")) == wheel.plan()
    assert not (wheel.folder / ".mulle").exists()
    wheel.run()
    wheel.replace("data.txt", "셋", "넷 다섯")

    expected = {
        "snapshot": ("run", "data.txt changed"),
        "split": ("depends", "depends on `snapshot`"),
        "train": ("depends", "depends on `split`"),
        "register": ("depends", "depends on `train`"),
    }
    assert expected == wheel.plan()


def test_force_and_from_run_what_they_say(wheel):
    """`--force` runs all of it, `--from` a stage and those after it."""
    wheel.run()
    wheel.calls()
    wheel.run(force=True)
    assert ALL == wheel.calls()
    wheel.run(from_stage="train")

    assert ["train", "register"] == wheel.calls()
    assert ("run", "--from train") == wheel.plan(from_stage="train")["register"]


def test_an_unknown_stage_lists_the_known(wheel):
    """A typo after `--from` is a usage error."""
    with pytest.raises(SpecError, match="there is no stage 'trian'"):
        wheel.plan(from_stage="trian")


def test_a_source_without_a_token_is_read_every_time(wheel):
    """What cannot say that it is unchanged is read again; an equal dataset stops there."""
    wheel.write("no-token", "")
    wheel.run()
    wheel.calls()
    report = wheel.run()

    assert ["snapshot"] == wheel.calls()
    assert "data.txt gives no freshness token" == report.document.stages[0].why


def test_a_missing_output_file_is_noticed(wheel):
    """Somebody tidied the cache by hand: the stage is run again."""
    report = wheel.run()
    wheel.calls()
    (report.folders["split"] / "count.txt").unlink()
    wheel.run()

    assert ["split"] == wheel.calls()


def test_an_override_is_part_of_the_key_and_reaches_the_stage(wheel):
    """`--register-anyway` changes only the stages that ask for it, and they are told who and why."""
    wheel.run()
    wheel.calls()
    report = wheel.run(override={"actor": "kim", "reason": "급함"})

    assert ["register"] == wheel.calls()
    given = json.loads((report.folders["register"] / "given.json").read_text(encoding="utf-8"))
    assert {"override": {"actor": "kim", "reason": "급함"}} == given["options"]


def test_a_situation_is_read_while_planning(wheel):
    """What a stage has to face is part of its key: another champion, another evaluation."""
    path = wheel.folder / "champion.txt"
    path.write_text("1", encoding="utf-8")
    stages = (
        *STAGES[:3],
        Stage("evaluate", 1, "bodies:count", inputs=("train",), situation=lambda _s, _o: {"version": path.read_text(encoding="utf-8")}),
    )
    wheel.stages = stages
    wheel.run()
    wheel.calls()
    path.write_text("2", encoding="utf-8")
    report = wheel.run()

    assert ["evaluate"] == wheel.calls()
    assert "what `evaluate` is compared with changed" == report.document.stages[3].why
    assert {"version": "2"} == json.loads((report.folders["evaluate"] / "given.json").read_text(encoding="utf-8"))["situation"]


@pytest.mark.parametrize(
    ("fault", "kind", "code", "words"),
    [
        pytest.param("no", CheckError, "gate-failed", ["mulle.toml:3", "0.1"], id="a check said no: its own error, facts and exit code"),
        pytest.param("raise", SpecError, "stage-crashed", ["KeyError", "비밀이 아닌 말"], id="a defect: what the stage printed is shown"),
        pytest.param("kill", UnavailableError, "stage-killed", ["signal 9 (SIGKILL)", "peak memory"], id="killed from outside"),
        pytest.param("exit", SpecError, "stage-crashed", ["SystemExit"], id="sys.exit inside a stage"),
        pytest.param("vanish", UnavailableError, "stage-killed", ["code 4"], id="ended without an answer"),
        pytest.param("full", UnavailableError, "disk-full", ["mulle gc"], id="a full disk"),
        pytest.param("read-only", UnavailableError, "folder-read-only", ["Read-only"], id="a read-only disk"),
        pytest.param("memory", UnavailableError, "stage-memory", ["memory"], id="Python's own out of memory"),
    ],
)
def test_a_failed_stage_is_explained_and_the_same_command_continues(wheel, fault, kind, code, words):
    """Finished stages are kept, nothing half-done stays, and after mending only the rest runs."""
    wheel.fault("train", fault)
    with pytest.raises(MulleError) as caught:
        wheel.run()
    assert (kind, code) == (type(caught.value), caught.value.code)
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert [] == wheel.drafts()
    assert ["snapshot", "split", "train"] == wheel.calls()
    documents = [read_run(path) for path in (wheel.folder / ".mulle/runs").glob("*.json")]
    assert [("failed", code)] == [(document.status, document.error["code"]) for document in documents]
    wheel.mend()
    wheel.run()

    assert ["train", "register"] == wheel.calls()


def test_the_users_exception_has_their_file_and_line(wheel):
    """Importing the user's module happens inside the boundary for user code."""
    wheel.stages = (Stage("train", 1, "bodies:project_name", roots=("model",)),)
    wheel.replace("project.py", "import mulle\n", "import mulle\n1 / 0\n")
    with pytest.raises(UserCodeError) as caught:
        wheel.run()

    assert ("user-code", "project.py:2") == (caught.value.code, caught.value.where)


def test_a_stage_may_import_the_users_project(wheel):
    """The module and its neighbours are importable in the child, and nowhere else."""
    wheel.stages = (Stage("train", 1, "bodies:project_name", roots=("model",)),)
    report = wheel.run()

    assert {"name": "말"} == report.document.stages[0].outputs


def test_peak_memory_is_the_stages_own(wheel):
    """A small stage after a large one reports little."""
    wheel.stages = (Stage("train", 1, "bodies:heavy"), Stage("seal", 1, "bodies:noop"))
    heavy, small = (entry.peak_memory_bytes for entry in wheel.run().document.stages)

    assert heavy > 200 * 2**20
    assert small < 100 * 2**20


def test_two_runs_at_once_are_told_apart(wheel):
    """The second is told who works there and since when; with `--wait` it waits."""
    wheel.fault("split", "wait")
    first = threading.Thread(target=_run_and_ignore, args=(wheel,))
    first.start()
    _until((wheel.folder / "waiting").exists)
    with pytest.raises(ConflictError) as caught:
        wheel.run()
    assert ("run-locked", True) == (caught.value.code, f"process {os.getpid()}" in caught.value.what)
    heard: list[str] = []
    progress = SilentProgress()
    progress.waiting = heard.append
    second = threading.Thread(target=lambda: wheel.runner(progress).run(wait=True))
    second.start()
    _until(lambda: heard)
    wheel.mend()
    os.kill(int((wheel.folder / "waiting").read_text(encoding="utf-8")), 9)
    first.join(20)
    second.join(20)

    assert not first.is_alive()
    assert not second.is_alive()
    assert "cached" == wheel.plan()["register"][0]


def _run_and_ignore(wheel):
    with pytest.raises(UnavailableError):
        wheel.run()


def _until(condition, limit_s=20.0):
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_lock_left_by_a_dead_process_is_no_lock(wheel):
    """The system drops the lock with its holder; the name in the file means nothing by itself."""
    wheel.run()
    (wheel.folder / ".mulle/run.lock").write_text('{"pid": 1, "since": "2020", "command": "mulle run"}', encoding="utf-8")

    assert "cached" == wheel.run().document.stages[0].status


def test_the_lock_is_not_inherited_by_stages(wheel):
    """A child that outlives its parent must not keep others out."""
    wheel.run()
    with (wheel.folder / ".mulle/run.lock").open("r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)

    assert stat.S_ISREG((wheel.folder / ".mulle/run.lock").stat().st_mode)


def test_leftovers_of_killed_runs_are_swept(wheel):
    """What a kill left behind goes at the start of the next run."""
    folder = wheel.folder / ".mulle/stages/.draft/20200101-000000-aaaa.train"
    folder.mkdir(parents=True)
    (folder / "half.bin").write_bytes(b"x")
    wheel.run()

    assert [] == wheel.drafts()


def test_a_file_in_the_way_of_the_state_folder(wheel):
    """Not a folder: said so, and nothing is removed."""
    wheel.write(".mulle", "mine")
    with pytest.raises(SpecError, match="not a folder"):
        wheel.run()

    assert "mine" == (wheel.folder / ".mulle").read_text(encoding="utf-8")


def test_plain_progress_is_one_line_per_event(wheel):
    """In CI every line has a time, and long stages speak at most every two seconds."""
    out = io.StringIO()
    wheel.runner(PlainProgress(out, now=lambda: datetime(2026, 11, 20, 1, 2, 3, tzinfo=UTC))).run()
    lines = out.getvalue().splitlines()

    assert all(line.startswith("01:02:03 ") for line in lines)
    assert ["snapshot  runs: first run", "split     runs: first run"] == [line[9:] for line in lines if "runs" in line][:2]
    assert 1 + 2 * len(ALL) == len(lines)


def test_an_empty_stage_costs_little(wheel):
    """The engine's own work per stage: fork, pipe, record, sync. Published in the benchmarks; here a loose bound."""
    wheel.stages = tuple(Stage(f"s{number}", 1, "bodies:noop") for number in range(30))
    runner = Runner(load_settings(wheel.folder), wheel.stages, SystemClock(), python_path=[BODIES])
    seconds = [entry.seconds for entry in runner.run(RunOptions()).document.stages]

    assert sorted(seconds[1:])[len(seconds) // 2] < 0.05


def test_planning_loads_no_heavy_library(wheel):
    """The second `mulle run` answers within a second: tables, trainers and trackers stay out of the parent process."""
    wheel.run()
    heavy = {"polars", "pandas", "pyarrow", "sklearn", "mlflow", "onnx", "onnxruntime", "sqlalchemy", "scipy", "pandera"}
    script = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from pathlib import Path\n"
        "import mulle.apps.cli.main, mulle.apps.cli.run, mulle.loop.stages\n"
        "from support.wheel import Wheel\n"
        "report = Wheel.again(Path(sys.argv[2])).run()\n"
        "assert {'cached'} == {entry.status for entry in report.document.stages}\n"
        "print(' '.join(sys.modules))"
    )
    tests = str(Path(__file__).parents[1])
    done = subprocess.run([sys.executable, "-c", script, tests, str(wheel.folder)], capture_output=True, text=True, check=True)

    assert set() == heavy & set(done.stdout.split())
