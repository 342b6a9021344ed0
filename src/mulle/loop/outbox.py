"""Carries out what the fold decided: deployment specs first, then the tables, then the tracking server.

Specs are compared with the state on every drain, which costs a millisecond. The tables and the tracking server have a
cursor in the state store, moved only after the effect is there: what was interrupted is done again, and doing it again
changes nothing. One drain at a time per project (a file lock), and the log is read *inside*
the lock: whoever drains later never writes something older over something newer. A tracking server that does not answer
keeps its own cursor back and holds up nobody else.
"""

import fcntl
import os
from collections.abc import Callable, Collection, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from mulle.core.canonical import digest_value
from mulle.core.errors import CheckError, MulleError
from mulle.formats.deployment import DeploymentSpec, SignedSpec, Traffic, encode_signed_spec, read_signed_spec
from mulle.formats.events import Event, EventDraft
from mulle.formats.signing import public_key, require_signature, sign
from mulle.loop.paths import StatePaths, folder_unwritable, write_atomic
from mulle.registry.fold import Command, ProjectAliases, ProjectVersion, WriteSpec, advance
from mulle.registry.projection import Projection
from mulle.registry.state import StateStore, TableName, TableRow
from mulle.registry.versions import Deployment, RegistryState, model_subject

TABLES = "outbox:tables"
PROJECTION = "outbox:projection"
CURSORS = (TABLES, PROJECTION)


@dataclass(slots=True)
class DrainReport:
    """What one drain did.

    Attributes:
        specs: Deployments whose spec was written.
        projected: What the tracking server was told, one short phrase each.
        drifts: Edits found in the tracking server, one sentence each; they were repaired.
        warnings: What could not be done yet and will be tried again, one sentence each.
    """

    specs: list[str] = field(default_factory=list[str])
    projected: list[str] = field(default_factory=list[str])
    drifts: list[str] = field(default_factory=list[str])
    warnings: list[str] = field(default_factory=list[str])

    def to_dict(self) -> dict[str, list[str]]:
        """Return plain JSON."""
        return {"specs": self.specs, "projected": self.projected, "drifts": self.drifts, "warnings": self.warnings}


def _no_step(name: str) -> None:
    del name


@dataclass(frozen=True, slots=True, kw_only=True)
class Outbox:
    """Drains the log's commands into the outside world.

    Attributes:
        store: The event log.
        paths: Where specs lie.
        environment: Only its deployments are served from here.
        private_key: 32 bytes; signs the specs.
        trusted: Public keys of others whose specs are left as they are when they say what the log says.
        projection: Opens the tracking server's projection, called only when there is something to tell it; None when
            the environment has none.
        now_ns: Nanoseconds since 1970-01-01 UTC, for the events about edits found.
        on_step: Called with the name of the next step just before it; for tests that kill it there.
    """

    store: StateStore
    paths: StatePaths
    environment: str
    private_key: bytes
    trusted: Collection[str] = ()
    projection: Callable[[], Projection] | None = None
    now_ns: Callable[[], int]
    on_step: Callable[[str], None] = _no_step

    def drain(self, *, reconcile: bool = False, project: bool = True) -> DrainReport:
        """Return what was carried out; what could not be stays for the next time, with a warning.

        Args:
            reconcile: Also look for edits made in the tracking server when there is nothing new to tell it.
            project: Whether to talk to the tracking server at all; specs are written in any case.

        Raises:
            UnavailableError: the state folder cannot be written.
        """
        report = DrainReport()
        with self._locked():
            state, pending = self._pending()
            self._write_specs(state, report)
            self._write_tables(state, report)
            if project and self.projection is not None:
                try:
                    self._project(self.projection, state, pending, report, reconcile=reconcile)
                except MulleError as error:
                    report.warnings.append(f"the tracking server was not told: {error.what}; tried again next time")
        return report

    def rebuild(self) -> DrainReport:
        """Return what was carried out after every projection was thrown away: specs, tables, aliases come from the log alone.

        Edits made in the tracking server are looked for before they are written over.
        """
        found = self.drain(reconcile=True).drifts
        with self._locked():
            for name in CURSORS:
                self.on_step(f"reset {name}")
                self.store.reset_cursor(name)
            self.store.drop_tables()
            state, _ = self._pending()
            for deployment in self._deployments(state):
                self.on_step(f"remove spec {deployment.name}")
                self.paths.spec(deployment.name).unlink(missing_ok=True)
        report = self.drain(reconcile=True)
        report.drifts[:0] = found
        return report

    def _pending(self) -> tuple[RegistryState, list[tuple[Event, tuple[Command, ...]]]]:
        """Return the state of the whole log, and the events that command something, in order."""
        state = RegistryState()
        commands: list[tuple[Event, tuple[Command, ...]]] = []
        for event in self.store.events():
            state, wanted = advance(state, event)
            if wanted:
                commands.append((event, wanted))
        return state, commands

    def _deployments(self, state: RegistryState) -> list[Deployment]:
        return [d for (_, environment), d in sorted(state.deployments.items()) if environment == self.environment]

    def _write_specs(self, state: RegistryState, report: DrainReport) -> None:
        """Make every spec say what the state says; one that vanished or was harmed is written again without an event."""
        for deployment in self._deployments(state):
            if deployment.champion is None:
                continue
            problem = self._write_spec(deployment, report)
            if problem:
                report.warnings.append(problem)

    def _write_spec(self, deployment: Deployment, report: DrainReport) -> str | None:
        path = self.paths.spec(deployment.name)
        spec = spec_of(deployment)
        try:
            there = _trusted_spec(path, [public_key(self.private_key), *self.trusted])
            if there is not None and there.generation > spec.generation:
                return (
                    f"the spec of {deployment.name!r} on disk has generation {there.generation}, the event log says {spec.generation}: "
                    "the state database was replaced by an older one; `mulle events rebuild` makes the log win"
                )
            if there == spec:
                return None
            self.on_step(f"write spec {deployment.name}")
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(path, encode_signed_spec(SignedSpec(spec, sign(spec.to_bytes(), self.private_key))), sync=True)
        except OSError as error:
            return f"the spec of {deployment.name!r} could not be written: {folder_unwritable(path.parent, error).what}"
        report.specs.append(deployment.name)
        return None

    def _write_tables(self, state: RegistryState, report: DrainReport) -> None:
        if self.store.cursor(TABLES) >= state.seq:
            return
        try:
            self.on_step("save tables")
            self.store.save_tables(tables_of(state), seq=state.seq)
            self.on_step("advance tables")
            self.store.advance_cursor(TABLES, state.seq)
        except MulleError as error:
            report.warnings.append(f"the tables for SQL clients were not renewed: {error.what}; tried again next time")

    def _project(
        self,
        open_projection: Callable[[], Projection],
        state: RegistryState,
        pending: list[tuple[Event, tuple[Command, ...]]],
        report: DrainReport,
        *,
        reconcile: bool,
    ) -> None:
        done = self.store.cursor(PROJECTION)
        new = [(event, commands) for event, commands in pending if event.seq > done]
        if not new and not reconcile:
            if state.seq > done:
                self.store.advance_cursor(PROJECTION, state.seq)
            return
        projection = open_projection()
        self._repair(projection, state, done, pending, report)
        told: set[Command] = set()
        for event, commands in new:
            for command in commands:
                if command not in told:
                    told.add(command)
                    self._tell(projection, state, command, report)
            # The cursor moves event by event: a server that goes away half-way is told the rest, not everything.
            self.on_step("advance projection")
            self.store.advance_cursor(PROJECTION, event.seq)
        if state.seq > done:
            self.store.advance_cursor(PROJECTION, state.seq)

    def _tell(self, projection: Projection, state: RegistryState, command: Command, report: DrainReport) -> None:
        match command:
            case ProjectVersion(model, number):
                self.on_step(f"publish {model} {number}")
                projection.publish_version(state.require_version(model, number))
                report.projected.append(f"{model} version {number}")
            case ProjectAliases(model):
                self.on_step(f"aliases {model}")
                self._tell_aliases(projection, state, model)
                report.projected.append(f"{model} aliases")
            case WriteSpec():
                pass

    def _repair(
        self,
        projection: Projection,
        state: RegistryState,
        done: int,
        pending: list[tuple[Event, tuple[Command, ...]]],
        report: DrainReport,
    ) -> None:
        """Find what somebody edited, say so in the log, and put it right."""
        published = {
            command for event, commands in pending if event.seq <= done for command in commands if isinstance(command, ProjectVersion)
        }
        for model, versions in sorted(state.models.items()):
            known = tuple(v for v in versions if ProjectVersion(model, v.number) in published)
            subject = model_subject(model)
            drifts = projection.find_drift(model, known) if known else ()
            if drifts:
                found = [drift.to_dict() for drift in drifts]
                report.drifts.extend(
                    f"{model}: {d.what} was changed in the tracking server from {d.expected} to {d.found}; put back" for d in drifts
                )
                if state.open_drifts.get(subject) != found:
                    self.on_step(f"record drift {model}")
                    self._record("projection-drift", subject, found)
                for version in known:
                    projection.publish_version(version)
                self.on_step(f"repair {model}")
                self._tell_aliases(projection, state, model)
            if drifts or subject in state.open_drifts:
                self.on_step(f"record repair {model}")
                self._record("projection-repaired", subject, state.aliases(model, self.environment))

    def _tell_aliases(self, projection: Projection, state: RegistryState, model: str) -> None:
        """Move the aliases; what they point at is published before them, whatever the order of the events."""
        aliases = state.aliases(model, self.environment)
        for number in sorted(set(aliases.values())):
            projection.publish_version(state.require_version(model, number))
        projection.publish_aliases(model, aliases)

    def _record(self, kind: str, subject: str, after: object) -> None:
        draft = msgspec.convert({"time_ns": self.now_ns(), "actor": "mulle", "kind": kind, "subject": subject, "after": after}, EventDraft)
        self.store.append([draft], expected_seq=None)

    @contextmanager
    def _locked(self) -> Generator[None]:
        self.paths.ensure()
        try:
            descriptor = os.open(self.paths.root / "outbox.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise folder_unwritable(self.paths.root, error) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def spec_of(deployment: Deployment) -> DeploymentSpec:
    """Return what `deployment` is to serve: its champion's revision, with all of the traffic.

    Raises:
        CheckError: the deployment has no champion.
    """
    revision = deployment.revision_of(deployment.champion)
    if revision is None:
        raise CheckError(
            "deployment-empty", f"deployment {deployment.name!r} has no champion to serve", fix="promote a version: mulle models promote N"
        )
    return DeploymentSpec(
        deployment=deployment.name,
        environment=deployment.environment,
        generation=deployment.generation,
        revisions=(revision,),
        traffic=Traffic(weights={revision.number: 100}, salt=digest_value([deployment.name, deployment.environment])[:16]),
    )


def tables_of(state: RegistryState) -> dict[TableName, list[TableRow]]:
    """Return the rows of the projection tables."""
    return {
        "versions": [
            {
                "model": v.model,
                "number": v.number,
                "bundle_digest": v.bundle_digest,
                "run_id": v.run_id or None,
                "dataset_digest": v.dataset_digest or None,
                "git_commit": v.git_commit or None,
                "outcome": v.outcome,
                "created_ns": v.created_ns,
            }
            for _, versions in sorted(state.models.items())
            for v in versions
        ],
        "deployments": [
            {
                "name": d.name,
                "environment": d.environment,
                "model": d.model,
                "champion": d.champion,
                "challenger": d.challenger,
                "generation": d.generation,
            }
            for _, d in sorted(state.deployments.items())
        ],
    }


def _trusted_spec(path: Path, trusted: Collection[str]) -> DeploymentSpec | None:
    """Return the spec at `path` if it is whole and signed by one of us; anything else is to be written over."""
    try:
        if not path.exists():
            return None
        signed = read_signed_spec(path)
        require_signature(signed.spec.to_bytes(), signed.signature, trusted=trusted, what="the spec", where=str(path))
    except MulleError:
        return None
    return signed.spec
