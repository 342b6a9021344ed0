"""`mulle doctor`: what on this machine, in this environment and in this project will get in the way, and what to do."""

import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from mulle.core.errors import MulleError
from mulle.formats.signing import key_path
from mulle.loop.code import ProjectCode
from mulle.loop.distributions import Installed
from mulle.loop.paths import state_paths
from mulle.loop.settings import Settings, load_settings

Status = Literal["ok", "warn", "fail"]
_GIB = 2**30


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report.

    Attributes:
        name: What was looked at.
        status: `ok`, `warn` (it may get in the way) or `fail` (it will).
        text: What was found.
        fix: What to do; empty when ok.
    """

    name: str
    status: Status
    text: str
    fix: str = ""

    def to_dict(self) -> dict[str, str]:
        """Return plain JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class _Requirement:
    """Versions of a distribution that work together with the rest."""

    name: str
    least: tuple[int, ...] | None
    below: tuple[int, ...] | None
    why: str
    needed: bool = False


_REQUIREMENTS = (
    _Requirement("numpy", (2, 1), None, "arrays", needed=True),
    _Requirement("onnxruntime", (1, 22), None, "runs the served graph", needed=True),
    _Requirement("pydantic", (2, 10), (3,), "settings", needed=True),
    _Requirement("pandas", (2, 2), (3,), "tables at library borders break on pandas 3"),
    _Requirement("protobuf", (5,), (7,), "skl2onnx fails on protobuf 7"),
    _Requirement("fastapi", (0, 139), (0, 151), "MLflow's server beside Prefect"),
    _Requirement("mlflow", (3, 12), (3, 18), "tracking"),
    _Requirement("polars", (1, 36), None, "tables"),
    _Requirement("scikit-learn", (1, 6), None, "training"),
    _Requirement("onnx", (1, 18), None, "export"),
    _Requirement("skl2onnx", (1, 20), None, "export"),
    _Requirement("sqlalchemy", (2, 0, 36), None, "the event log"),
)


def check_machine(project_dir: Path, environment: str, *, installed: Installed | None = None) -> list[Finding]:
    """Return everything that was looked at, in order: Python, distributions, machine, project.

    Args:
        project_dir: The project's folder; a folder without `mulle.toml` skips what only a project has.
        environment: Which of its environments.
        installed: The distributions to judge; those of this process by default.
    """
    found = [
        _python(),
        *_versions(Installed() if installed is None else installed),
        _cores(),
        _memory(),
        _disk(project_dir),
        _git(project_dir),
    ]
    found += [_writable(project_dir), _signing_key()]
    settings: Settings | None = None
    try:
        settings = load_settings(project_dir, environment)
        found.append(Finding("mulle.toml", "ok", f"project {settings.project.name!r}, environment {environment!r}"))
    except MulleError as error:
        missing = error.code == "config-missing"
        found.append(
            Finding("mulle.toml", "warn" if missing else "fail", error.what + (f" ({error.where})" if error.where else ""), error.fix)
        )
    if settings is not None:
        found += [_code(settings), _port(settings)]
    return found


def _python() -> Finding:
    text = ".".join(str(part) for part in sys.version_info[:3])
    if sys.version_info < (3, 11):  # noqa: UP036 - this is the check itself
        return Finding("python", "fail", text, "use Python 3.11, 3.12 or 3.13")
    if sys.version_info >= (3, 14):
        return Finding("python", "warn", f"{text} is not tested", "use Python 3.11, 3.12 or 3.13")
    return Finding("python", "ok", text)


def _versions(installed: Installed) -> Iterator[Finding]:
    for requirement in _REQUIREMENTS:
        text = installed.version(requirement.name)
        name = requirement.name
        bounds = _bounds(requirement)
        if text is None:
            status: Status = "fail" if requirement.needed else "warn"
            extra = "" if requirement.needed else "; not needed to serve"
            yield Finding(name, status, f"not installed ({requirement.why}{extra})", 'pip install "mulle[all]"')
            continue
        version = _numbers(text)
        low = requirement.least is not None and version < requirement.least
        high = requirement.below is not None and version >= requirement.below
        if low or high:
            yield Finding(name, "fail", f"{text} does not fit: {requirement.why}", f'pip install "{name}{bounds}"')
        else:
            yield Finding(name, "ok", text)


def _bounds(requirement: _Requirement) -> str:
    parts: list[str] = []
    if requirement.least is not None:
        parts.append(">=" + ".".join(map(str, requirement.least)))
    if requirement.below is not None:
        parts.append("<" + ".".join(map(str, requirement.below)))
    return ",".join(parts)


def _numbers(version: str) -> tuple[int, ...]:
    match = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in match.group().split(".")) if match else ()


def _cores() -> Finding:
    n_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Finding(
        "cores", "ok" if n_cores > 1 else "warn", str(n_cores), "" if n_cores > 1 else "training and serving will share one core"
    )


def _memory() -> Finding:
    n_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = _cgroup_limit()
    usable = min(n_bytes, limit) if limit else n_bytes
    text = f"{usable / _GIB:.1f} GiB" + (f" (limited, of {n_bytes / _GIB:.1f})" if limit and limit < n_bytes else "")
    return (
        Finding("memory", "ok", text)
        if usable >= 2 * _GIB
        else Finding("memory", "warn", text, "2 GiB and more are needed to train comfortably")
    )


def _cgroup_limit() -> int | None:
    try:
        text = Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return None
    return int(text) if text.isdigit() else None


def _disk(project_dir: Path) -> Finding:
    folder = next(path for path in (project_dir.resolve(), *project_dir.resolve().parents) if path.exists())
    free = shutil.disk_usage(folder).free
    text = f"{free / _GIB:.1f} GiB free"
    if free < _GIB // 10:
        return Finding("disk", "fail", text, "free some space; `mulle gc` says what Mulle can give back")
    return Finding("disk", "ok", text) if free >= _GIB else Finding("disk", "warn", text, "`mulle gc` says what Mulle can give back")


def _git(project_dir: Path) -> Finding:
    program = shutil.which("git")
    if program is None:
        return Finding("git", "warn", "not installed: runs will not know their commit", "install git")
    done = subprocess.run(
        [program, "rev-parse", "HEAD"], cwd=project_dir if project_dir.is_dir() else None, capture_output=True, timeout=10, check=False
    )
    if done.returncode:
        return Finding("git", "warn", "no commit here: runs will not know their commit", "git init && git add . && git commit")
    return Finding("git", "ok", f"commit {done.stdout.decode('ascii', 'replace').strip()[:12]}")


def _writable(project_dir: Path) -> Finding:
    root = state_paths(project_dir).root
    folder = root if root.exists() else project_dir.resolve()
    if not folder.is_dir():
        return Finding("folder", "fail", f"there is no folder {str(project_dir)!r}", "name the project with --project DIR")
    probe = folder / f".mulle-doctor.{os.getpid()}"
    try:
        probe.write_bytes(b"x")
        probe.unlink()
    except OSError as error:
        return Finding("folder", "fail", f"{folder.name!r} cannot be written: {error.strerror}", "make it writable, or work on a copy")
    return Finding("folder", "ok", f"{folder.name!r} can be written")


def _signing_key() -> Finding:
    path = key_path()
    if not path.exists():
        return Finding("signing key", "ok", "none yet: made on the first run")
    try:
        mode = path.stat().st_mode & 0o777
        readable = os.access(path, os.R_OK)
    except OSError as error:
        return Finding("signing key", "fail", f"cannot be looked at: {error.strerror}", f"check {path}")
    if mode & 0o077:
        return Finding("signing key", "fail", f"can be read by others (mode {mode:o})", f"chmod 600 {path}")
    if not readable:
        return Finding("signing key", "fail", "cannot be read by you", f"chown it to yourself: {path}")
    return Finding("signing key", "ok", f"{path.name}, mode {mode:o}")


def _code(settings: Settings) -> Finding:
    try:
        code = ProjectCode(settings.project_dir, settings.project.code)
        for role in ("source", "features", "model"):
            if not code.functions.get(role):
                return Finding("project code", "fail", f"no function stands under @project.{role}", f"write one in {code.entry.label}")
        code.stage_code(("source", "expectations", "features", "model"), model=settings.train.model)
    except MulleError as error:
        return Finding("project code", "fail", error.what + (f" ({error.where})" if error.where else ""), error.fix)
    models = ", ".join(code.functions["model"])
    return Finding("project code", "ok", f"{len(code.modules)} files, models: {models}")


def _port(settings: Settings) -> Finding:
    port = settings.serving.port
    if port and _is_taken(settings.serving.host, port):
        return Finding("port", "warn", f"{port} is in use", "stop what uses it, or set port in [serving]")
    return Finding("port", "ok", f"{port} is free" if port else "any free one")


def _is_taken(host: str, port: int) -> bool:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return True
    return False
