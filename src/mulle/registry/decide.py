"""Who becomes champion: pure decisions over the state, returned as the events that would make them so."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from mulle.core.errors import SpecError
from mulle.formats.events import EventDraft, EventKind
from mulle.registry.fold import ChallengerAfter, ChampionAfter, OverrideAfter, PointersBefore
from mulle.registry.versions import Deployment, RegistryState, VersionRecord, deployment_subject, model_subject


@dataclass(frozen=True, slots=True)
class Who:
    """Who decides, when, and why."""

    actor: str
    now_ns: int
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Target:
    """Where: a deployment in an environment, and the model it serves."""

    deployment: str
    environment: str
    model: str

    @property
    def subject(self) -> str:
        """What events about it are called."""
        return deployment_subject(self.deployment, self.environment)


def decide_registration(
    state: RegistryState, record: VersionRecord, target: Target, who: Who, *, override: bool = False
) -> tuple[int, tuple[EventDraft, ...]]:
    """Return the number of the version, and the events that register it.

    The same bundle with the same verdict is the same version: nothing is registered twice. The first version of a
    deployment that passed its gates becomes champion; later ones, and any that was registered against its verdict,
    become challenger.

    Args:
        state: The registry now.
        record: The version; its `number`, `created_ns` and `overridden_by` are filled in here.
        target: Where it is to be served.
        who: Who registers it; `reason` is kept with an override.
        override: Register it although the verdict is not `pass`.

    Raises:
        SpecError: the verdict is not `pass` and nobody overrides it.
    """
    if record.outcome != "pass" and not override:
        raise SpecError(
            "version-not-passed",
            f"the verdict on this bundle is {record.outcome!r}",
            fix="see the gates' reasons, or record who overrides them: mulle run --register-anyway --reason TEXT",
        )
    deployment = _current(state, target)
    versions = state.models.get(record.model, ())
    drafts: list[EventDraft] = []
    same = next((v for v in versions if v.bundle_digest == record.bundle_digest and v.outcome == record.outcome), None)
    if same is None:
        number = len(versions) + 1
        new = msgspec.structs.replace(record, number=number, created_ns=who.now_ns, overridden_by="")
        drafts.append(_draft(who, "version-registered", model_subject(record.model), None, new.to_dict()))
        if record.outcome != "pass":
            after = OverrideAfter(version=number, outcome=record.outcome, reason=who.reason)
            drafts.append(_draft(who, "gate-overridden", model_subject(record.model), None, msgspec.to_builtins(after)))
    else:
        number = same.number
    if deployment.champion is None and record.outcome == "pass":
        challenger = None if deployment.challenger == number else deployment.challenger
        drafts.append(
            _champion_draft(deployment, who, "champion-set", number, challenger, who.reason or "first version that passed its gates")
        )
    elif same is None and deployment.challenger != number:
        after_challenger = ChallengerAfter(
            deployment=target.deployment, environment=target.environment, model=target.model, challenger=number, reason=who.reason
        )
        drafts.append(_draft(who, "challenger-set", target.subject, _pointers(deployment), msgspec.to_builtins(after_challenger)))
    return number, tuple(drafts)


def decide_promotion(state: RegistryState, number: int, target: Target, who: Who) -> tuple[EventDraft, ...]:
    """Return the events that make version `number` the champion; none if it is.

    Raises:
        SpecError: no such version, or one that did not pass its gates and was not registered against them.
    """
    record = state.require_version(target.model, number)
    deployment = _current(state, target)
    if deployment.champion == number:
        return ()
    if record.outcome != "pass" and not record.overridden_by:
        raise SpecError(
            "version-not-passed",
            f"version {number} of {target.model!r} has the verdict {record.outcome!r}",
            fix=f"see `mulle models show {number}`, and promote a version that passed",
        )
    challenger = None if deployment.challenger == number else deployment.challenger
    return (_champion_draft(deployment, who, "champion-set", number, challenger, who.reason),)


def decide_rollback(state: RegistryState, target: Target, who: Who) -> tuple[EventDraft, ...]:
    """Return the event that makes the champion before the current one champion again.

    Rolling back twice goes back twice: a version that was rolled back is not returned to by a second rollback.

    Raises:
        SpecError: there was no champion before.
    """
    deployment = state.require_deployment(target.deployment, target.environment)
    if deployment.champion is None or not deployment.previous:
        raise SpecError(
            "rollback-none",
            f"deployment {target.deployment!r} in {target.environment!r} has no earlier champion to go back to",
            fix="promote a version by number: mulle models promote N",
            facts={"champion": "none" if deployment.champion is None else f"version {deployment.champion}"},
        )
    number = deployment.previous[-1]
    challenger = None if deployment.challenger == number else deployment.challenger
    return (_champion_draft(deployment, who, "rolled-back", number, challenger, who.reason),)


def _current(state: RegistryState, target: Target) -> Deployment:
    found = state.deployment(target.deployment, target.environment)
    if found is None:
        return Deployment(target.deployment, target.environment, target.model)
    if found.model != target.model:
        raise SpecError(
            "deployment-model",
            f"deployment {target.deployment!r} serves model {found.model!r}, not {target.model!r}",
            fix="give the deployment of this model another name: --deployment NAME",
        )
    return found


def _champion_draft(deployment: Deployment, who: Who, kind: EventKind, number: int, challenger: int | None, reason: str) -> EventDraft:
    after = ChampionAfter(
        deployment=deployment.name,
        environment=deployment.environment,
        model=deployment.model,
        champion=number,
        challenger=challenger,
        generation=deployment.generation + 1,
        reason=reason,
    )
    return _draft(who, kind, deployment.subject, _pointers(deployment), msgspec.to_builtins(after))


def _pointers(deployment: Deployment) -> dict[str, Any]:
    return msgspec.to_builtins(PointersBefore(champion=deployment.champion, challenger=deployment.challenger))


def _draft(who: Who, kind: EventKind, subject: str, before: Mapping[str, Any] | None, after: Mapping[str, Any]) -> EventDraft:
    return EventDraft(time_ns=who.now_ns, actor=who.actor, kind=kind, subject=subject, before=before, after=after)
