"""`mulle models`: the versions of a model, and which of them answers."""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from mulle.apps.cli.output import note, print_json, print_table, say

if TYPE_CHECKING:
    from mulle.loop.paths import StatePaths
    from mulle.loop.release import Move
    from mulle.loop.settings import Settings
    from mulle.registry.decide import Target, Who
    from mulle.registry.state import StateStore
    from mulle.registry.versions import Deployment, RegistryState, VersionRecord

app = typer.Typer(
    no_args_is_help=True, add_completion=False, rich_markup_mode=None, help="The versions of a model, and which of them answers."
)

PROJECT = typer.Option(Path(), "--project", "-p", metavar="DIR", help="The project's folder.")
ENVIRONMENT = typer.Option("local", "--env", metavar="NAME", help="The environment.")
DEPLOYMENT = typer.Option(None, "--deployment", metavar="NAME", help="Which deployment; the project's own by default.")
AS_JSON = typer.Option(False, "--json", help="Print one JSON document.")
ACTOR = typer.Option(None, "--actor", metavar="NAME", help="Who decides; the user of this machine by default.")
REASON = typer.Option("", "--reason", metavar="TEXT", help="Why: kept in the event log.")
VERSION = typer.Argument(metavar="N", help="The version's number.")
_SHORT = 12


@app.command("list", epilog="Example: mulle models list")
def list_versions(project: Path = PROJECT, environment: str = ENVIRONMENT, as_json: bool = AS_JSON) -> None:
    """List the versions, what they scored, and where each of them answers."""
    with _desk(project, environment) as desk:
        versions = desk.state.models.get(desk.model, ())
        roles = {v.number: _roles(desk.state, v) for v in versions}
        if as_json:
            print_json({"model": desk.model, "versions": [{**v.to_dict(), "roles": roles[v.number]} for v in versions]})
            return
        if not versions:
            say(f"no version of {desk.model!r} is registered yet; make one with `mulle run`")
            return
        shown = _leading_metrics(versions)
        print_table(
            ["version", "answers", "verdict", *shown, "data", "commit", "bundle", "registered (UTC)"],
            [
                [
                    v.number,
                    ", ".join(roles[v.number]),
                    _verdict(v),
                    *(_figure(v.metrics.get(name)) for name in shown),
                    v.dataset_digest[:_SHORT],
                    _commit(v),
                    v.bundle_digest[:_SHORT],
                    _time(v.created_ns),
                ]
                for v in reversed(versions)
            ],
        )


@app.command(epilog="Example: mulle models show 2")
def show(number: int = VERSION, project: Path = PROJECT, environment: str = ENVIRONMENT, as_json: bool = AS_JSON) -> None:
    """Show one version: where it comes from, its gates with their reasons, its metrics, where it answers."""
    from mulle.loop.release import gate_outcomes

    with _desk(project, environment) as desk:
        version = desk.state.require_version(desk.model, number)
        roles = _roles(desk.state, version)
        moves = [
            (d, c)
            for _, d in sorted(desk.state.deployments.items())
            if d.model == desk.model
            for c in d.history
            if number in {c.before, c.after}
        ]
        if as_json:
            history = [{"deployment": d.name, "environment": d.environment, **_change(c)} for d, c in moves]
            print_json({**version.to_dict(), "roles": roles, "history": history})
            return
        say(f"{desk.model} version {number}: {', '.join(roles) or 'answers nowhere'}")
        pairs = {
            "verdict": _verdict(version),
            "bundle": version.bundle_digest,
            "folder": version.bundle_path,
            "run": version.run_id,
            "MLflow run": version.mlflow_run_id,
            "data": f"{version.dataset} {version.dataset_digest}".strip(),
            "commit": version.git_commit or "unknown: the project was not under git",
            "registered": f"{_time(version.created_ns)} UTC",
            "parameters": ", ".join(f"{name}={value}" for name, value in version.parameters.items()),
        }
        for name, value in pairs.items():
            if value:
                say(f"  {name:<11} {value}")
        gates = gate_outcomes(version)
        if gates:
            print_table(["gate", "outcome", "reason"], [[name, outcome, reason] for name, (outcome, reason) in gates.items()])
        if version.metrics:
            print_table(["metric", "value"], [[name, _figure(value)] for name, value in version.metrics.items()])
        if moves:
            print_table(
                ["when (UTC)", "deployment", "what", "by", "reason"],
                [
                    [_time(c.time_ns), f"{d.name} ({d.environment})", _say_change(c.how, c.before, c.after), c.actor, c.reason]
                    for d, c in moves
                ],
            )
        say(f"next: mulle models verify {number}   mulle models promote {number}   mulle models reproduce {number}")


@app.command(epilog="Example: mulle models compare 1 2")
def compare(
    a: int = typer.Argument(metavar="A", help="The version on the left."),
    b: int = typer.Argument(metavar="B", help="The version on the right."),
    project: Path = PROJECT,
    environment: str = ENVIRONMENT,
    as_json: bool = AS_JSON,
) -> None:
    """Put two versions side by side. Each was measured when it was made: the gate decides what is significant."""
    from mulle.loop.release import compare_versions

    with _desk(project, environment) as desk:
        rows = compare_versions(desk.state, desk.model, a, b)
        if as_json:
            print_json({"model": desk.model, "a": a, "b": b, "rows": [row.to_dict() for row in rows]})
            return
        print_table(
            ["", "", f"version {a}", f"version {b}", "difference"],
            [[r.group, r.name, _figure(r.a), _figure(r.b), r.note or ("" if r.a == r.b else "differs")] for r in rows],
        )


@app.command(epilog="Example: mulle models promote 2 --reason 'better on new customers'")
def promote(
    number: int = VERSION,
    deployment: str | None = DEPLOYMENT,
    reason: str = REASON,
    actor: str | None = ACTOR,
    project: Path = PROJECT,
    environment: str = ENVIRONMENT,
    as_json: bool = AS_JSON,
) -> None:
    """Make a version the champion: its bundle is verified, the log keeps who and why, servers pick it up by themselves."""
    from mulle.loop.release import promote as move

    with _desk(project, environment) as desk:
        done = move(desk.store, number, desk.target(deployment), desk.who(actor, reason), verify=desk.verifier())
        _finish(desk, done, as_json=as_json)


@app.command(epilog="Example: mulle models rollback --reason 'complaints since noon'")
def rollback(
    deployment: str | None = DEPLOYMENT,
    reason: str = REASON,
    actor: str | None = ACTOR,
    project: Path = PROJECT,
    environment: str = ENVIRONMENT,
    as_json: bool = AS_JSON,
) -> None:
    """Go back to the champion before the current one; a second rollback goes back one further."""
    from mulle.loop.release import rollback as move

    with _desk(project, environment) as desk:
        done = move(desk.store, desk.target(deployment), desk.who(actor, reason), verify=desk.verifier())
        _finish(desk, done, as_json=as_json)


@app.command(epilog="Example: mulle models verify 2   (exit code 0: whole and trusted, 1: not; without N: every version)")
def verify(
    number: int | None = typer.Argument(None, metavar="[N]", help="The version's number; all of them by default."),
    project: Path = PROJECT,
    environment: str = ENVIRONMENT,
    as_json: bool = AS_JSON,
) -> None:
    """Check every byte of a version's bundle against its digest, and its signature; a changed file is named."""
    from mulle.loop.release import verify_version
    from mulle.loop.trust import trusted_keys

    with _desk(project, environment) as desk:
        versions = desk.state.models.get(desk.model, ()) if number is None else (desk.state.require_version(desk.model, number),)
        trusted = trusted_keys(desk.settings)
        found = [verify_version(desk.paths.root, version, trusted) for version in versions]
    if as_json:
        print_json({"ok": all(one.ok for one in found), "versions": [one.to_dict() for one in found]})
    else:
        for one in found:
            if one.problem is None:
                say(f"version {one.version.number}: whole ({', '.join(one.files)}), signed by ed25519:{one.signed_by[:_SHORT]}…")
            else:
                say(f"version {one.version.number}: NOT as it was sealed")
                say("  " + str(one.problem).replace("\n", "\n  "))
        if not found:
            say("no version is registered yet")
    if not all(one.ok for one in found):
        raise typer.Exit(1)


@app.command(epilog="Example: mulle models reproduce 2   (exit code 0: identical or equivalent, 1: different)")
def reproduce(
    number: int = VERSION,
    keep: bool = typer.Option(False, "--keep", help="Leave the clean folder behind, to look into it."),
    project: Path = PROJECT,
    environment: str = ENVIRONMENT,
    as_json: bool = AS_JSON,
) -> None:
    """Make a version again from its commit, data version and seed in a clean folder: identical, equivalent or different."""
    with _desk(project, environment) as desk:
        desk.state.require_version(desk.model, number)
    from mulle.loop.reproduce import reproduce_version

    result = reproduce_version(project, environment, number, keep=keep)
    if as_json:
        print_json(result.to_dict())
    else:
        difference = "" if result.max_difference is None else f"; largest difference of a score {result.max_difference:.3g}"
        say(f"version {number}: {result.answer}{difference}")
        for name, digest in {"then": result.digest, "again": result.again}.items():
            say(f"  {name:<6} {digest}")
        for line in result.differences:
            say(f"  differs: {line}")
        for name, (then, now) in result.environment.items():
            say(f"  environment: {name} was {then}, is {now}")
        if result.folder:
            say(f"  made in {result.folder}")
    if result.answer == "different":
        raise typer.Exit(1)


@dataclass(frozen=True, slots=True)
class _Desk:
    """An open project with its registry."""

    settings: "Settings"
    paths: "StatePaths"
    store: "StateStore"
    state: "RegistryState"

    @property
    def model(self) -> str:
        return self.settings.project.name

    def target(self, deployment: str | None) -> "Target":
        from mulle.core.names import require_name
        from mulle.registry.decide import Target

        name = self.settings.deployment if deployment is None else require_name(deployment, "a deployment")
        return Target(name, self.settings.environment, self.model)

    def who(self, actor: str | None, reason: str) -> "Who":
        from mulle.loop.wiring import SystemClock
        from mulle.registry.decide import Who

        return Who(actor or user_name(), SystemClock().now_ns(), reason)

    def verifier(self) -> Callable[["VersionRecord"], object]:
        from mulle.loop.release import require_servable
        from mulle.loop.trust import trusted_keys

        trusted = trusted_keys(self.settings)

        def check(version: "VersionRecord") -> object:
            return require_servable(self.paths.root, version, trusted)

        return check


@contextmanager
def _desk(project: Path, environment: str) -> Generator[_Desk]:
    from mulle.loop.release import load_state
    from mulle.loop.wiring import open_project, open_state

    settings, paths = open_project(project, environment)
    store = open_state(settings)
    try:
        yield _Desk(settings, paths, store, load_state(store))
    finally:
        store.close()


def _finish(desk: _Desk, move: "Move", *, as_json: bool) -> None:
    """Carry the move out and say what happened: servers first, then the tracking server, which takes seconds."""
    from mulle.loop.wiring import open_outbox

    outbox = open_outbox(desk.settings, desk.store)
    first = outbox.drain(project=False)
    where = f"{move.deployment.name} ({move.deployment.environment})"
    if not as_json and not move.changed:
        say(f"version {move.after} is the champion of {where} already; nothing was changed")
    elif not as_json:
        before = "none" if move.before is None else f"version {move.before}"
        say(f"{where}: champion was {before}, is version {move.after} (generation {move.deployment.generation})")
        undo = "" if move.before is None else f"; undo with: mulle models promote {move.before}"
        say(f"running servers pick it up within a second{undo}")
    report = outbox.drain()
    report.specs[:0] = first.specs
    if as_json:
        print_json({**move.to_dict(), **report.to_dict()})
    for line in () if as_json else (*report.drifts, *report.warnings):
        note(f"warning: {line}")


def user_name() -> str:
    """Return the name of this machine's user, for the event log."""
    import getpass
    import os

    try:
        return getpass.getuser()
    except (KeyError, OSError):
        # A container may run as a number without a name.
        return f"uid-{os.getuid()}"


def _roles(state: "RegistryState", version: "VersionRecord") -> list[str]:
    found: list[str] = []
    for (name, environment), d in sorted(state.deployments.items()):
        place = f" of {name} ({environment})" if _needs_place(state, d) else ""
        if d.model == version.model and d.champion == version.number:
            found.append(f"champion{place}")
        if d.model == version.model and d.challenger == version.number:
            found.append(f"challenger{place}")
    return found


def _needs_place(state: "RegistryState", deployment: "Deployment") -> bool:
    return sum(d.model == deployment.model for d in state.deployments.values()) > 1


def _leading_metrics(versions: "tuple[VersionRecord, ...]") -> list[str]:
    preferred = ("roc_auc", "pr_auc", "accuracy", "log_loss", "rmse", "r2")
    known = {name for version in versions for name in version.metrics}
    return [name for name in preferred if name in known][:3]


def _verdict(version: "VersionRecord") -> str:
    return f"{version.outcome}, overridden by {version.overridden_by}" if version.overridden_by else version.outcome


def _commit(version: "VersionRecord") -> str:
    dirty = "-dirty" if version.git_commit.endswith("-dirty") else ""
    return version.git_commit.removesuffix("-dirty")[:_SHORT] + dirty


def _change(change: Any) -> dict[str, Any]:
    from dataclasses import asdict

    return asdict(change)


def _say_change(how: str, before: int | None, after: int) -> str:
    return f"{how}: {'none' if before is None else before} → {after}"


def _figure(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4f}" if abs(value) < 1000 else f"{value:,.1f}"  # noqa: PLR2004 - four decimals of a large number say nothing
    return "" if value is None else str(value)


def _time(time_ns: int) -> str:
    from datetime import UTC, datetime

    return datetime.fromtimestamp(time_ns / 1e9, UTC).strftime("%Y-%m-%d %H:%M:%S")
