"""What a server costs while it is asked: CPU and memory of a process and its descendants, from /proc (Linux; elsewhere nothing)."""

import os
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")
_LISTENING = "0A"
_STATE, _LOCAL, _INODE = 3, 1, 9


@dataclass(frozen=True, slots=True)
class Usage:
    """What a process tree has used.

    Attributes:
        cpu_s: CPU seconds since each process began, ended children included.
        memory_bytes: Resident memory, pages that processes share counted once (PSS) where the kernel tells.
        n_processes: Processes of the tree.
    """

    cpu_s: float
    memory_bytes: int
    n_processes: int


def tree_of(pid: int) -> list[int]:
    """Return `pid` and all its descendants; empty where there is no such process, or no /proc."""
    if not (_PROC / str(pid)).is_dir():
        return []
    found = [pid]
    for one in found:
        for task in (_PROC / str(one) / "task").glob("*/children"):
            found += [int(child) for child in _read(task).split()]
    return found


def read_usage(pid: int) -> Usage | None:
    """Return what the tree of `pid` has used until now; None where that cannot be known."""
    pids = tree_of(pid)
    if not pids:
        return None
    ticks = 0
    for one in pids:
        fields = _read(_PROC / str(one) / "stat").rpartition(")")[2].split()
        # User, system, and both of children that ended and were waited for: a replaced worker's time is not lost.
        ticks += sum(map(int, fields[11:15]))
    return Usage(ticks / os.sysconf("SC_CLK_TCK"), sum(map(_memory, pids)), len(pids))


def listener_of(port: int) -> int | None:
    """Return the process that listens on TCP `port` of this machine: the oldest of a family that shares it; None if unknown.

    Other users' processes cannot be looked into.
    """
    inodes: set[str] = set()
    for table in ("tcp", "tcp6"):
        for line in _read(_PROC / "net" / table).splitlines()[1:]:
            fields = line.split()
            if fields[_STATE] == _LISTENING and int(fields[_LOCAL].rpartition(":")[2], 16) == port:
                inodes.add(f"socket:[{fields[_INODE]}]")
    if not inodes:
        return None
    holders = {int(folder.name) for folder in _PROC.glob("[0-9]*") if _holds(folder, inodes)}
    # A supervisor and its workers hold the same socket: the one whose parent does not is the root.
    roots = [pid for pid in holders if _parent(pid) not in holders]
    return min(roots, default=None)


def _holds(folder: Path, inodes: set[str]) -> bool:
    try:
        return any(_link(entry) in inodes for entry in (folder / "fd").iterdir())
    except OSError:
        return False


def _link(entry: Path) -> str:
    try:
        return str(entry.readlink())
    except OSError:
        return ""


def _parent(pid: int) -> int:
    fields = _read(_PROC / str(pid) / "stat").rpartition(")")[2].split()
    return int(fields[1]) if len(fields) > 1 else 0


def _memory(pid: int) -> int:
    for name, label in (("smaps_rollup", "Pss:"), ("status", "VmRSS:")):
        for line in _read(_PROC / str(pid) / name).splitlines():
            if line.startswith(label):
                return int(line.split()[1]) * 1024
    return 0


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        # It ended meanwhile, or belongs to somebody else.
        return ""
