"""Registering, promoting, rolling back, comparing, verifying: what `mulle run` and `mulle models` do to the registry.

Reading, deciding and appending are apart: the decision is made on a state with a known head and is recorded only if
the head has not moved. When it has, but nothing that the decision stood on, it is made again; else `ConflictError`.
"""

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from mulle.core.canonical import is_digest
from mulle.core.errors import ConflictError, MulleError, SpecError
from mulle.formats.bundle import Manifest
from mulle.formats.bundle_trust import load_trusted_bundle, read_bundle_signature
from mulle.formats.events import Event, EventDraft, verify_chain
from mulle.loop.outbox import DrainReport, Outbox
from mulle.registry.decide import Target, Who, decide_promotion, decide_registration, decide_rollback
from mulle.registry.fold import fold
from mulle.registry.state import StateStore
from mulle.registry.versions import Deployment, RegistryState, VersionRecord

_ATTEMPTS = 20
_LOWER_IS_BETTER = ("log_loss", "brier", "rmse", "mae", "mape", "ece", "calibration", "latency", "size")


@dataclass(frozen=True, slots=True)
class Registered:
    """What registering did.

    Attributes:
        version: The version, new or the one that was there.
        created: Whether it is new.
        alias: `champion`, `challenger`, or empty when it is neither.
        deployment: The deployment afterwards.
    """

    version: VersionRecord
    created: bool
    alias: str
    deployment: Deployment | None

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON."""
        return {"version": self.version.to_dict(), "created": self.created, "alias": self.alias}


@dataclass(frozen=True, slots=True)
class Move:
    """What promoting or rolling back did: the champion before and after, and whether anything changed."""

    deployment: Deployment
    before: int | None
    after: int
    changed: bool

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON."""
        return {
            "deployment": self.deployment.name,
            "environment": self.deployment.environment,
            "model": self.deployment.model,
            "champion_before": self.before,
            "champion": self.after,
            "challenger": self.deployment.challenger,
            "generation": self.deployment.generation,
            "changed": self.changed,
        }


def load_state(store: StateStore) -> RegistryState:
    """Return what the event log adds up to now."""
    return fold(store.events())


def register_version(store: StateStore, record: VersionRecord, target: Target, who: Who, *, override: bool = False) -> Registered:
    """Return the registered version; safe to call again, and by several processes at once.

    Args:
        store: The event log.
        record: The version; `number`, `created_ns` and `overridden_by` are filled in.
        target: The deployment it is meant for; made on the way.
        who: Who registers it, when, and (with `override`) why.
        override: Register it although its verdict is not `pass`.

    Raises:
        SpecError: the verdict is not `pass` and nobody overrides it; a malformed digest; the deployment serves another model.
        ConflictError: others kept writing.
    """
    if not is_digest(record.bundle_digest):
        raise SpecError("version-digest", f"{record.bundle_digest[:80]!r} is not a bundle's digest", fix="seal the bundle first")
    number = 0

    def decide(state: RegistryState) -> tuple[EventDraft, ...]:
        nonlocal number
        number, drafts = decide_registration(state, record, target, who, override=override)
        return drafts

    state, events = _commit(store, decide, lambda _: None)
    deployment = state.deployment(target.deployment, target.environment)
    alias = ""
    if deployment is not None:
        alias = "champion" if deployment.champion == number else "challenger" if deployment.challenger == number else ""
    created = any(event.kind == "version-registered" for event in events)
    return Registered(state.require_version(record.model, number), created, alias, deployment)


def promote(store: StateStore, number: int, target: Target, who: Who, *, verify: Callable[[VersionRecord], object] | None = None) -> Move:
    """Return the move that made version `number` the champion; nothing changes if it is.

    Args:
        store: The event log.
        number: The version.
        target: Which deployment, and the model it serves.
        who: Who promotes, when, why.
        verify: Called with the version before anything is recorded; raises if its bundle must not be served.

    Raises:
        SpecError: no such version, or one that never passed.
        ConflictError: somebody moved this deployment in the meantime.
        CheckError: from `verify`.
    """
    return _move(store, lambda state: decide_promotion(state, number, target, who), lambda _: number, target, verify)


def rollback(store: StateStore, target: Target, who: Who, *, verify: Callable[[VersionRecord], object] | None = None) -> Move:
    """Return the move back to the champion before the current one.

    Raises:
        SpecError: no such deployment, or no earlier champion.
        ConflictError: somebody moved this deployment in the meantime.
        CheckError: from `verify`.
    """

    def goal(state: RegistryState) -> int | None:
        deployment = state.deployment(target.deployment, target.environment)
        return deployment.previous[-1] if deployment is not None and deployment.previous else None

    return _move(store, lambda state: decide_rollback(state, target, who), goal, target, verify)


def rebuild_projections(store: StateStore, outbox: Outbox) -> DrainReport:
    """Return what was written after every projection was thrown away; the chain is verified before.

    Raises:
        CheckError: the log was tampered with: nothing is rebuilt from it.
    """
    verify_chain(store.events())
    return outbox.rebuild()


def resolve_bundle(state_root: Path, version: VersionRecord) -> Path:
    """Return the folder of a version's bundle; a relative path starts at the state folder and stays in it.

    Raises:
        SpecError: the recorded path leaves the state folder, or nothing is there.
    """
    path = Path(version.bundle_path)
    folder = path if path.is_absolute() else (state_root / path).resolve()
    if not path.is_absolute() and not folder.is_relative_to(state_root.resolve()):
        raise SpecError(
            "version-path", f"the bundle of version {version.number} is said to lie at {version.bundle_path!r}", fix="mulle events verify"
        )
    if not folder.is_dir():
        raise SpecError(
            "bundle-missing",
            f"the bundle of version {version.number} of {version.model!r} is not there",
            fix="mulle run --from seal (the present recipe, to the same digest); older ones come from a backup of .mulle/bundles",
            where=str(folder),
        )
    return folder


def require_servable(state_root: Path, version: VersionRecord, trusted: Collection[str]) -> Manifest:
    """Return the manifest of a version's bundle after digests and signature were verified.

    Raises:
        SpecError: the bundle is not there.
        CheckError: a file was changed (named), or nobody trusted signed it.
    """
    return load_trusted_bundle(resolve_bundle(state_root, version), trusted=trusted, digest=version.bundle_digest)


@dataclass(frozen=True, slots=True)
class Verification:
    """What verifying a version found.

    Attributes:
        ok: Whether every byte is the sealed one and the signature is of a trusted key.
        problem: The error that was found first.
        signed_by: The public key beside the bundle.
        files: The files the digest covers.
    """

    version: VersionRecord
    ok: bool
    problem: MulleError | None
    signed_by: str
    files: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON."""
        return {
            "model": self.version.model,
            "version": self.version.number,
            "bundle": self.version.bundle_digest,
            "ok": self.ok,
            "signed_by": self.signed_by,
            "files": list(self.files),
            "problem": None if self.problem is None else self.problem.to_dict(),
        }


def verify_version(state_root: Path, version: VersionRecord, trusted: Collection[str]) -> Verification:
    """Return whether the bundle of a version is the one that was sealed; the tampered file is named."""
    try:
        manifest = require_servable(state_root, version, trusted)
    except MulleError as error:
        return Verification(version, ok=False, problem=error, signed_by="", files=())
    signed_by = read_bundle_signature(resolve_bundle(state_root, version)).key
    return Verification(version, ok=True, problem=None, signed_by=signed_by, files=("bundle.json", *sorted(manifest.files)))


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a comparison: what, the values of both versions, and what the difference means."""

    group: str
    name: str
    a: Any
    b: Any
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON."""
        return {"group": self.group, "name": self.name, "a": self.a, "b": self.b, "same": self.a == self.b, "note": self.note}


def compare_versions(state: RegistryState, model: str, a: int, b: int) -> tuple[Row, ...]:
    """Return two versions side by side: lineage, metrics with differences, gates, parameters.

    Differences of metrics are of two evaluations, maybe on different rows: they say what was measured, not what is
    significant; that is the gate's business.

    Raises:
        SpecError: no such version.
    """
    left, right = state.require_version(model, a), state.require_version(model, b)
    rows = [
        Row("lineage", "bundle", left.bundle_digest[:12], right.bundle_digest[:12]),
        Row("lineage", "run", left.run_id, right.run_id),
        Row("lineage", "data version", left.dataset_digest[:12], right.dataset_digest[:12]),
        Row("lineage", "commit", left.git_commit[:12], right.git_commit[:12]),
        Row("verdict", "outcome", left.outcome, right.outcome),
        Row("verdict", "overridden by", left.overridden_by, right.overridden_by),
    ]
    for name in _union(left.metrics, right.metrics):
        x, y = left.metrics.get(name), right.metrics.get(name)
        rows.append(Row("metrics", name, x, y, "" if x is None or y is None else _difference(name, x, y)))
    gates_a, gates_b = gate_outcomes(left), gate_outcomes(right)
    rows += [Row("gates", name, gates_a.get(name, ("", ""))[0], gates_b.get(name, ("", ""))[0]) for name in _union(gates_a, gates_b)]
    rows += [
        Row("parameters", name, left.parameters.get(name), right.parameters.get(name)) for name in _union(left.parameters, right.parameters)
    ]
    return tuple(rows)


def gate_outcomes(version: VersionRecord) -> dict[str, tuple[str, str]]:
    """Return gate name to (outcome, reason) out of a version's verdict."""
    results: Any = version.verdict.get("results") or version.verdict.get("gates") or []
    gates: list[Any] = list(cast("dict[str, Any]", results).values()) if isinstance(results, dict) else list(results)
    found: dict[str, tuple[str, str]] = {}
    for gate in gates:
        found[str(gate.get("name", ""))] = (str(gate.get("outcome", "")), str(gate.get("reason", "")))
    return found


def _move(
    store: StateStore,
    decide: Callable[[RegistryState], tuple[EventDraft, ...]],
    goal: Callable[[RegistryState], int | None],
    target: Target,
    verify: Callable[[VersionRecord], object] | None,
) -> Move:
    before: int | None = None

    def checked(state: RegistryState) -> tuple[EventDraft, ...]:
        nonlocal before
        deployment = state.deployment(target.deployment, target.environment)
        before = None if deployment is None else deployment.champion
        drafts = decide(state)
        number = goal(state)
        if drafts and verify is not None and number is not None:
            verify(state.require_version(target.model, number))
        return drafts

    state, events = _commit(store, checked, lambda s: s.deployment(target.deployment, target.environment))
    deployment = state.require_deployment(target.deployment, target.environment)
    if deployment.champion is None:
        raise SpecError(
            "deployment-empty", f"deployment {deployment.name!r} has no champion", fix="promote a version: mulle models promote N"
        )
    return Move(deployment, before, deployment.champion, bool(events))


def _commit(
    store: StateStore, decide: Callable[[RegistryState], Sequence[EventDraft]], stands_on: Callable[[RegistryState], object]
) -> tuple[RegistryState, tuple[Event, ...]]:
    """Return the state after the decision, and the events that were appended for it.

    Raises:
        ConflictError: what the decision stands on was changed by somebody else between reading and appending.
    """
    first: object = None
    for attempt in range(_ATTEMPTS):
        state = load_state(store)
        drafts = decide(state)
        if attempt == 0:
            first = stands_on(state)
        elif stands_on(state) != first:
            break
        try:
            events = store.append(drafts, expected_seq=state.seq) if drafts else ()
        except ConflictError:
            continue
        return fold(events, state), events
    raise ConflictError(
        "release-conflict",
        "somebody else moved this deployment in the meantime; nothing of this was recorded",
        fix="look at `mulle models list`, then decide again",
    )


def _union(a: Iterable[str], b: Iterable[str]) -> list[str]:
    return list(dict.fromkeys([*a, *b]))


def _difference(name: str, a: float, b: float) -> str:
    delta = b - a
    if delta == 0:
        return "equal"
    lower = any(part in name for part in _LOWER_IS_BETTER)
    return f"{delta:+.4g} ({'better' if (delta < 0) == lower else 'worse'})"
