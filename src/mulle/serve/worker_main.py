"""The program of one worker: `python -m mulle.serve.worker_main DESCRIPTOR`, started by the supervisor only."""

import sys
from dataclasses import replace
from typing import Any

from mulle.serve.config import Started
from mulle.serve.seat import Seat, decode_config, run_worker
from mulle.serve.server import serve
from mulle.serve.supervised import Handed
from mulle.serve.telemetry.logs import configure_logging


def told(started: Started) -> dict[str, Any]:
    """Return what a worker tells about itself once it listens, as plain JSON."""
    serving = started.serving
    served = serving.revisions[0]
    return {
        "url": started.url,
        "host": started.host,
        "port": started.port,
        "grpc_port": started.grpc_port,
        "deployment": serving.deployment,
        "generation": serving.generation,
        "revisions": [served.number for served in serving.revisions],
        "model": served.source.model,
        "model_version": served.source.model_version,
        "kind": served.manifest.kind,
        "bundle": served.source.bundle_digest,
        "example": dict(started.example),
        "reload_error": None if started.reload_error is None else str(started.reload_error),
    }


def serve_seated(seat: Seat) -> None:
    """Serve what the seat's configuration names, on its socket, until SIGTERM.

    Raises:
        MulleError: see `server.serve`; told to the supervisor.
    """
    given = decode_config(seat.config, Handed)
    configure_logging(given.log_format, given.log_level)
    config = replace(given.config, worker=seat.worker)
    serve(config, on_ready=lambda started: seat.ready(told(started)), listener=seat.listener)


if __name__ == "__main__":
    sys.exit(run_worker(int(sys.argv[1]), serve_seated))
