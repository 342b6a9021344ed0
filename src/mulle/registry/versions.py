"""The values of the registry: model versions, deployments, and the state the event log adds up to. Plain and frozen."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from mulle.core.errors import SpecError
from mulle.formats.deployment import Revision


class VersionRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One immutable model version, as the event that registered it says.

    Attributes:
        model: The registry name.
        number: 1, 2, 3 … per model.
        bundle_digest: Which bundle, 64 hexadecimal digits.
        bundle_path: Where it lies, relative to the state folder, or an absolute path or URI elsewhere.
        run_id: Mulle's run.
        mlflow_run_id: The run in MLflow; empty when there was none.
        dataset: Name of the dataset version.
        dataset_digest: Its content digest; empty for an adopted model.
        git_commit: The commit the code was at, `-dirty` appended when files were changed; empty without git.
        outcome: The verdict: `pass`, `fail` or `inconclusive`.
        verdict: The whole verdict as `release/gate.py` says it: gates with outcome and reason.
        metrics: Metric name to value on the holdout, of the served graph.
        parameters: The model's parameters.
        created_ns: When it was registered, nanoseconds since 1970-01-01 UTC.
        overridden_by: Who registered it against its verdict; empty when nobody had to.
    """

    model: str
    number: int
    bundle_digest: str
    bundle_path: str
    run_id: str = ""
    mlflow_run_id: str = ""
    dataset: str = ""
    dataset_digest: str = ""
    git_commit: str = ""
    outcome: str = "pass"
    verdict: dict[str, Any] = {}
    metrics: dict[str, float] = {}
    parameters: dict[str, Any] = {}
    created_ns: int = 0
    overridden_by: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON."""
        return msgspec.to_builtins(self)

    @classmethod
    def from_dict(cls, value: object) -> "VersionRecord":
        """Return the record `to_dict` wrote; raises `msgspec.ValidationError` for anything else."""
        return msgspec.convert(value, cls)


@dataclass(frozen=True, slots=True)
class ChampionChange:
    """One move of a deployment's champion.

    `how` is `first`, `promoted` or `rolled-back`; `seq` is the event that says so.
    """

    seq: int
    time_ns: int
    actor: str
    how: str
    before: int | None
    after: int
    generation: int
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Deployment:
    """A named endpoint in an environment, and which version answers there.

    Attributes:
        previous: The champions before the current one, the latest last: what rollback goes back to.
        generation: Rises with every change of what is served.
        revisions: One per version ever served here, in the order they came.
        history: Every move, the latest last.
    """

    name: str
    environment: str
    model: str
    champion: int | None = None
    challenger: int | None = None
    generation: int = 0
    previous: tuple[int, ...] = ()
    revisions: tuple[Revision, ...] = ()
    history: tuple[ChampionChange, ...] = ()

    @property
    def subject(self) -> str:
        """What events about it are called: `deployment/churn@local`."""
        return deployment_subject(self.name, self.environment)

    def revision_of(self, version: int | None) -> Revision | None:
        """Return the revision that serves a model version here, or None if it never did."""
        return next((revision for revision in self.revisions if revision.model_version == version), None)


@dataclass(frozen=True, slots=True)
class RegistryState:
    """What the log up to `seq` adds up to.

    Attributes:
        models: Model name to its versions, in order of their numbers, without gaps.
        deployments: (name, environment) to deployment.
        open_drifts: Subject to the edit somebody made in a projection, reported and not yet repaired.
    """

    seq: int = 0
    models: Mapping[str, tuple[VersionRecord, ...]] = field(default_factory=dict[str, tuple[VersionRecord, ...]])
    deployments: Mapping[tuple[str, str], Deployment] = field(default_factory=dict[tuple[str, str], Deployment])
    open_drifts: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def version(self, model: str, number: int) -> VersionRecord | None:
        """Return a version, or None."""
        versions = self.models.get(model, ())
        return versions[number - 1] if 1 <= number <= len(versions) else None

    def require_version(self, model: str, number: int) -> VersionRecord:
        """Return a version.

        Raises:
            SpecError: there is none; the error lists those there are.
        """
        found = self.version(model, number)
        if found is None:
            known = [str(version.number) for version in self.models.get(model, ())]
            shown = ", ".join(known[-20:])
            raise SpecError(
                "version-unknown",
                f"there is no version {number!r} of model {model!r}",
                fix="use one of those, or see `mulle models list`" if known else "register one with `mulle run`",
                facts={"versions": (f"… {shown}" if len(known) > len(known[-20:]) else shown) or "none yet"},
            )
        return found

    def deployment(self, name: str, environment: str) -> Deployment | None:
        """Return a deployment, or None if nothing was ever registered for it."""
        return self.deployments.get((name, environment))

    def require_deployment(self, name: str, environment: str) -> Deployment:
        """Return a deployment.

        Raises:
            SpecError: there is none; the error lists those there are.
        """
        found = self.deployment(name, environment)
        if found is None:
            known = sorted(f"{n} ({e})" for n, e in self.deployments)
            raise SpecError(
                "deployment-unknown",
                f"there is no deployment {name!r} in environment {environment!r}",
                fix="name one with --deployment and --env" if known else "register a version first: mulle run",
                facts={"deployments": ", ".join(known[:20]) or "none yet"},
            )
        return found

    def aliases(self, model: str, environment: str) -> dict[str, int]:
        """Return alias to version number for a model in an environment.

        They are those of the deployment called like the model, or of the only one that serves it; with several and
        none so called there is no one champion, and no alias.
        """
        own = self.deployments.get((model, environment))
        serving = [d for d in self.deployments.values() if d.model == model and d.environment == environment]
        chosen = own if own is not None and own.model == model else serving[0] if len(serving) == 1 else None
        if chosen is None:
            return {}
        pairs = {"champion": chosen.champion, "challenger": chosen.challenger}
        return {alias: number for alias, number in pairs.items() if number is not None}


def model_subject(model: str) -> str:
    """Return what events about a model are called."""
    return f"model/{model}"


def deployment_subject(name: str, environment: str) -> str:
    """Return what events about a deployment are called."""
    return f"deployment/{name}@{environment}"
