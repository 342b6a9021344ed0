"""Bad files and bad places through the real commands: hostile models, harmed bundles, names that are paths, folders that cannot be written.

The bundle's own checks are in `unit/bundle/test_seal.py`, ONNX files in `loop/test_adopt.py`, settings in `unit/loop/test_settings.py`.
"""

import os
import pickle
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

from mulle.loop.lock import run_lock
from support.projects import ENGLISH, Sample, finished

ROW = '{"minutes": 1, "spend": 2, "channel": "mail", "member": true}'


@pytest.fixture
def tiny(tmp_path, own_key_folder, monkeypatch):
    """Return a project whose wheel has turned once."""
    return finished(tmp_path / "tiny", monkeypatch)


def bundle_of(project):
    """Return the folder of the only bundle."""
    (folder,) = (project.folder / ".mulle/bundles").iterdir()
    return folder


def flip(path):
    """Change one bit in the middle of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


HARMS = [
    pytest.param(lambda b: flip(b / "model.onnx"), "bundle-tampered", "model.onnx", id="a flipped byte in the graph"),
    pytest.param(lambda b: (b / "golden.json").unlink(), "bundle-incomplete", "golden.json", id="a file taken out"),
    pytest.param(lambda b: (b / "baseline.json").write_bytes(b""), "bundle-tampered", "baseline.json", id="a truncated file"),
    pytest.param(
        lambda b: (b / "model.onnx").write_bytes(pickle.dumps(print)), "bundle-tampered", "model.onnx", id="a pickle in place of the graph"
    ),
    pytest.param(lambda b: (b / "bundle.json").unlink(), "file-missing", "bundle.json", id="no manifest"),
]


@pytest.mark.parametrize(("harm", "code", "named"), HARMS)
def test_a_harmed_bundle_answers_nobody(tiny, capsys, harm, code, named):
    """predict, serve, verify and promote refuse it and name the file; the log of what happened stays whole."""
    harm(bundle_of(tiny))
    answers = [
        tiny.call(capsys, *command, "--json")
        for command in (["predict", "--row", ROW], ["serve", "--port", "0"], ["models", "verify", "1"], ["models", "reproduce", "1"])
    ]
    errors = [answer.json["versions"][0]["problem"] if "versions" in answer.json else answer.error for answer in answers]

    assert [code] * 3 == [error["code"] for error in errors[:3]]
    assert all(named in error["what"] + error["where"] and error["fix"] for error in errors[:3])
    assert {1, 2} >= {answer.code for answer in answers}
    assert 0 not in [answer.code for answer in answers]
    assert 0 == tiny.call(capsys, "events", "verify").code


def test_a_lost_bundle_is_made_again(tiny, capsys):
    """Without the folder nothing is served; the fix that is printed brings it back, and the champion is the same."""
    folder = bundle_of(tiny)
    shutil.rmtree(folder)
    lost = tiny.call(capsys, "predict", "--row", ROW, "--json")
    fix = lost.error["fix"]
    repaired = tiny.call(capsys, *fix.partition("mulle ")[2].partition(" (")[0].split())

    assert (2, "bundle-missing") == (lost.code, lost.error["code"])
    assert 0 == repaired.code, repaired.err
    assert folder == bundle_of(tiny)
    assert 0 == tiny.call(capsys, "predict", "--row", ROW).code
    assert [(1, ("champion",))] == tiny.versions(capsys)


def test_a_lost_dataset_is_cut_again(tiny, capsys):
    """The cache remembers a version whose rows are gone: the run that needs them says how to get them back, and that works."""
    shutil.rmtree(tiny.folder / ".mulle/datasets")
    lost = tiny.call(capsys, "run", "--from", "split", "--json")
    again = tiny.call(capsys, "run", "--from", "snapshot", "--json")

    assert 2 == lost.code
    assert "mulle run --from snapshot" in lost.error["fix"], lost.out
    assert 0 == again.code, again.out
    assert [(1, ("champion",))] == tiny.versions(capsys)


HOSTILE = [
    pytest.param(["serve", "--deployment", "../../etc"], "name-invalid", id="a deployment that climbs out"),
    pytest.param(["serve", "--deployment", "/etc/passwd"], "name-invalid", id="an absolute deployment"),
    pytest.param(["trace", "../../x"], "prediction-unknown", id="an id that climbs out"),
    pytest.param(["models", "promote", "1", "--deployment", "a/b"], "name-invalid", id="a deployment with a slash"),
    pytest.param(["monitor", "check", "--deployment", "..", "--last", "10"], "name-invalid", id="a deployment that is the folder above"),
    pytest.param(["run", "--env", "../production"], "config-environment", id="an environment that is a path"),
    pytest.param(["predict", "--row", ROW, "--bundle", "/etc"], "file-missing", id="a bundle that is no bundle"),
    pytest.param(["predict", "-i", "/etc/passwd", "-o", "x.parquet"], "table-ending", id="a table that is no table"),
    pytest.param(["models", "show", "99"], "version-unknown", id="a version nobody made"),
]


@pytest.mark.parametrize(("command", "code"), HOSTILE)
def test_names_are_names_and_not_paths(tiny, capsys, command, code):
    """Nothing outside is read or written, whatever stands in a name."""
    answer = tiny.call(capsys, *command, "--json")

    assert (2, code) == (answer.code, answer.error["code"]), answer.out
    assert answer.error["fix"]


SETTINGS = [
    pytest.param('name = "tiny"', 'name = "../tiny"', "config-value", id="a project name that climbs out"),
    pytest.param('name = "tiny"', 'name = "/tiny"', "config-value", id="an absolute project name"),
    pytest.param('name = "tiny"', 'name = "tiny"\ncode = "../evil:project"', "config-value", id="code that lies elsewhere"),
    pytest.param("[gates]", '[serving]\ndeployment = "../x"\n[gates]', "config-value", id="a deployment that climbs out"),
    pytest.param("[gates]", '[data]\ndataset = "/tmp/x"\n[gates]', "config-value", id="a dataset that is a path"),
    pytest.param("k_folds = 0", "k_fold = 0", "config-unknown-key", id="a typing error"),
    pytest.param("[train]", "[tarin]", "config-unknown-key", id="a typing error in a table"),
    pytest.param("k_folds = 0", "k_folds = ", "config-syntax", id="no value"),
    pytest.param("k_folds = 0", 'k_folds = "many"', "config-value", id="a word for a number"),
    pytest.param("[train]", "[project]", "config-syntax", id="a table twice"),
]


@pytest.mark.parametrize(("old", "new", "code"), SETTINGS)
def test_settings_that_are_wrong_are_named_with_their_line(tmp_path, capsys, old, new, code):
    """Every command stops at once with file and line, and writes nothing."""
    project = Sample().write(tmp_path / "tiny")
    project.change("mulle.toml", old, new)
    for command in (["run"], ["models", "list"], ["serve"], ["doctor"]):
        answer = project.call(capsys, *command, "--json")
        if command != ["doctor"]:
            assert (2, code) == (answer.code, answer.error["code"]), answer.out
            assert "mulle.toml:" in answer.error["where"]
        assert answer.code != 0
    assert not (project.folder / ".mulle/stages").exists()


def test_a_misspelt_slice_is_found_before_training(tiny, capsys):
    """The column is looked up before the minutes of fitting, and the nearest name is offered."""
    tiny.write_settings({"evaluate": {"slices": ["visitr"]}})
    answer = tiny.call(capsys, "run", "--from", "train", "--json")

    assert (2, "train-slice") == (answer.code, answer.error["code"]), answer.out
    assert "'visitor'" in answer.error["fix"]


CODE = [
    pytest.param("import mulle\n", "import mulle\nimport nowhere\n", "nowhere", id="an import of what is not there"),
    pytest.param("import mulle\n", "import mulle\nx = (\n", "project.py", id="half a line"),
    pytest.param('entity="visitor"', 'entity="visitor", task="binary"', "project.py", id="an argument twice"),
    pytest.param("@project.model\n", "", "model", id="no model"),
    pytest.param("project = mulle.Project(", "projekt = mulle.Project(", "project", id="another variable"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("old", "new", "named"), CODE)
def test_code_that_cannot_be_loaded_is_the_users_error_with_their_line(tmp_path, capsys, old, new, named):
    """Their file, a fix, and no traceback of ours."""
    project = Sample().write(tmp_path / "tiny")
    text = project.folder.joinpath("project.py").read_text(encoding="utf-8").replace("'", '"')
    project.write("project.py", text)
    project.change("project.py", old, new)
    answer = project.call(capsys, "run", "--json")

    assert 2 == answer.code, answer.out
    assert named in answer.error["what"] + answer.error["where"]
    assert answer.error["fix"]
    assert "Traceback" not in answer.out + answer.err


def test_two_runs_at_once_the_second_is_told_who_was_first(tiny, capsys):
    """The lock names its holder; `--wait` would wait; nothing of the first is disturbed."""
    with run_lock(tiny.folder / ".mulle/run.lock", now_ns=0):
        answer = tiny.call(capsys, "run", "--json")

    assert (2, "run-locked") == (answer.code, answer.error["code"])
    assert str(os.getpid()) in answer.error["what"]
    assert "--wait" in answer.error["fix"]
    assert 0 == tiny.call(capsys, "run").code


@contextmanager
def read_only(folder: Path):
    """Make a folder read-only for everybody, root too, or skip."""
    if os.geteuid() != 0:
        modes = {path: path.stat().st_mode for path in (folder, *folder.rglob("*")) if path.is_dir()}
        for path in modes:
            path.chmod(0o555)
        try:
            yield
        finally:
            for path, mode in modes.items():
                path.chmod(mode)
        return
    for command in (["mount", "--bind", str(folder), str(folder)], ["mount", "-o", "remount,ro,bind", str(folder)]):
        if subprocess.run(command, capture_output=True, check=False).returncode != 0:
            subprocess.run(["umount", str(folder)], capture_output=True, check=False)
            pytest.skip("root may not mount here, and permissions do not bind root")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_read_only_project_is_read_and_not_run(tiny, capsys):
    """`run` and `promote` say that the folder cannot be written; what only reads goes on."""
    tiny.change("project.py", "strength=1.0", "strength=0.9")
    with read_only(tiny.folder):
        run = tiny.call(capsys, "run", "--json")
        promote = tiny.call(capsys, "models", "promote", "1", "--json")
        predict = tiny.call(capsys, "predict", "--row", ROW)
        listed = tiny.call(capsys, "models", "list")
        plan = tiny.call(capsys, "run", "--dry-run")
        verify = tiny.call(capsys, "models", "verify", "1")

    assert [(2, "folder-read-only")] * 2 == [(answer.code, answer.error["code"]) for answer in (run, promote)]
    assert "chmod" in run.error["fix"]
    assert [0, 0, 0, 0] == [predict.code, listed.code, plan.code, verify.code], predict.err + listed.err + plan.err + verify.err


def test_a_pickle_is_never_opened(tmp_path, own_key_folder, monkeypatch, capsys):
    """A pickle called `.onnx` is refused by `adopt` and by `serve`, and what it would have run has not run."""
    witness = tmp_path / "ran"

    class Evil:
        def __reduce__(self):
            return (Path.touch, (witness,))

    (tmp_path / "model.onnx").write_bytes(pickle.dumps(Evil()))
    Sample(ENGLISH).table().write_parquet(tmp_path / "sample.parquet")
    command = [
        sys.executable,
        "-m",
        "mulle.apps.cli.main",
        "adopt",
        str(tmp_path / "model.onnx"),
        "--sample",
        str(tmp_path / "sample.parquet"),
    ]
    done = subprocess.run([*command, "--target", ENGLISH.target], cwd=tmp_path, capture_output=True, encoding="utf-8", check=False)

    assert done.returncode == 2, done.stdout + done.stderr
    assert "error[" in done.stderr
    assert "Traceback" not in done.stderr
    assert not witness.exists()
