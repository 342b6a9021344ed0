"""`mulle models reproduce`: a version is made again from git, and the answer is believed because it can also be no."""

import shutil
import subprocess

import pytest

from support.projects import finished

pytestmark = pytest.mark.slow


@pytest.fixture
def tiny(tmp_path, own_key_folder, monkeypatch):
    """Return a project whose wheel has turned once, before it came under git."""
    return finished(tmp_path / "내 저장소" / "tiny", monkeypatch)


def git(project, *arguments):
    """Run git in the project's folder."""
    command = ["git", "-c", "user.name=김민지", "-c", "user.email=minji@example.com", "-C", str(project.folder), *arguments]
    subprocess.run(command, check=True, capture_output=True)


def commit(project):
    """Commit everything but the state folder and the data, in a repository of the project."""
    if not (project.folder / ".git").exists():
        git(project, "init", "-q")
        project.write(".gitignore", ".mulle/\ndata/\n__pycache__/\n")
    git(project, "add", "-A")
    git(project, "commit", "-q", "-m", "다시")


def test_made_again_identical_or_different(tiny, capsys, monkeypatch):
    """From the commit and the kept data version alone: identical; what a variable outside git decided: different."""
    tiny.change(
        "project.py",
        "strength=1.0, seed=0):\n",
        "strength=0.2, seed=0):\n    import os\n\n    strength = float(os.environ.get('힘', strength))\n",
    )
    commit(tiny)
    tiny.stages(capsys)
    (tiny.folder / "data/rows.parquet").unlink()
    tiny.change("project.py", "strength=0.2", "strength=0.7")
    identical = tiny.call(capsys, "models", "reproduce", "2", "--json")
    git(tiny, "checkout", "-q", ".")
    tiny.write_table(tiny.sample.table())
    monkeypatch.setenv("힘", "0.001")
    tiny.stages(capsys, "--from", "train")
    monkeypatch.delenv("힘")
    different = tiny.call(capsys, "models", "reproduce", "3", "--json")
    text = tiny.call(capsys, "models", "reproduce", "2")

    assert (0, "identical", []) == (identical.code, identical.json["answer"], identical.json["differences"]), identical.out
    assert identical.json["digest"] == identical.json["again"]
    assert (1, "different") == (different.code, different.json["answer"]), different.out
    assert different.json["max_difference"] > 0.01
    assert any("model.onnx" in line for line in different.json["differences"])
    assert (0, True) == (text.code, text.out.startswith("version 2: identical"))
    assert [(1, ("champion",)), (2, ()), (3, ("challenger",))] == tiny.versions(capsys)


def test_what_cannot_be_made_again_says_why(tiny, capsys):
    """No git, files that were not committed, data or commit gone, no such version: each with its way out."""
    found = {"outside git": tiny.call(capsys, "models", "reproduce", "1", "--json")}
    found["unknown"] = tiny.call(capsys, "models", "reproduce", "9", "--json")
    commit(tiny)
    tiny.change("project.py", "strength=1.0", "strength=0.3")
    tiny.stages(capsys)
    found["dirty"] = tiny.call(capsys, "models", "reproduce", "2", "--json")
    commit(tiny)
    tiny.change("mulle.toml", "k_folds = 0", "k_folds = 0\nseed = 5\nparams = { strength = 0.4 }")
    commit(tiny)
    tiny.stages(capsys)
    shutil.move(tiny.folder / ".mulle/datasets", tiny.folder / "elsewhere")
    found["no data"] = tiny.call(capsys, "models", "reproduce", "3", "--json")
    shutil.move(tiny.folder / "elsewhere", tiny.folder / ".mulle/datasets")
    shutil.rmtree(tiny.folder / ".git")
    found["no commit"] = tiny.call(capsys, "models", "reproduce", "3", "--json")

    assert {
        "outside git": "reproduce-no-commit",
        "unknown": "version-unknown",
        "dirty": "reproduce-no-commit",
        "no data": "reproduce-no-dataset",
        "no commit": "reproduce-git",
    } == {name: answer.error["code"] for name, answer in found.items()}
    assert {2} == {answer.code for answer in found.values()}
