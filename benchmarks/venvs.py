"""The peers' own virtual environments: made once with uv under `.venvs/`, so that nobody's dependencies disturb anybody."""

import subprocess
import sys
from functools import cache
from pathlib import Path

from measure import HERE, SkippedError

FOLDER = HERE / ".venvs"
INSTALL_TIMEOUT_S = 240
REQUIREMENTS = {
    "dvc": ["dvc>=3.67,<4"],
    "prefect": ["prefect>=3.8,<4", "fastapi>=0.139,<0.151"],
    "dagster": ["dagster>=1.12"],
    "metaflow": ["metaflow>=2.15"],
    "bentoml": ["bentoml>=1.4", "onnxruntime", "numpy", "pillow"],
    "http": ["granian[uvloop]", "blacksheep", "robyn", "uvicorn", "uvloop", "httptools", "msgspec"],
    "fastapi": ["fastapi>=0.139", "uvicorn[standard]", "onnxruntime", "numpy", "pillow", "python-multipart", "orjson"],
    "litserve": ["litserve>=0.2.10", "onnxruntime", "numpy", "pillow", "python-multipart"],
    "mlserver": ["mlserver>=1.7", "onnxruntime"],
    "kserve": ["kserve>=0.16", "onnxruntime"],
    "ray": ["ray[serve]>=2.50", "onnxruntime", "pillow", "python-multipart"],
    "mlflow": ["mlflow>=3.12,<3.18", "onnx", "onnxruntime"],
    "triton": ["nvidia-pytriton>=0.7", "onnxruntime", "grpcio", "uvloop"],
}


@cache
def peer_bin(name: str) -> Path:
    """Return the folder with the programs of a peer's environment.

    Raises:
        SkippedError: it cannot be installed here.
    """
    folder = FOLDER / name
    done = folder / ".installed"
    wanted = " ".join(REQUIREMENTS[name])
    if not done.exists() or done.read_text(encoding="utf-8") != wanted:
        install(folder, REQUIREMENTS[name])
        done.write_text(wanted, encoding="utf-8")
    return folder / "bin"


@cache
def peer_version(name: str, distribution: str | None = None) -> str:
    """Return the version of a peer as installed in its environment."""
    code = f"from importlib.metadata import version; print(version({(distribution or name)!r}))"
    done = subprocess.run([peer_bin(name) / "python", "-c", code], capture_output=True, text=True, check=False)
    return done.stdout.strip() or "?"


def install(folder: Path, requirements: list[str], *options: str) -> None:
    """Make an environment in `folder` and install into it.

    Raises:
        SkippedError: it cannot be installed here, or not in time.
    """
    _uv("venv", "--quiet", "--allow-existing", "--python", sys.executable, str(folder))
    _uv("pip", "install", "--quiet", *options, "--python", str(folder / "bin" / "python"), *requirements)


def _uv(*arguments: str) -> None:
    try:
        done = subprocess.run(
            [sys.executable, "-m", "uv", *arguments], capture_output=True, text=True, timeout=INSTALL_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise SkippedError(f"its installation took more than {INSTALL_TIMEOUT_S} s") from error
    if done.returncode:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        raise SkippedError(f"it cannot be installed here: {' '.join(lines)[:160]}")
