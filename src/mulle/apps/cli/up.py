"""`mulle up`: data plane, tracking UI and controller together, and down together."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from mulle.apps.supervisor import Program
    from mulle.loop.paths import StatePaths
    from mulle.loop.settings import Settings

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command(epilog="Example: mulle up --tracking-port 5000")
def up(
    *,
    project: Path = typer.Option(Path(), "--project", "-p", metavar="DIR", help="The project's folder."),
    environment: str = typer.Option("local", "--env", metavar="NAME", help="One of the environments in mulle.toml."),
    port: int | None = typer.Option(None, "--port", min=0, max=65535, help="Port of the data plane; [serving] port by default."),
    tracking_port: int = typer.Option(5000, "--tracking-port", min=0, max=65535, help="Port of the tracking UI; 0 takes a free one."),
    no_tracking: bool = typer.Option(False, "--no-tracking", help="Leave the tracking UI out."),
    timeout_s: float = typer.Option(120.0, "--timeout", help="Seconds until everything must be ready."),
    json_wanted: bool = typer.Option(False, "--json", help="Print the addresses as one JSON document when ready."),
) -> int:
    """Start server, tracking UI and controller; Ctrl-C stops all of them. Everything listens on this machine only."""
    from mulle.apps.cli.output import note, print_json, say
    from mulle.apps.supervisor import Supervisor
    from mulle.loop.wiring import open_project

    settings, paths = open_project(project, environment)
    _require_deployment(settings, paths)
    serving_port = _free_port(settings.serving.host, settings.serving.port if port is None else port)
    programs = [_server(settings, serving_port), _controller(settings, paths)]
    urls = {
        "predict": f"http://{settings.serving.host}:{serving_port}/predict",
        "docs": f"http://{settings.serving.host}:{serving_port}/docs",
    }
    if not no_tracking:
        ui_port = _free_port("127.0.0.1", tracking_port)
        programs.append(_tracking(settings, ui_port))
        urls["tracking"] = f"http://127.0.0.1:{ui_port}"

    def ready() -> None:
        if json_wanted:
            print_json({"urls": urls})
        else:
            for name, url in urls.items():
                say(f"{name:<9} {url}")
            say("ready; Ctrl-C stops everything")
        sys.stdout.flush()

    return Supervisor(programs, show=note, timeout_s=timeout_s).run(ready)


def _require_deployment(settings: "Settings", paths: "StatePaths") -> None:
    from mulle.core.errors import SpecError

    if not paths.spec(settings.deployment).is_file():
        raise SpecError(
            "up-nothing-to-serve", f"deployment {settings.deployment!r} has no champion yet", fix="mulle run", where=str(paths.serving)
        )


def _server(settings: "Settings", port: int) -> "Program":
    from mulle.apps.supervisor import Program, answers

    command = (sys.executable, "-m", "mulle.apps.cli.main", "serve", *_project(settings), "--port", str(port))
    return Program("serve", command, answers(f"http://{settings.serving.host}:{port}/v2/health/ready"))


def _controller(settings: "Settings", paths: "StatePaths") -> "Program":
    import time

    from mulle.apps.supervisor import Program

    started = time.time()

    def beats() -> bool:
        try:
            return paths.controller.stat().st_mtime >= started - 1
        except OSError:
            return False

    return Program("control", (sys.executable, "-m", "mulle.apps.controller", *_project(settings)), beats)


def _tracking(settings: "Settings", port: int) -> "Program":
    from mulle.apps.supervisor import Program, answers
    from mulle.loop.wiring import artifact_root, tracking_uri

    command = (
        *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"),
        *("--default-artifact-root", artifact_root(settings)),
        # The port belongs to the name: a page elsewhere that points its own name at this machine is refused.
        *("--allowed-hosts", f"127.0.0.1:{port},localhost:{port}"),
    )
    # The address may carry a password, which a process list would show: it goes by the environment.
    environment = {"MLFLOW_BACKEND_STORE_URI": tracking_uri(settings), "MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}
    return Program("tracking", command, answers(f"http://127.0.0.1:{port}/health"), environment)


def _project(settings: "Settings") -> tuple[str, ...]:
    return ("--project", str(settings.project_dir), "--env", settings.environment)


def _free_port(host: str, wanted: int) -> int:
    """Return `wanted` if it can be bound, or for 0 a port that is free now."""
    import socket

    from mulle.core.errors import ConflictError

    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, wanted))
        except OSError as error:
            raise ConflictError(
                "up-port-taken",
                f"port {wanted} on {host!r} is in use: {error.strerror}",
                fix="stop what uses it, or choose another with --port or --tracking-port",
            ) from error
        return int(probe.getsockname()[1])
