"""The control plane as one fold: state and event in, state and commands out. Pure; replaying the log gives the state.

    version-registered   a version joins its model                     → publish it
    gate-overridden      who registered it against its verdict
    champion-set         another version answers                       → write the spec, move the aliases
    rolled-back          the champion before it answers again          → write the spec, move the aliases
    challenger-set       who is next in line                           → move the aliases
    projection-drift, projection-repaired                              an edit made elsewhere, seen and undone
    run-finished, collected                                            history only

An event carries what it replaced. If that is not what the state says, the log was not written by the deciders of
`registry/decide.py`, and folding stops instead of guessing.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from mulle.core.errors import CheckError
from mulle.formats.deployment import Revision
from mulle.formats.events import Event
from mulle.registry.versions import ChampionChange, Deployment, RegistryState, VersionRecord, deployment_subject, model_subject


@dataclass(frozen=True, slots=True)
class WriteSpec:
    """The deployment spec is to say what the state says."""

    deployment: str
    environment: str


@dataclass(frozen=True, slots=True)
class ProjectVersion:
    """The tracking server is to know this version."""

    model: str
    version: int


@dataclass(frozen=True, slots=True)
class ProjectAliases:
    """The tracking server's aliases of this model are to point where the state says."""

    model: str


Command = WriteSpec | ProjectVersion | ProjectAliases
Step = tuple[RegistryState, tuple[Command, ...]]


class ChampionAfter(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`after` of `champion-set` and `rolled-back`."""

    deployment: str
    environment: str
    model: str
    champion: int
    challenger: int | None
    generation: int
    reason: str = ""


class ChallengerAfter(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`after` of `challenger-set`."""

    deployment: str
    environment: str
    model: str
    challenger: int | None
    reason: str = ""


class PointersBefore(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`before` of the three: what the deployment pointed at."""

    champion: int | None
    challenger: int | None


class OverrideAfter(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`after` of `gate-overridden`."""

    version: int
    outcome: str
    reason: str = ""


def advance(state: RegistryState, event: Event) -> Step:
    """Return the state after `event`, and what is to be carried out because of it.

    An event the state already contains changes nothing and commands nothing.

    Raises:
        CheckError: a gap in the log, an unknown kind, or an event that does not fit the state.
    """
    if event.seq <= state.seq:
        return state, ()
    if event.seq != state.seq + 1:
        raise CheckError(
            "events-gap",
            f"event {event.seq} comes after event {state.seq}: what lies between is missing",
            fix="run `mulle events verify`, and restore the state database from a backup",
        )
    handler = _HANDLERS.get(event.kind)
    if handler is None:
        raise CheckError(
            "event-kind-unknown",
            f"event {event.seq} is of kind {str(event.kind)[:80]!r}, which this Mulle does not know",
            fix="upgrade Mulle: the log was written by a newer one",
        )
    try:
        after, commands = handler(state, event)
    except msgspec.ValidationError as error:
        raise _misfit(event, f"its fields do not fit: {error}") from error
    return replace(after, seq=event.seq), commands


def fold(events: Iterable[Event], state: RegistryState | None = None) -> RegistryState:
    """Return the state that `events` add up to, starting from `state` or from nothing."""
    current = state or RegistryState()
    for event in events:
        current, _ = advance(current, event)
    return current


def _registered(state: RegistryState, event: Event) -> Step:
    record = msgspec.convert(event.after, VersionRecord)
    versions = state.models.get(record.model, ())
    _require(event, model_subject(record.model) == event.subject, "it is about another model than its subject")
    _require(event, record.number == len(versions) + 1, f"version {record.number} cannot follow version {len(versions)}")
    return (
        replace(state, models={**state.models, record.model: (*versions, record)}),
        (ProjectVersion(record.model, record.number),),
    )


def _overridden(state: RegistryState, event: Event) -> Step:
    after = msgspec.convert(event.after, OverrideAfter)
    model = event.subject.removeprefix("model/")
    record = state.version(model, after.version)
    if record is None:
        raise _misfit(event, f"there is no version {after.version} of {model!r}")
    versions = list(state.models[model])
    versions[after.version - 1] = msgspec.structs.replace(record, overridden_by=event.actor)
    return replace(state, models={**state.models, model: tuple(versions)}), (ProjectVersion(model, after.version),)


def _champion(state: RegistryState, event: Event) -> Step:
    after = msgspec.convert(event.after, ChampionAfter)
    old = _deployment(state, event, after.deployment, after.environment, after.model)
    record = state.version(after.model, after.champion)
    if record is None:
        raise _misfit(event, f"there is no version {after.champion} of {after.model!r}")
    _require(event, after.generation == old.generation + 1, f"generation {after.generation} cannot follow {old.generation}")
    back = event.kind == "rolled-back"
    if back:
        _require(
            event, bool(old.previous) and old.previous[-1] == after.champion, "it goes back to a version that was not the last champion"
        )
        previous = old.previous[:-1]
    else:
        previous = old.previous if old.champion is None else (*old.previous, old.champion)
    revisions = old.revisions
    if old.revision_of(after.champion) is None:
        revision = Revision(
            number=len(revisions) + 1,
            model=after.model,
            model_version=record.number,
            bundle_digest=record.bundle_digest,
            bundle_path=record.bundle_path,
            run_id=record.run_id,
        )
        revisions = (*revisions, revision)
    change = ChampionChange(
        seq=event.seq,
        time_ns=event.time_ns,
        actor=event.actor,
        how="rolled-back" if back else "promoted" if old.champion is not None else "first",
        before=old.champion,
        after=after.champion,
        generation=after.generation,
        reason=after.reason,
    )
    new = replace(
        old,
        champion=after.champion,
        challenger=after.challenger,
        generation=after.generation,
        previous=previous,
        revisions=revisions,
        history=(*old.history, change),
    )
    return _with(state, new), (WriteSpec(new.name, new.environment), ProjectAliases(new.model))


def _challenger(state: RegistryState, event: Event) -> Step:
    after = msgspec.convert(event.after, ChallengerAfter)
    old = _deployment(state, event, after.deployment, after.environment, after.model)
    if after.challenger is not None and state.version(after.model, after.challenger) is None:
        raise _misfit(event, f"there is no version {after.challenger} of {after.model!r}")
    return _with(state, replace(old, challenger=after.challenger)), (ProjectAliases(old.model),)


def _drift(state: RegistryState, event: Event) -> Step:
    return replace(state, open_drifts={**state.open_drifts, event.subject: event.after}), ()


def _repaired(state: RegistryState, event: Event) -> Step:
    return replace(state, open_drifts={name: value for name, value in state.open_drifts.items() if name != event.subject}), ()


def _history_only(state: RegistryState, event: Event) -> Step:
    del event
    return state, ()


_HANDLERS: dict[str, Callable[[RegistryState, Event], Step]] = {
    "version-registered": _registered,
    "gate-overridden": _overridden,
    "champion-set": _champion,
    "rolled-back": _champion,
    "challenger-set": _challenger,
    "projection-drift": _drift,
    "projection-repaired": _repaired,
    "run-finished": _history_only,
    "collected": _history_only,
}


def _deployment(state: RegistryState, event: Event, name: str, environment: str, model: str) -> Deployment:
    """Return the deployment an event is about, after its `before` was found to be true."""
    _require(event, deployment_subject(name, environment) == event.subject, "it is about another deployment than its subject")
    old = state.deployment(name, environment) or Deployment(name, environment, model)
    _require(event, old.model == model, f"the deployment serves {old.model!r}, not {model!r}")
    before = msgspec.convert(event.before, PointersBefore)
    found: dict[str, Any] = {"champion": old.champion, "challenger": old.challenger}
    _require(event, msgspec.to_builtins(before) == found, f"it replaces {msgspec.to_builtins(before)}, and the state was {found}")
    return old


def _with(state: RegistryState, deployment: Deployment) -> RegistryState:
    return replace(state, deployments={**state.deployments, (deployment.name, deployment.environment): deployment})


def _require(event: Event, holds: bool, problem: str) -> None:  # noqa: FBT001 - an assertion reads left to right
    if not holds:
        raise _misfit(event, problem)


def _misfit(event: Event, problem: str) -> CheckError:
    return CheckError(
        "event-misfit",
        f"event {event.seq} ({event.kind} on {event.subject[:80]!r}) does not fit the log before it: {problem}",
        fix="run `mulle events verify`, and restore the state database from a backup",
        where=f"event {event.seq}",
    )
