"""`mulle gc`: what retention lets go, planned before anything is touched.

Never in the plan: whatever the event log, a deployment spec or a kept run mentions. "Mentions" is taken literally: every
text in those documents counts, so that a kind of event added later protects what it names without a change here. When a
document cannot be read, nothing is removed.
"""

import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import msgspec

from mulle.core.errors import CheckError, MulleError
from mulle.formats.envelope import read_limited
from mulle.loop.cache import StageCache
from mulle.loop.paths import StatePaths, folder_unwritable
from mulle.loop.record import RunDocument, iso, read_record, read_run
from mulle.loop.settings import Settings

_DAY_NS = 86_400 * 10**9
_MAX_DOCUMENT_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Candidate:
    """One file or folder that would be removed.

    Attributes:
        path: Absolute, inside the state folder.
        n_bytes: What it takes.
        kind: `stage result`, `run`, `dataset`, `bundle`, `prediction log`, `leftover`.
        reason: Why nothing needs it.
    """

    path: Path
    n_bytes: int
    kind: str
    reason: str


@dataclass(frozen=True, slots=True)
class GcPlan:
    """What would be removed, and what that frees."""

    candidates: tuple[Candidate, ...]

    @property
    def n_bytes(self) -> int:
        """Bytes that would be freed."""
        return sum(candidate.n_bytes for candidate in self.candidates)

    def to_dict(self, root: Path) -> dict[str, Any]:
        """Return plain JSON, paths relative to `root`."""
        return {
            "n_bytes": self.n_bytes,
            "candidates": [
                {"path": str(c.path.relative_to(root)), "n_bytes": c.n_bytes, "kind": c.kind, "reason": c.reason} for c in self.candidates
            ],
        }


def plan_gc(settings: Settings, paths: StatePaths, *, events: Iterable[object], now_ns: int) -> GcPlan:
    """Return what retention lets go.

    Args:
        settings: `[retention]` says how much is kept.
        paths: The project's state folder.
        events: Every event of the log, as plain values or structs.
        now_ns: Nanoseconds since 1970-01-01 UTC.

    Raises:
        CheckError: a deployment spec or a run's document cannot be read: what it refers to is unknown.
    """
    if not paths.root.is_dir():
        return GcPlan(())
    named = set(_texts([msgspec.to_builtins(event) for event in events]))
    for spec in sorted(paths.serving.rglob("*.json")) if paths.serving.is_dir() else ():
        named.update(_texts(_json(spec)))
    runs = _runs(paths)
    kept = _kept_runs(runs, settings, named, now_ns)
    results = {(entry.stage, entry.key) for run_id in kept for entry in runs[run_id].stages if entry.key}
    found: list[Candidate] = [_candidate(path, "leftover", "its run was killed") for path in _children(paths.stage_drafts)]
    cache = StageCache(paths)
    for stage, key, folder in cache.entries():
        if (stage, key) in results:
            record = read_record(folder)
            named.update(_texts(msgspec.to_builtins(record)) if record is not None else ())
        else:
            found.append(_candidate(folder, "stage result", "no kept run uses it"))
    for run_id in sorted(set(runs) - kept):
        found.append(_candidate(paths.run_document(run_id), "run", "older than retention"))
        if (paths.runs / run_id).exists():
            found.append(_candidate(paths.runs / run_id, "run", "older than retention"))
    for dataset in _children(paths.datasets):
        found += [
            _candidate(path, "dataset", "no kept run, version or spec names it") for path in _children(dataset) if path.name not in named
        ]
    found += [
        _candidate(path, "bundle", "no version, spec or kept run names it") for path in _children(paths.bundles) if path.name not in named
    ]
    shipped_only = settings.serving.log.sink is not None
    found += _old_logs(paths, now_ns - settings.retention.logs_days * _DAY_NS, shipped_only=shipped_only)
    return GcPlan(tuple(found))


def collect(plan: GcPlan, paths: StatePaths) -> int:
    """Remove what the plan names and return the bytes freed. Hold the run lock around plan and removal.

    Raises:
        UnavailableError: something cannot be removed; the rest stays for the next time.
    """
    root = paths.root.resolve()
    freed = 0
    for candidate in plan.candidates:
        path = candidate.path
        if path.is_symlink() or not path.resolve().is_relative_to(root):
            continue  # never follow a link out of the state folder
        try:
            if path.is_dir():
                # Renamed first: a kill in between leaves a leftover for the next sweep, never half a result.
                paths.stage_drafts.mkdir(parents=True, exist_ok=True)
                trash = paths.stage_drafts / f"gc.{os.getpid()}.{path.name}"
                path.rename(trash)
                shutil.rmtree(trash)
            else:
                path.unlink(missing_ok=True)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise folder_unwritable(path.parent, error) from error
        freed += candidate.n_bytes
    return freed


def _kept_runs(runs: Mapping[str, RunDocument], settings: Settings, named: set[str], now_ns: int) -> set[str]:
    newest = sorted(runs, key=lambda run_id: (runs[run_id].started, run_id), reverse=True)
    # Counted apart: a row of failures must not push the last whole run out.
    done = [run_id for run_id in newest if runs[run_id].status == "done"]
    kept = {*newest[: settings.retention.keep_runs], *done[: settings.retention.keep_runs]}
    edge = iso(max(0, now_ns - settings.retention.keep_days * _DAY_NS))
    kept |= {run_id for run_id in runs if runs[run_id].started >= edge}
    kept |= {run_id for run_id in runs if run_id in named}
    # What a kept run took from the cache was made by another run: its log explains the result.
    return kept | {entry.made_by for run_id in list(kept) for entry in runs[run_id].stages if entry.made_by in runs}


def _runs(paths: StatePaths) -> dict[str, RunDocument]:
    found: dict[str, RunDocument] = {}
    for path in _children(paths.runs):
        if path.suffix == ".json" and not path.name.startswith("."):
            document = read_run(path)
            if document is None:
                raise CheckError(
                    "gc-unreadable",
                    f"{path.name!r} cannot be read, so what it needs is unknown",
                    fix="restore or remove that file",
                    where=str(path),
                )
            found[document.run_id] = document
    return found


def _json(path: Path) -> object:
    try:
        return msgspec.json.decode(read_limited(path, max_bytes=_MAX_DOCUMENT_BYTES))
    except (MulleError, ValueError, msgspec.DecodeError) as error:
        raise CheckError(
            "gc-unreadable",
            f"{path.name!r} cannot be read, so what it needs is unknown: {error}",
            fix="restore or remove that file",
            where=str(path),
        ) from error


def _old_logs(paths: StatePaths, edge_ns: int, *, shipped_only: bool) -> list[Candidate]:
    """Return log files whose last change is older than the edge; folders, and what a sink does not hold yet, stay."""
    found: list[Candidate] = []
    for base, _, names in os.walk(paths.logs):
        for name in sorted(names):
            path = Path(base) / name
            waits = name.startswith("predictions-") and name.endswith((".mseg", ".mcol")) and f"{name}.shipped" not in names
            if shipped_only and waits:
                continue
            with suppress(OSError):
                if path.lstat().st_mtime_ns < edge_ns:
                    found.append(_candidate(path, "prediction log", "older than logs_days"))
    return found


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
        # A path or an address mentions its last part too: `bundles/<digest>`.
        yield from (part for part in value.replace("\\", "/").split("/") if part and part != value)
    elif isinstance(value, Mapping):
        for key, inner in cast("Mapping[object, object]", value).items():
            yield from _texts(key)
            yield from _texts(inner)
    elif isinstance(value, (list, tuple)):
        for inner in cast("list[object]", value):
            yield from _texts(inner)


def _candidate(path: Path, kind: str, reason: str) -> Candidate:
    return Candidate(path, size_bytes(path), kind, reason)


def size_bytes(path: Path) -> int:
    """Return the bytes of a file, or of everything below a folder; links are not followed."""
    if not path.is_dir() or path.is_symlink():
        try:
            return path.lstat().st_size
        except OSError:
            return 0
    total = 0
    for base, _, names in os.walk(path):
        for name in names:
            with suppress(OSError):
                total += (Path(base) / name).lstat().st_size
    return total


def _children(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []
