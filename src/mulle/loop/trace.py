"""Follows one prediction back to its data: prediction, revision, model version, run, commit, data version.

Each link is looked up where it is kept and compared with what the link before says. What cannot be found is said to be
missing, with where it should have been; nothing is filled in from elsewhere.
"""

import subprocess
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal, cast

from mulle.core.canonical import is_digest
from mulle.core.errors import MulleError, SpecError
from mulle.formats.bundle import read_manifest
from mulle.formats.feedback_log import FeedbackItem, read_feedback, require_prediction_id
from mulle.formats.prediction_log import Prediction, find_prediction, was_sampled_out
from mulle.loop.paths import StatePaths
from mulle.loop.record import read_run
from mulle.loop.settings import Settings
from mulle.registry.fold import fold
from mulle.registry.versions import RegistryState, VersionRecord

LinkName = Literal["prediction", "revision", "bundle", "model version", "run", "commit", "data version", "feedback"]
_GIT_SECONDS = 10
_SECOND = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Link:
    """One station of the way back.

    Attributes:
        name: Which.
        status: `found`; `missing`: it should be there and is not; `contradicts`: it is there and says something else;
            `none`: there never was one (no feedback yet, no git).
        facts: What it says, label to plain value.
        note: Why it is missing, or what contradicts what.
    """

    name: LinkName
    status: Literal["found", "missing", "contradicts", "none"]
    facts: dict[str, Any] = field(default_factory=dict[str, Any])
    note: str = ""


@dataclass(frozen=True, slots=True)
class Trace:
    """A prediction and everything it came from."""

    prediction_id: str
    links: tuple[Link, ...]
    features: dict[str, Any]
    outputs: dict[str, float]
    redacted: tuple[str, ...] = ()

    @property
    def complete(self) -> bool:
        """Whether no link is missing or contradicted."""
        return all(link.status in {"found", "none"} for link in self.links)

    def link(self, name: LinkName) -> Link:
        """Return the link called `name`."""
        return next(link for link in self.links if link.name == name)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON."""
        return {
            "prediction_id": self.prediction_id,
            "complete": self.complete,
            "links": [{"name": link.name, "status": link.status, "note": link.note, "facts": link.facts} for link in self.links],
            "features": self.features,
            "outputs": self.outputs,
            "redacted": list(self.redacted),
        }

    def render_text(self) -> str:
        """Return the chain for a terminal, one link per line, then the feature values."""
        width = max(len(link.name) for link in self.links)
        lines = [f"{link.name:<{width}}  {_line(link)}" for link in self.links]
        lines.append("features")
        name_width = max((len(name) for name in self.features), default=0)
        lines += [f"  {name:<{name_width}}  {self._shown(name, value)}" for name, value in self.features.items()]
        return "\n".join(lines)

    def _shown(self, name: str, value: object) -> str:
        if name in self.redacted:
            return "(redacted)"
        return "(missing)" if value is None else repr(value)


def trace_prediction(settings: Settings, paths: StatePaths, prediction_id: str, *, deployment: str | None = None) -> Trace:
    """Return the way back from a prediction id.

    Args:
        settings: Which environment's event log to read.
        paths: The state folder.
        prediction_id: As it was answered.
        deployment: Where to look; by default in every deployment's log.

    Raises:
        SpecError: not a prediction id, or no such prediction is in the logs that are here.
    """
    require_prediction_id(prediction_id)
    found = find_prediction(paths.logs, prediction_id, deployment=deployment)
    if found is None and was_sampled_out(paths.logs, prediction_id, deployment=deployment):
        raise SpecError(
            "prediction-sampled-out",
            f"prediction {prediction_id!r} was answered, and is not in the log: only a sample is kept",
            fix="set sample = 1.0 under [serving.log] to keep every prediction",
        )
    if found is None:
        where = f"the log of {deployment!r}" if deployment else "any log of this project"
        raise SpecError(
            "prediction-unknown",
            f"there is no prediction {prediction_id!r} in {where}",
            fix="copy the id from the answer's mulle-prediction-id; retention may have removed the log (`mulle gc`)",
        )
    state, problem = _registry(settings, paths)
    record = _record(found, state)
    links = (
        _prediction(found),
        _revision(found, state, problem, settings.environment),
        _bundle(found, paths),
        _version(found, state, settings.environment, problem),
        _run(found, record, paths),
        _commit(settings, record),
        _data(record, paths),
        _feedback(found, paths),
    )
    return Trace(prediction_id, links, dict(found.features), dict(found.outputs), found.redacted)


def _registry(settings: Settings, paths: StatePaths) -> tuple[RegistryState | None, str]:
    if settings.backends.state is None and not paths.state_db.exists():
        return None, "there is no event log in this project"
    from mulle.loop.wiring import open_state

    try:
        store = open_state(settings)
        try:
            return fold(store.events()), ""
        finally:
            store.close()
    except MulleError as error:
        return None, f"the event log cannot be read: {error.what}"


def _record(found: Prediction, state: RegistryState | None) -> VersionRecord | None:
    return None if state is None else state.version(found.source.model, found.source.model_version)


def _prediction(found: Prediction) -> Link:
    facts: dict[str, Any] = {
        "time": iso_time(found.time_ns),
        "deployment": found.deployment,
        "status": found.status,
        "latency_ms": found.latency_us / 1000,
        "entity": "(redacted)" if found.source.entity in found.redacted else found.entity,
        "outputs": dict(found.outputs),
        "segment": found.segment,
    }
    return Link("prediction", "found", facts)


def _revision(found: Prediction, state: RegistryState | None, problem: str, environment: str) -> Link:
    source = found.source
    facts: dict[str, Any] = {"revision": source.revision, "deployment": found.deployment, "environment": environment}
    if state is None:
        return Link("revision", "missing", facts, problem)
    deployment = state.deployment(found.deployment, environment)
    revision = next((item for item in deployment.revisions if item.number == source.revision), None) if deployment else None
    if deployment is None or revision is None:
        return Link("revision", "missing", facts, f"the event log knows no revision {source.revision} of {found.deployment!r} here")
    if revision.bundle_digest != source.bundle_digest:
        note = f"the event log says revision {source.revision} is bundle {revision.bundle_digest[:12]}, the prediction says another"
        return Link("revision", "contradicts", facts, note)
    serving = deployment.champion == revision.model_version
    return Link("revision", "found", {**facts, "champion_now": serving, "generation_now": deployment.generation})


def _bundle(found: Prediction, paths: StatePaths) -> Link:
    digest = found.source.bundle_digest
    facts: dict[str, Any] = {"digest": digest, "task": found.source.task}
    if not is_digest(digest):
        return Link("bundle", "contradicts", facts, "the log does not name it by a digest")
    try:
        actual = read_manifest(paths.bundles / digest).digest()
    except MulleError as error:
        return Link("bundle", "missing", facts, f"not readable in .mulle/bundles: {error.what}")
    if actual != digest:
        return Link("bundle", "contradicts", facts, f"the folder of that name holds bundle {actual[:12]}")
    return Link("bundle", "found", facts)


def _version(found: Prediction, state: RegistryState | None, environment: str, problem: str) -> Link:
    record = _record(found, state)
    facts: dict[str, Any] = {"model": found.source.model, "version": found.source.model_version}
    if record is None:
        note = problem or f"the event log knows no version {found.source.model_version} of {found.source.model!r}"
        return Link("model version", "missing", facts, note)
    facts.update(outcome=record.outcome, registered=iso_time(record.created_ns), overridden_by=record.overridden_by or None)
    if record.bundle_digest != found.source.bundle_digest:
        note = f"the event log says it is bundle {record.bundle_digest[:12]}, the prediction says {found.source.bundle_digest[:12]}"
        return Link("model version", "contradicts", facts, note)
    aliases = state.aliases(record.model, environment) if state else {}
    return Link("model version", "found", {**facts, "aliases_now": [name for name, number in aliases.items() if number == record.number]})


def _run(found: Prediction, record: VersionRecord | None, paths: StatePaths) -> Link:
    run_id = record.run_id if record else found.source.run_id
    facts: dict[str, Any] = {"run_id": run_id, "mlflow_run_id": record.mlflow_run_id if record else ""}
    if record and found.source.run_id and record.run_id != found.source.run_id:
        return Link("run", "contradicts", facts, f"the prediction says run {found.source.run_id!r}, the event log {record.run_id!r}")
    if not run_id:
        return Link("run", "missing" if record is None else "none", facts, "no run is recorded (an adopted model has none)")
    try:
        document = read_run(paths.run_document(run_id))
    except MulleError as error:
        return Link("run", "contradicts", facts, error.what)
    if document is None:
        return Link("run", "missing", facts, "its document is not in .mulle/runs, or this version cannot read it")
    facts.update(status=document.status, started=document.started, finished=document.finished)
    return Link("run", "found", {**facts, "parameters": dict(record.parameters) if record else {}})


def _commit(settings: Settings, record: VersionRecord | None) -> Link:
    if record is None:
        return Link("commit", "missing", {}, "only the model version says it, and that is missing")
    if not record.git_commit:
        return Link("commit", "none", {}, "the project was not in git when it ran")
    commit = record.git_commit.removesuffix("-dirty")
    facts: dict[str, Any] = {"commit": commit, "dirty": record.git_commit != commit}
    if not commit.isalnum():
        return Link("commit", "contradicts", facts, "this is no commit")
    command = ["git", "-C", str(settings.project_dir), "show", "--no-patch", "--format=%s", commit, "--"]
    try:
        done = subprocess.run(command, capture_output=True, timeout=_GIT_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return Link("commit", "found", facts, "git did not answer, so its subject is not shown")
    if done.returncode != 0:
        return Link("commit", "missing", facts, "the event log names it, and this clone does not have it: git fetch")
    note = "files had been changed after that commit: the code that ran is not all in git" if facts["dirty"] else ""
    return Link("commit", "found", {**facts, "subject": done.stdout.decode("utf-8", "replace").strip()[:200]}, note)


def _data(record: VersionRecord | None, paths: StatePaths) -> Link:
    if record is None:
        return Link("data version", "missing", {}, "only the model version says it, and that is missing")
    facts: dict[str, Any] = {"dataset": record.dataset, "digest": record.dataset_digest}
    if not record.dataset_digest:
        return Link("data version", "none", facts, "no data version is recorded (an adopted model has none)")
    from mulle.data.dataset import read_dataset_info

    try:
        version = read_dataset_info(paths.datasets, record.dataset, record.dataset_digest)
    except MulleError as error:
        return Link("data version", "missing", facts, f"not readable in .mulle/datasets: {error.what}")
    if version.digest != record.dataset_digest:
        return Link("data version", "contradicts", facts, f"the folder of that name holds {version.digest[:12]}")
    span = None if version.time_range is None else " … ".join(version.time_range)
    return Link("data version", "found", {**facts, "rows": version.n_rows, "columns": len(version.schema), "time_range": span})


def _feedback(found: Prediction, paths: StatePaths) -> Link:
    try:
        items = [item for item in read_feedback(paths.logs, found.deployment).items if item.prediction_id == found.id]
    except MulleError as error:
        return Link("feedback", "missing", {}, f"the feedback log cannot be read: {error.what}")
    if not items:
        return Link("feedback", "none", {}, "none has arrived")
    return Link("feedback", "found", {**_last_per_kind(items), "n_received": len(items)})


def _last_per_kind(items: Iterable[FeedbackItem]) -> dict[str, Any]:
    last = {item.kind: item for item in items}
    facts: dict[str, Any] = {}
    for kind, item in last.items():
        facts[kind] = item.value
        facts[f"{kind}_received"] = iso_time(item.time_ns)
    return facts


def iso_time(time_ns: int) -> str:
    """Return a moment as ISO time in UTC, to the millisecond."""
    moment = datetime.fromtimestamp(time_ns // _SECOND, UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{time_ns % _SECOND // 1_000_000:03d}Z"


def _line(link: Link) -> str:
    mark = {"found": "", "missing": "MISSING: ", "contradicts": "CONTRADICTION: ", "none": "none: "}[link.status]
    said = ", ".join(f"{label} {_short(value)}" for label, value in link.facts.items() if value not in ("", None, [], {}))
    return f"{mark}{link.note}{' (' + said + ')' if said else ''}" if mark else f"{said}{'; ' + link.note if link.note else ''}"


def _short(value: Any) -> str:
    if isinstance(value, dict):
        entries = cast("dict[str, Any]", value)
        return ", ".join(f"{name}={_short(item)}" for name, item in entries.items())
    if isinstance(value, list):
        return "+".join(map(str, cast("list[Any]", value)))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
