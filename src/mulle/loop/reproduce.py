"""`mulle models reproduce`: a version is made again from its commit, data version and seed, and laid beside itself.

The answer is one of three. `identical`: the same digest, so the same graph, schema, baseline and golden requests to the
byte; promised only for the same lock file, platform and number of threads. `equivalent`: another digest, but the same
interface and scores within 1e-4 on every row of the data version. `different`: anything else. What differs is listed.
"""

import io
import json
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from mulle.core.dataset import DatasetVersion
from mulle.core.errors import SpecError
from mulle.formats.bundle import ATTESTATIONS, Manifest, verify_bundle
from mulle.loop.paths import StatePaths
from mulle.loop.plan import RunOptions
from mulle.loop.progress import Progress, SilentProgress
from mulle.loop.run import Runner
from mulle.loop.settings import Settings, load_settings
from mulle.loop.stage import Stage, StageContext, StageResult
from mulle.loop.stages import STAGES
from mulle.loop.stages.files import DATASET, read_json, write_json
from mulle.loop.stages.seal import BUNDLE
from mulle.loop.wiring import SystemClock, open_project, open_state

SCORE_TOLERANCE = 1e-4
_GIT_TIMEOUT_S = 60
_MAX_SHOWN = 12

Answer = Literal["identical", "equivalent", "different"]


@dataclass(frozen=True, slots=True)
class Reproduction:
    """What making a version again gave.

    Attributes:
        answer: See the module's text.
        version: The version's number.
        digest: The recorded bundle's digest.
        again: The digest of the bundle made now.
        max_difference: Largest difference of any score on any row of the data version; None when they cannot be compared.
        differences: What differs, one phrase each; empty when identical.
        environment: Distribution, Python or platform to (then, now), where they differ.
        folder: Where it was made, when it was kept.
    """

    answer: Answer
    version: int
    digest: str
    again: str
    max_difference: float | None
    differences: tuple[str, ...]
    environment: Mapping[str, tuple[str, str]]
    folder: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON."""
        return {
            "answer": self.answer,
            "version": self.version,
            "digest": self.digest,
            "again": self.again,
            "max_difference": self.max_difference,
            "differences": list(self.differences),
            "environment": {name: {"then": then, "now": now} for name, (then, now) in self.environment.items()},
            "folder": self.folder,
        }


def reproduce_version(
    project_dir: Path, environment: str, version: int, *, keep: bool = False, progress: Progress | None = None
) -> Reproduction:
    """Return what making `version` again in a clean folder gives.

    Args:
        project_dir: The project.
        environment: Whose registry is asked; the work itself uses local backends.
        version: The number.
        keep: Leave the clean folder behind.
        progress: Told what happens.

    Raises:
        SpecError: no such version, no clean commit recorded, or the commit or the data version is gone.
        CheckError: the recorded bundle was changed.
    """
    from mulle.loop.release import load_state, resolve_bundle

    settings, paths = open_project(project_dir, environment)
    recorded = load_state(open_state(settings)).require_version(settings.project.name, version)
    if not recorded.git_commit or recorded.git_commit.endswith("-dirty"):
        state = "files that were not committed" if recorded.git_commit else "code outside git"
        raise SpecError(
            "reproduce-no-commit",
            f"version {version} was made from {state}: nobody can say what that code was",
            fix="commit the project (git add -A; git commit) before the next change: versions registered from then on can be made again",
            where=str(settings.project_dir),
        )
    folder = resolve_bundle(paths.root, recorded)
    manifest = verify_bundle(folder, digest=recorded.bundle_digest)
    clean = Path(tempfile.mkdtemp(prefix="mulle-reproduce-"))
    try:
        _check_out(settings.project_dir, recorded.git_commit, clean)
        _copy_dataset(paths, StatePaths(clean / ".mulle").ensure(), recorded.dataset, recorded.dataset_digest)
        made = _make(load_settings(clean, "local"), recorded.dataset, recorded.dataset_digest, progress or SilentProgress())
        return _compare(version, folder, manifest, made, StatePaths(clean / ".mulle"), str(clean) if keep else "")
    finally:
        if not keep:
            shutil.rmtree(clean, ignore_errors=True)


def recorded_snapshot(context: StageContext) -> StageResult:
    """Stand in for the snapshot stage: the data version is the recorded one, whatever the source says today."""
    from mulle.data.dataset import read_dataset_info

    version: DatasetVersion = read_dataset_info(
        StatePaths(context.state_dir).datasets, context.parameters["name"], context.parameters["digest"]
    )
    write_json(context.output / DATASET, version.to_dict())
    return StageResult(outputs={"dataset": version.digest}, facts={"rows": version.n_rows})


def _make(settings: Settings, dataset: str, digest: str, progress: Progress) -> Path:
    """Return the bundle that the checked-out code makes of the recorded data version."""

    def recorded(_: Settings) -> dict[str, str]:
        return {"name": dataset, "digest": digest}

    stand_in = replace(
        next(stage for stage in STAGES if stage.name == "snapshot"),
        run="mulle.loop.reproduce:recorded_snapshot",
        roots=(),
        settings=recorded,
        source=False,
    )
    stages: tuple[Stage, ...] = (stand_in, *(stage for stage in STAGES if stage.name not in {"snapshot", "register"}))
    override = {"actor": "mulle", "reason": "made again for comparison; gates are not asked"}
    report = Runner(settings, stages, SystemClock(), progress=progress).run(RunOptions(override=override))
    return StatePaths(settings.project_dir / ".mulle").root / read_json(report.folders["seal"] / BUNDLE)["path"]


def _check_out(project_dir: Path, commit: str, target: Path) -> None:
    command = ["git", "-C", str(project_dir), "archive", "--format=tar", commit, "."]
    try:
        done = subprocess.run(command, capture_output=True, timeout=_GIT_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SpecError(
            "reproduce-git", f"git does not answer: {error}", fix="install git, or try again", where=str(project_dir)
        ) from error
    if done.returncode != 0:
        raise SpecError(
            "reproduce-git",
            f"the commit {commit[:12]} cannot be read: {done.stderr.decode('utf-8', 'replace').strip()[:200]}",
            fix="fetch the commit (git fetch --unshallow), or work in a clone that has it",
            where=str(project_dir),
        )
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        archive.extractall(target, filter="data")


def _copy_dataset(source: StatePaths, target: StatePaths, name: str, digest: str) -> None:
    folder = source.datasets / name / digest
    if not folder.is_dir():
        raise SpecError(
            "reproduce-no-dataset",
            f"the data version {digest[:12]} of {name!r} is not kept here any more",
            fix="restore `.mulle/datasets` from a backup; `mulle gc` keeps what registered versions were made of",
            where=str(folder),
        )
    shutil.copytree(folder, target.datasets / name / digest)


def _compare(version: int, folder: Path, manifest: Manifest, made: Path, paths: StatePaths, kept: str) -> Reproduction:
    again = verify_bundle(made)
    environment = _environment_changes(folder, made)
    if again.digest() == manifest.digest():
        return Reproduction("identical", version, manifest.digest(), again.digest(), 0.0, (), environment, kept)
    differences = _manifest_differences(manifest, again)
    same_interface = (manifest.columns, manifest.graph.inputs, manifest.classes, manifest.task) == (
        again.columns,
        again.graph.inputs,
        again.classes,
        again.task,
    )
    largest = _largest_difference(folder, manifest, made, again, paths) if same_interface else None
    answer: Answer = "equivalent" if largest is not None and largest <= SCORE_TOLERANCE else "different"
    return Reproduction(answer, version, manifest.digest(), again.digest(), largest, differences, environment, kept)


def _manifest_differences(a: Manifest, b: Manifest) -> tuple[str, ...]:
    found = [
        f"{name}: {getattr(a, name)!r} → {getattr(b, name)!r}"[:200]
        for name in ("task", "classes", "positive", "threshold")
        if getattr(a, name) != getattr(b, name)
    ]
    if a.columns != b.columns:
        found.append("columns: names, types, ranges or categories differ")
    found += [f"{name}: other bytes" for name in sorted({*a.files, *b.files}) if a.files.get(name) != b.files.get(name)]
    return tuple(found[:_MAX_SHOWN])


def _largest_difference(folder: Path, a: Manifest, made: Path, b: Manifest, paths: StatePaths) -> float:
    import numpy as np

    from mulle.data.arrays import to_arrays
    from mulle.data.dataset import load_dataset
    from mulle.loop.stages.export import score_with

    name, digest = next((d.parent.name, d.name) for d in sorted(paths.datasets.glob("*/*")) if d.is_dir())
    rows = load_dataset(paths.datasets, name, digest)
    arrays = to_arrays(rows, a.schema)
    return float(np.abs(score_with(folder, a, arrays) - score_with(made, b, arrays)).max())


def _environment_changes(then: Path, now: Path) -> dict[str, tuple[str, str]]:
    """Return what the two run records say differently about where they ran."""
    before, after = (_environment(folder) for folder in (then, now))
    changes = {
        key: (str(before.get(key)), str(after.get(key))) for key in ("python", "platform", "cpu_count") if before.get(key) != after.get(key)
    }
    old, new = before.get("distributions", {}), after.get("distributions", {})
    changes.update({name: (old[name], new[name]) for name in sorted(old) if name in new and old[name] != new[name]})
    return changes


def _environment(folder: Path) -> dict[str, Any]:
    try:
        return json.loads((folder / ATTESTATIONS / "run.json").read_bytes())["environment"]
    except (OSError, ValueError, KeyError):
        return {}
