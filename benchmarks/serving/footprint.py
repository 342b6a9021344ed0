"""Start to first answer, memory, and what the smallest install weighs."""

import shutil
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from load import tree_memory_mib
from measure import ROOT, SkippedError
from venvs import FOLDER, install

from serving.fleet import Contestant, Server
from serving.rounds import summary

MIB = 1 << 20


def cold_starts(contestants: Sequence[Contestant], folder: Path, *, rounds: int) -> tuple[dict[str, Any], dict[str, str]]:
    """Return rows of fresh starts, taken in turns, and who could not be started."""
    found: dict[str, list[tuple[float, float, float]]] = {}
    skipped: dict[str, str] = {}
    for _ in range(rounds):
        for one in contestants:
            if one.name in skipped:
                continue
            try:
                server = Server(one, folder)
            except SkippedError as reason:
                skipped[one.name] = str(reason)
                continue
            try:
                found.setdefault(one.name, []).append((server.cold_start_s, server.start_cpu_s, tree_memory_mib(server.pid)))
            finally:
                server.stop()
    keys = ("cold_start_s", "start_cpu_s", "memory_mib")
    rows = {name: {key: summary(values) for key, values in zip(keys, zip(*runs, strict=True), strict=True)} for name, runs in found.items()}
    return rows, skipped


def installed_sizes(venvs: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """Return rows with the size of a fresh environment that has only what `mulle serve` needs, and of the peers' that are there.

    Raises:
        SkippedError: ours cannot be installed.
    """
    folder = Path(tempfile.mkdtemp(prefix="mulle-install-"))
    rows: dict[str, Any] = {}
    try:
        install(folder / "venv", [str(ROOT)], "--compile-bytecode")
        whole, code = tree_bytes(folder / "venv"), tree_bytes(folder / "venv", "*.pyc")
        rows["mulle (base dependencies only)"] = {"size_mb": summary([whole / 1e6]), "bare_mb": summary([(whole - code) / 1e6])}
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    for name, venv in venvs:
        if (FOLDER / venv / ".installed").exists():
            bare = tree_bytes(FOLDER / venv) - tree_bytes(FOLDER / venv, "*.pyc")
            rows[f"{name}, its benchmark environment"] = {"bare_mb": summary([bare / 1e6])}
    return rows


def tree_bytes(folder: Path, pattern: str = "*") -> int:
    """Return the bytes the files in a folder occupy on disk, those whose name fits."""
    total = 0
    for path in folder.rglob(pattern):
        with suppress(OSError):
            if not path.is_symlink() and path.is_file():
                total += path.stat().st_blocks * 512
    return total
