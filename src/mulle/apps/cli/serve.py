"""`mulle serve`: a deployment, or a bundle's folder, over HTTP."""

import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from mulle.apps.cli.output import note, print_json, say

if TYPE_CHECKING:
    from mulle.loop.paths import StatePaths
    from mulle.serve.server import ServeConfig, Started

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command(epilog="Example: mulle serve --port 8080      or, without a project: mulle serve --bundle .mulle/bundles/3f2c…")
def serve(
    *,
    port: int | None = typer.Option(None, "--port", min=0, max=65535, help="Port; 0 takes a free one. [serving] port by default."),
    host: str | None = typer.Option(None, "--host", help="Address to listen on. [serving] host by default: this machine only."),
    deployment: str | None = typer.Option(None, "--deployment", metavar="NAME", help="Which deployment; the project's own by default."),
    bundle: Path | None = typer.Option(
        None, "--bundle", metavar="DIR", help="Serve this sealed folder as revision 1, without the registry."
    ),
    allow_remote: bool = typer.Option(
        False, "--allow-remote", help="Listen for other machines too. There is no authentication yet: put a proxy in front."
    ),
    threads: int = typer.Option(1, "--threads", min=1, max=256, help="Threads within an operator; more helps large models only."),
    project: Path = typer.Option(Path(), "--project", "-p", metavar="DIR", help="The project's folder."),
    environment: str = typer.Option("local", "--env", metavar="NAME", help="The environment."),
    as_json: bool = typer.Option(False, "--json", help="Say where it listens as one JSON document."),
) -> None:
    """Answer POST /predict with what the deployment serves; new champions are taken over without a failed request.

    Every bundle is verified, and must reproduce its golden requests, before it answers. SIGTERM drains.
    """
    import logging

    from mulle.serve.server import serve as run_server

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    config = _config(project, environment, deployment, bundle)
    config = replace(
        config,
        port=config.port if port is None else port,
        host=config.host if host is None else host,
        allow_remote=allow_remote,
        threads=threads,
    )
    run_server(config, on_ready=lambda started: _welcome(started, as_json=as_json))


def _config(project: Path, environment: str, deployment: str | None, bundle: Path | None) -> "ServeConfig":
    from mulle.loop.trust import trusted_keys
    from mulle.serve.server import ServeConfig

    if bundle is not None and not (project / "mulle.toml").exists():
        return ServeConfig(
            state_dir=(project / ".mulle").resolve(), deployment=deployment or _name_of(bundle), trusted=trusted_keys(None), bundle=bundle
        )
    from mulle.loop.wiring import open_project

    settings, paths = open_project(project, environment)
    if bundle is None:
        _require_champion(paths, deployment or settings.deployment)
    return ServeConfig(
        state_dir=paths.ensure().root,
        deployment=deployment or (settings.deployment if bundle is None else _name_of(bundle)),
        trusted=trusted_keys(settings),
        bundle=bundle,
        host=settings.serving.host,
        port=settings.serving.port,
    )


def _require_champion(paths: "StatePaths", deployment: str) -> None:
    """Say what to do first, where nothing was ever released; the data plane itself would only miss a file."""
    from mulle.core.errors import SpecError

    spec = paths.spec(deployment)
    if not spec.is_file() and not (paths.serving_cache / spec.name).is_file():
        known = sorted(path.stem for path in paths.serving.glob("*.json")) if paths.serving.is_dir() else []
        raise SpecError(
            "serve-nothing",
            f"deployment {deployment!r} has no champion yet: there is nothing to serve",
            fix=f"name one of the deployments there are: --deployment {known[0]}" if known else "register a version first: mulle run",
            where=str(paths.serving),
        )


def _name_of(bundle: Path) -> str:
    """Return a deployment name of its own for a folder, so that its log mixes with no other's."""
    from mulle.formats.bundle import read_manifest

    return f"bundle-{read_manifest(bundle).digest()[:12]}"


def _welcome(started: "Started", *, as_json: bool) -> None:
    import sys

    serving = started.serving
    if as_json:
        print_json(
            {
                "url": started.url,
                "host": started.host,
                "port": started.port,
                "deployment": serving.deployment,
                "generation": serving.generation,
                "revisions": [served.number for served in serving.revisions],
            }
        )
        sys.stdout.flush()
        return
    served = serving.revisions[0]
    body = json.dumps([dict(started.example)], ensure_ascii=False)
    say(f"{serving.deployment} is served at {started.url}")
    say(f"  model      {served.source.model} version {served.source.model_version}, revision {served.number}")
    say(f"  bundle     {served.source.bundle_digest[:12]}, verified; its golden requests reproduce")
    say(f"  try it     {started.url}/docs")
    say(f"  watch it   {started.url}/health   {started.url}/metrics")
    say("")
    say(f"  curl -s {started.url}/predict -H 'content-type: application/json' -d {shlex.quote(body)}")
    say("")
    say("Ctrl-C stops it; requests on their way are answered.")
    sys.stdout.flush()
    if started.reload_error is not None:
        note(f"warning: the last good spec is being served, not the newest:\n{started.reload_error}")
