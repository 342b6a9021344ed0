"""What stands in the way of a project, line by line."""

import socket
from pathlib import Path

import pytest

from mulle.loop.distributions import Installed
from mulle.loop.doctor import check_machine
from support.wheel import Wheel


def environment(folder: Path, **versions: str) -> Installed:
    """Return an environment that holds these distributions, as folders on disk."""
    wanted = {"numpy": "2.4.6", "onnxruntime": "1.31.0", "pydantic": "2.14.0", **versions}
    for name, version in wanted.items():
        (folder / f"{name}-{version}.dist-info").mkdir(parents=True)
    return Installed([str(folder)])


def statuses(project: Path, installed: Installed | None = None) -> dict[str, tuple[str, str]]:
    return {finding.name: (finding.status, finding.text) for finding in check_machine(project, "local", installed=installed)}


@pytest.mark.parametrize(
    ("name", "version", "expected"),
    [
        pytest.param("pandas", "3.0.1", "fail", id="pandas 3 breaks the libraries around it"),
        pytest.param("pandas", "2.3.3", "ok", id="pandas 2 is right"),
        pytest.param("protobuf", "7.1", "fail", id="protobuf 7 breaks skl2onnx"),
        pytest.param("fastapi", "0.151.0", "fail", id="a FastAPI too new"),
        pytest.param("fastapi", "0.150.2", "ok", id="a FastAPI in range"),
        pytest.param("mlflow", "3.18.0", "fail", id="an MLflow nobody tried"),
        pytest.param("polars", "1.2", "fail", id="a Polars too old"),
        pytest.param("onnx", "1.23.0rc1", "ok", id="a release candidate counts as its release"),
    ],
)
def test_versions(tmp_path, name, version, expected):
    """Each version known to break another is found, with the command that mends it."""
    installed = environment(tmp_path / "site", **{name: version})
    finding = next(f for f in check_machine(tmp_path, "local", installed=installed) if f.name == name)

    assert expected == finding.status
    assert (finding.fix.startswith("pip install") and name in finding.fix) == (expected == "fail")


def test_what_serving_needs_must_be_there(tmp_path):
    """Without NumPy nothing works; without Polars serving still does."""
    (tmp_path / "site").mkdir()
    found = statuses(tmp_path, Installed([str(tmp_path / "site")]))

    assert ("fail", "warn") == (found["numpy"][0], found["polars"][0])


def test_a_sound_project_passes(tmp_path):
    """Settings, code, folder and port are looked at."""
    found = statuses(Wheel(tmp_path).folder)

    assert {"ok"} == {found[name][0] for name in ("python", "folder", "mulle.toml", "project code", "signing key")}
    assert "2 files, models: model" == found["project code"][1]


@pytest.mark.parametrize(
    ("name", "old", "new", "line", "words"),
    [
        pytest.param("mulle.toml", '"말"', '"말"\nx = 1', "mulle.toml", "unknown key 'x'", id="a typo in the settings"),
        pytest.param("project.py", "@project.features\n", "", "project code", "@project.features", id="no features"),
        pytest.param("helpers.py", "return x", "return (", "project code", "helpers.py", id="a syntax error"),
    ],
)
def test_a_broken_project_fails_with_the_reason(tmp_path, name, old, new, line, words):
    """The same errors a run would raise, without running."""
    wheel = Wheel(tmp_path)
    wheel.replace(name, old, new)
    status, text = statuses(tmp_path)[line]

    assert ("fail", True) == (status, words in text)


def test_a_key_others_can_read_fails(tmp_path, own_key_folder):
    """A private key must be private."""
    key = own_key_folder / "keys/ed25519"
    key.parent.mkdir(parents=True)
    key.write_bytes(b"x" * 32)
    key.chmod(0o644)

    assert "fail" == statuses(tmp_path)["signing key"][0]


def test_a_taken_port_is_a_warning(tmp_path):
    """Somebody else listens where this project would."""
    wheel = Wheel(tmp_path)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        wheel.write("mulle.toml", f'[project]\nname = "p"\n[serving]\nport = {port}\n')

        assert ("warn", f"{port} is in use") == statuses(tmp_path)["port"]


def test_an_empty_folder_is_a_warning(tmp_path):
    """Doctor is also for people who have no project yet."""
    assert "warn" == statuses(tmp_path)["mulle.toml"][0]
