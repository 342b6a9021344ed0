"""Where and with what a run happened: commit, Python, machine, and the distributions it really used."""

import os
import platform
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path

GIT_TIMEOUT_S = 10


@dataclass(frozen=True, slots=True)
class Commit:
    """The commit a folder is at, and whether tracked or new files differ from it."""

    digest: str
    dirty: bool


@dataclass(frozen=True, slots=True)
class Environment:
    """The facts that decide whether a run can be repeated to the bit.

    Attributes:
        commit: None outside git, before the first commit, or without git.
        python: `3.11.2`.
        platform: Operating system, release and processor.
        cpu_count: Processors this process may use.
        distributions: Name to version of what the run imported.
    """

    commit: Commit | None
    python: str
    platform: str
    cpu_count: int
    distributions: dict[str, str]

    def to_dict(self) -> dict[str, object]:
        """Return plain JSON."""
        return {
            "commit": None if self.commit is None else self.commit.digest,
            "dirty": None if self.commit is None else self.commit.dirty,
            "python": self.python,
            "platform": self.platform,
            "cpu_count": self.cpu_count,
            "distributions": dict(sorted(self.distributions.items())),
        }


def describe_environment(folder: Path) -> Environment:
    """Return the environment of this process, and the commit of `folder`."""
    return Environment(
        commit=read_commit(folder),
        python=platform.python_version(),
        platform=platform.platform(),
        cpu_count=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        distributions=used_distributions(sys.modules),
    )


def read_commit(folder: Path) -> Commit | None:
    """Return the commit `folder` is at; None without git, outside a repository, or before the first commit."""
    digest = _git(folder, "rev-parse", "--verify", "--quiet", "HEAD")
    if not digest:
        return None
    # Only the project's own folder counts: a repository may hold many projects.
    changes = _git(folder, "status", "--porcelain", "--untracked-files=normal", "--", ".")
    return Commit(digest, dirty=changes is None or changes != "")


def used_distributions(modules: Iterable[str]) -> dict[str, str]:
    """Return distribution name to version for every top-level module among `modules` that a distribution provides."""
    providers = _providers()
    tops = {name.partition(".")[0] for name in modules}
    names = {distribution for top in tops for distribution in providers.get(top, ())}
    return {name: metadata.version(name) for name in sorted(names)}


@cache
def _providers() -> Mapping[str, list[str]]:
    return metadata.packages_distributions()


def _git(folder: Path, *arguments: str) -> str | None:
    # Hooks and watchers of the user's own configuration have no business in a run.
    command = ["git", "-c", "core.fsmonitor=false", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, timeout=GIT_TIMEOUT_S, check=False, encoding="utf-8", errors="replace")
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
