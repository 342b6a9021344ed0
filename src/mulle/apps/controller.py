"""The controller in its first form: one process that says it is alive and carries out what the event log decided.

Monitors, triggers and the API move in here later. It may be killed at any instruction: the outbox carries everything out
at least once, idempotently.
"""

import argparse
import json
import os
import signal
import sys
import threading
from pathlib import Path
from types import FrameType

from mulle.core.errors import MulleError
from mulle.loop.paths import StatePaths, write_atomic
from mulle.loop.record import iso
from mulle.loop.wiring import SystemClock, open_outbox, open_project, open_state

HEARTBEAT_S = 2.0
RECONCILE_EVERY = 30
"""Heartbeats between two looks for edits made in the tracking server."""


def main(arguments: list[str] | None = None) -> int:
    """Beat and drain until SIGTERM or SIGINT; return the exit code."""
    parser = argparse.ArgumentParser(prog="mulle-controller", description="Drains the outbox and writes a heartbeat.")
    parser.add_argument("--project", type=Path, default=Path())
    parser.add_argument("--env", default="local")
    parser.add_argument("--interval-s", type=float, default=HEARTBEAT_S)
    options = parser.parse_args(arguments)
    stop = threading.Event()

    def ask(_number: int, _frame: FrameType | None) -> None:
        stop.set()

    signal.signal(signal.SIGTERM, ask)
    signal.signal(signal.SIGINT, ask)
    try:
        settings, paths = open_project(options.project, options.env)
        paths.ensure()
        store = open_state(settings)
    except MulleError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    outbox = open_outbox(settings, store)
    beat = 0
    warned = ""
    try:
        while True:
            warning = ""
            try:
                report = outbox.drain(reconcile=beat % RECONCILE_EVERY == RECONCILE_EVERY - 1)
                warning = "; ".join(report.warnings)
                for line in [*(f"spec of {name} written" for name in report.specs), *report.projected, *report.drifts]:
                    sys.stdout.write(line + "\n")
            except MulleError as error:
                warning = str(error)
            if warning and warning != warned:
                sys.stderr.write(warning + "\n")
            warned = warning
            _beat(paths, beat, warning)
            sys.stdout.flush()
            beat += 1
            if stop.wait(options.interval_s):
                return 0
    finally:
        store.close()
        paths.controller.unlink(missing_ok=True)


def _beat(paths: StatePaths, beat: int, warning: str) -> None:
    document = {"pid": os.getpid(), "beat": beat, "time": iso(SystemClock().now_ns()), "warning": warning}
    try:
        write_atomic(paths.controller, json.dumps(document).encode("utf-8"))
    except OSError as error:
        sys.stderr.write(f"the heartbeat cannot be written: {error}\n")


if __name__ == "__main__":
    sys.exit(main())
