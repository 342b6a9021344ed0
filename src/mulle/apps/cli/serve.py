"""`mulle serve`: deployments, or a bundle's folder, over HTTP and gRPC."""

import json
import shlex
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from mulle.apps.cli.output import note, print_json, say

if TYPE_CHECKING:
    from mulle.loop.paths import StatePaths
    from mulle.serve.config import ServeConfig

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command(epilog="Example: mulle serve --port 8080 --workers 2      or, without a project: mulle serve --bundle .mulle/bundles/3f2c…")
def serve(
    *,
    port: int | None = typer.Option(None, "--port", min=0, max=65535, help="Port; 0 takes a free one. 8080 unless [serving] port says."),
    host: str | None = typer.Option(None, "--host", help="Address to listen on. Only this machine unless [serving] host says."),
    deployment: list[str] = typer.Option(
        [], "--deployment", "-d", metavar="NAME", help="Which deployment; repeat it for several. The project's own by default."
    ),
    all_deployments: bool = typer.Option(
        False, "--all", help="Serve every deployment there is; load and unload them as their specs come and go."
    ),
    bundle: Path | None = typer.Option(
        None, "--bundle", metavar="DIR", help="Serve this sealed folder as revision 1, without the registry."
    ),
    workers: int | None = typer.Option(None, "--workers", "-w", min=1, max=1024, help="Processes behind the port; 1 by default."),
    max_batch: int | None = typer.Option(None, "--max-batch", min=1, max=65536, help="Rows answered together at most; 64 by default."),
    max_wait_ms: float | None = typer.Option(
        None,
        "--max-wait-ms",
        min=0.001,
        help="Wait from which requests are refused with 503; by default found from what the model costs here.",
    ),
    on_overload: str | None = typer.Option(
        None, "--on-overload", metavar="refuse|wait", help="refuse: 503 at once. wait: stop reading. refuse by default."
    ),
    threads: int | None = typer.Option(None, "--threads", min=0, max=256, help="Threads within an operator; measured by default."),
    grpc_port: int | None = typer.Option(
        None, "--grpc-port", min=0, max=65535, help="Speak the Open Inference Protocol over gRPC there too; 0 takes a free port."
    ),
    durability: str | None = typer.Option(
        None, "--durability", metavar="process|sync", help="What an answer waits for: the kernel, or the disk. process by default."
    ),
    drain_timeout: float | None = typer.Option(
        None, "--drain-timeout", min=0.0, metavar="SECONDS", help="How long requests on their way may take after SIGTERM; 10 by default."
    ),
    allow_remote: bool = typer.Option(
        False, "--allow-remote", help="Listen for other machines too; every request then needs an API key (mulle keys create)."
    ),
    log_format: str | None = typer.Option(None, "--log-format", metavar="text|json", help="How the server's own log is written."),
    access_log: bool | None = typer.Option(None, "--access-log/--no-access-log", help="One line per request on standard output."),
    project: Path = typer.Option(Path(), "--project", "-p", metavar="DIR", help="The project's folder."),
    environment: str = typer.Option("local", "--env", metavar="NAME", help="The environment."),
    as_json: bool = typer.Option(False, "--json", help="Say where it listens as one JSON document."),
) -> None:
    """Answer predictions: POST /predict, /invocations, /v2/models/…/infer; new champions are taken over without a failed request.

    Every bundle is verified, and must reproduce its golden requests, before it answers. SIGTERM drains. Everything else
    (CORS, limits, the prediction log, features, telemetry) is in [serving] of mulle.toml.
    """
    from mulle.serve.telemetry.logs import configure_logging

    config, fmt = _config(project, environment, deployment, bundle)
    configure_logging(log_format or fmt)
    asked: dict[str, Any] = {
        "port": port,
        "host": host,
        "workers": workers,
        "max_batch": max_batch,
        "max_wait_ms": max_wait_ms,
        "on_overload": _one_of(on_overload, ("refuse", "wait"), "--on-overload"),
        "threads": threads,
        "grpc_port": grpc_port,
        "drain_timeout_s": drain_timeout,
        "access_log": access_log,
        "log": None if durability is None else replace(config.log, durability=_one_of(durability, ("process", "sync"), "--durability")),
    }
    config = replace(config, allow_remote=allow_remote, **{name: value for name, value in asked.items() if value is not None})
    if all_deployments:
        config = _all_of(config)
    run_server(config, as_json=as_json, log_format=log_format or fmt)


def run_server(config: "ServeConfig", *, as_json: bool, log_format: str) -> None:
    """Serve in this process, or under a supervisor where several were asked for."""
    if config.workers > 1:
        from mulle.serve.supervised import serve_supervised

        raise typer.Exit(serve_supervised(config, on_ready=lambda told: _welcome(told, as_json=as_json), log_format=log_format))
    from mulle.serve.server import serve as serve_here
    from mulle.serve.worker_main import told

    serve_here(config, on_ready=lambda started: _welcome(told(started), as_json=as_json))


def _config(project: Path, environment: str, deployments: list[str], bundle: Path | None) -> "tuple[ServeConfig, str]":
    """Return the configuration, and how the server's own log is written."""
    from mulle.loop.serving import bundle_config, serve_config

    first = deployments[0] if deployments else None
    if bundle is not None and not (project / "mulle.toml").exists():
        state_dir = (project / ".mulle").resolve()
        return bundle_config(bundle, state_dir, deployment=first or _name_of(bundle)), "text"
    from mulle.loop.wiring import open_project

    settings, paths = open_project(project, environment)
    for name in deployments or [settings.deployment]:
        if bundle is None:
            _require_champion(paths, name)
    name = first or (None if bundle is None else _name_of(bundle))
    config = serve_config(settings, paths.ensure().root, deployment=name, bundle=bundle)
    return replace(config, also=tuple(deployments[1:])), settings.serving.telemetry.log_format


def _all_of(config: "ServeConfig") -> "ServeConfig":
    folder = config.state_dir / "serving"
    names = sorted(path.stem for path in folder.glob("*.json")) if folder.is_dir() else []
    return replace(config, also=tuple(name for name in names if name != config.deployment), all_deployments=True)


def _one_of(value: str | None, known: tuple[str, ...], option: str) -> str | None:
    if value is None or value in known:
        return value
    from mulle.core.errors import SpecError

    raise SpecError("option-value", f"{option} is {value!r}", fix=f"use one of {', '.join(known)}", where=option)


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


def _welcome(told: Mapping[str, Any], *, as_json: bool) -> None:
    import sys

    if as_json:
        shown = ("url", "host", "port", "grpc_port", "deployment", "generation", "revisions", "workers")
        print_json({name: told[name] for name in shown if told.get(name) is not None})
        sys.stdout.flush()
        return
    url, workers = told["url"], told.get("workers", 1)
    say(f"{told['deployment']} is served at {url}" + (f" by {workers} workers" if workers > 1 else ""))
    say(f"  model      {told['model']} version {told['model_version']}, revision {told['revisions'][0]}")
    say(f"  bundle     {told['bundle'][:12]}, verified; its golden requests reproduce")
    say(f"  try it     {url}/docs")
    say(f"  watch it   {url}/health   {url}/metrics")
    if told.get("grpc_port") is not None:
        say(f"  gRPC       {told['host']}:{told['grpc_port']}, Open Inference Protocol")
    say("")
    say(f"  {_try_it(told, url)}")
    say("")
    say("Ctrl-C stops it; requests on their way are answered.")
    sys.stdout.flush()
    if told.get("reload_error") is not None:
        note(f"warning: the last good spec is being served, not the newest:\n{told['reload_error']}")


def _try_it(told: Mapping[str, Any], url: str) -> str:
    """Return a command that asks the server something it can answer."""
    if told["kind"] == "image":
        return f"curl -s {url}/predict -F file=@picture.jpg"
    if told["kind"] == "tensors":
        return f"curl -s {url}/v2/models/{told['deployment']}"
    body = json.dumps([dict(told["example"])], ensure_ascii=False)
    return f"curl -s {url}/predict -H 'content-type: application/json' -d {shlex.quote(body)}"
