"""`mulle keys`: who may ask the server: create, list, revoke API keys."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from mulle.apps.cli.output import note, print_json, print_table, say

if TYPE_CHECKING:
    from mulle.formats.api_keys import ApiKey

app = typer.Typer(
    no_args_is_help=True, add_completion=False, rich_markup_mode=None, help="Who may ask the server: create, list, revoke API keys."
)

PROJECT = typer.Option(Path(), "--project", "-p", metavar="DIR", help="The project's folder.")
ENVIRONMENT = typer.Option("local", "--env", metavar="NAME", help="The environment.")
FILE = typer.Option(None, "--file", metavar="FILE", help="The key document; .mulle/keys.json, or the environment's own, by default.")
AS_JSON = typer.Option(False, "--json", help="Print one JSON document.")


@app.command(epilog="Example: mulle keys create checkout --deployment churn --rate 200 --burst 400 --expires 90d")
def create(
    name: str = typer.Argument(..., metavar="NAME", help="What people call it: a program, a team."),
    *,
    deployment: list[str] = typer.Option([], "--deployment", "-d", metavar="NAME", help="What it may ask; repeat it. All by default."),
    metrics: bool = typer.Option(False, "--metrics", help="It may read /metrics; without --deployment it may do nothing else."),
    rate: float | None = typer.Option(None, "--rate", metavar="N", help="Requests per second in the long run; unlimited by default."),
    burst: int | None = typer.Option(None, "--burst", metavar="N", help="Requests at once; by default what one second brings."),
    expires: str | None = typer.Option(
        None, "--expires", metavar="TIME", help="How long it is good for, such as 12h or 90d; for ever by default."
    ),
    file: Path | None = FILE,
    project: Path = PROJECT,
    environment: str = ENVIRONMENT,
    as_json: bool = AS_JSON,
) -> None:
    """Make a key and show it, once: only its hash is kept. A running server knows it within a second."""
    from mulle.formats.api_keys import ALL, add_key, make_key
    from mulle.loop.wiring import SystemClock

    now_ns = SystemClock().now_ns()
    path = _path(project, environment, file)
    kept, text = make_key(
        name,
        now_ns=now_ns,
        deployments=deployment or (() if metrics else (ALL,)),
        metrics=metrics,
        rate_per_s=rate,
        burst=burst,
        expires_ns=None if expires is None else now_ns + _seconds(expires) * 1_000_000_000,
    )
    first = not path.exists()
    add_key(path, kept)
    if as_json:
        print_json({"key": text, **_shown(kept, now_ns), "file": str(path)})
        return
    say(text)
    note(f"key {kept.name!r} for {_scope(kept)}; this is the only time it is shown. Its hash is in {path}")
    if first:
        note("from now on a server of this project asks every caller for a key, on this machine too")
    note(f"use it with: curl -H 'authorization: Bearer {text[:7]}…' …")


@app.command("list", epilog="Example: mulle keys list --json")
def list_(file: Path | None = FILE, project: Path = PROJECT, environment: str = ENVIRONMENT, as_json: bool = AS_JSON) -> None:
    """Show the keys there are, without anything that would let one in."""
    from mulle.formats.api_keys import list_keys
    from mulle.loop.wiring import SystemClock

    now_ns = SystemClock().now_ns()
    path = _path(project, environment, file)
    keys = list_keys(path)
    if as_json:
        print_json({"keys": [_shown(key, now_ns) for key in keys], "file": str(path)})
        return
    if not keys:
        say("there are no keys")
        note("make one with: mulle keys create NAME")
        return
    print_table(
        ["name", "id", "for", "rate", "burst", "made (UTC)", "expires (UTC)"],
        [
            [key.name, key.id, _scope(key), _rate(key), key.burst, _time(key.created_ns), _expiry(key, now_ns)]
            for key in sorted(keys, key=lambda key: key.created_ns)
        ],
    )


@app.command(epilog="Example: mulle keys revoke checkout")
def revoke(
    name: str = typer.Argument(..., metavar="NAME", help="The key's name, or its id."),
    file: Path | None = FILE,
    project: Path = PROJECT,
    environment: str = ENVIRONMENT,
    as_json: bool = AS_JSON,
) -> None:
    """End a key: running servers refuse it within a second."""
    from mulle.formats.api_keys import revoke_key

    path = _path(project, environment, file)
    gone = revoke_key(path, name)
    if as_json:
        print_json({"revoked": gone.name, "id": gone.id, "file": str(path)})
        return
    say(f"key {gone.name!r} ({gone.id}) is revoked")


def _path(project: Path, environment: str, file: Path | None) -> Path:
    from mulle.core.errors import SpecError
    from mulle.loop.api_keys import key_file
    from mulle.loop.paths import state_paths
    from mulle.loop.settings import load_settings

    if file is not None:
        return file.resolve()
    if not project.is_dir():
        raise SpecError("project-missing", f"there is no folder {str(project)!r}", fix="check --project", where="--project")
    # Without a project the keys of `mulle serve --bundle` are meant: they lie in this folder's `.mulle`.
    settings = load_settings(project, environment) if (project / "mulle.toml").exists() else None
    paths = state_paths(project)
    path = key_file(settings, paths.root)
    if path.parent == paths.root:
        paths.ensure()
    return path


def _seconds(text: str) -> int:
    from mulle.core.errors import SpecError
    from mulle.loop.settings import duration_s

    try:
        return duration_s(text)
    except ValueError as error:
        raise SpecError("key-options", str(error), fix="write 12h, 90d, 365d", where="--expires") from error


def _shown(key: "ApiKey", now_ns: int) -> dict[str, Any]:
    """Return what may be told about a key: no secret and no hash."""
    return {
        "id": key.id,
        "name": key.name,
        "deployments": list(key.deployments),
        "metrics": key.metrics,
        "rate_per_s": key.rate_per_s,
        "burst": key.burst,
        "created": _time(key.created_ns),
        "expires": None if key.expires_ns is None else _time(key.expires_ns),
        "expired": key.expires_ns is not None and key.expires_ns <= now_ns,
    }


def _scope(key: "ApiKey") -> str:
    places = ["all deployments" if place == "*" else place for place in key.deployments]
    return ", ".join([*places, *(["metrics"] if key.metrics else [])])


def _rate(key: "ApiKey") -> str | None:
    return None if key.rate_per_s is None else f"{key.rate_per_s:g}/s"


def _expiry(key: "ApiKey", now_ns: int) -> str | None:
    if key.expires_ns is None:
        return None
    return f"{_time(key.expires_ns)} (expired)" if key.expires_ns <= now_ns else _time(key.expires_ns)


def _time(time_ns: int) -> str:
    from datetime import UTC, datetime

    return datetime.fromtimestamp(time_ns / 1e9, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
