"""Mulle's own server with several workers: sockets, shared folder and configuration, handed to the supervisor."""

import contextlib
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from mulle.formats import telemetry as names
from mulle.serve.config import ServeConfig, require_safe
from mulle.serve.seat import encode_config
from mulle.serve.slots import close_slots, open_slots, reserve_port
from mulle.serve.telemetry.cells import SUPERVISOR
from mulle.serve.telemetry.folder import shared_folder
from mulle.serve.telemetry.registry import MetricsRegistry
from mulle.serve.workers import WorkerPlan, WorkerStatus, serve_workers

_START_S = 300.0
_HANG_S = 30.0
"""Generous: a large model is loaded beside the loop, and may keep the interpreter to itself for seconds."""
COMMAND = (sys.executable, "-m", "mulle.serve.worker_main")
STATUS_FILE = "workers.json"
"""In the folder that the workers share: the slots as the supervisor sees them."""


class Handed(msgspec.Struct):
    """What a worker is given beside its socket."""

    config: ServeConfig
    log_format: str
    log_level: str


def serve_supervised(
    config: ServeConfig,
    *,
    on_ready: Callable[[Mapping[str, Any]], None],
    log_format: str = "text",
    log_level: str = "info",
    fresh: Callable[[], ServeConfig] | None = None,
) -> int:
    """Serve with `config.workers` processes until SIGTERM or SIGINT; return the exit code.

    To be called in the main thread of a process that has started no other.

    Args:
        config: What and where.
        on_ready: Called once, when all workers answer, with what the first of them told (`worker_main.told`), their number
            (`workers`) and the folder they share (`run_dir`).
        log_format: How each worker writes its log.
        log_level: `debug`, `info`, `warning` or `error`.
        fresh: Gives the configuration again at SIGHUP; host, port and the number of workers stay.

    Raises:
        SpecError, CheckError, UnavailableError: as `server.serve`; what a worker could not do is raised here.
    """
    require_safe(config)
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(shared_folder())
        slots = open_slots(config.host, config.port, config.workers)
        stack.callback(close_slots, slots)
        fixed: dict[str, Any] = {
            "host": config.host,
            "port": slots[0].getsockname()[1],
            "workers": config.workers,
            "metrics_dir": folder,
            "grpc_port": config.grpc_port,
        }
        if config.grpc_port is not None:
            reserved = stack.enter_context(reserve_port(config.host, config.grpc_port))
            fixed["grpc_port"] = reserved.getsockname()[1]
        registry = MetricsRegistry(folder, worker=SUPERVISOR)
        stack.callback(registry.close)
        first = [config]

        def handed() -> bytes:
            newest = first.pop() if first else config if fresh is None else fresh()
            return encode_config(Handed(replace(newest, **fixed), log_format, log_level))

        plan = WorkerPlan(
            slots=slots,
            config=handed,
            command=COMMAND,
            drain_timeout_s=config.drain_timeout_s,
            start_timeout_s=_START_S,
            hang_timeout_s=_HANG_S,
        )
        return serve_workers(
            plan,
            on_ready=lambda infos: on_ready({**infos[0], "workers": len(infos), "run_dir": str(folder)}),
            on_change=lambda status: write_status(folder, status),
            on_restart=lambda worker: registry.counter(names.WORKER_RESTARTS, slot=str(worker)).add(),
        )


def write_status(folder: Path, status: Sequence[WorkerStatus]) -> None:
    """Put the slots where every worker can read them; what cannot be written is left out: it is only shown."""
    draft = folder / f".{STATUS_FILE}"
    with contextlib.suppress(OSError):
        draft.write_bytes(msgspec.json.encode(status))
        os.replace(draft, folder / STATUS_FILE)  # noqa: PTH105 - atomic, as its name says


def read_status(folder: Path) -> list[WorkerStatus]:
    """Return the slots as the supervisor last saw them; none where there is no supervisor."""
    try:
        return msgspec.json.decode((folder / STATUS_FILE).read_bytes(), type=list[WorkerStatus])
    except (OSError, msgspec.MsgspecError):
        return []
