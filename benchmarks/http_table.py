"""The HTTP stacks of `http_stack.py`, and three servers with parsers of their own, under the same requests."""

import os
import signal
import subprocess
import time
from collections.abc import Callable
from typing import Any

from http_stack import REQUEST, STACKS
from http_stack import measure as measure_stack
from load import ask_once, drive, free_port, tree
from measure import HERE, Context, SkippedError, Values, column, headline, quiet_environment, report, table, take_turns
from venvs import peer_bin

NAMES = {
    "mulle": "mulle.serve.http, with all its checks",
    "asgi": "bare ASGI function on uvicorn",
    "starlette": "Starlette on uvicorn",
    "fastapi": "FastAPI on uvicorn",
}
CONNECTIONS = (1, 16, 64)
COLUMNS = (
    column("rate", "requests/s", "rate"),
    column("cpu_us", "CPU per request", "µs"),
    column("p50_ms", "p50", "ms"),
    column("p99_ms", "p99", "ms"),
)


def peer(name: str, connections: int, seconds: float) -> Values:
    """Return the figures of a server in its own environment."""
    port = free_port()
    process = subprocess.Popen(
        [str(peer_bin("http") / "python"), str(HERE / "peers" / "http_servers.py"), name, str(port)],
        cwd=HERE / "peers",
        env=quiet_environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 20
        while ask_once(port, REQUEST, 5.0) != 200:
            if time.monotonic() > deadline or process.poll() is not None:
                raise SkippedError(f"{name} did not answer")
            time.sleep(0.05)
        drive(port, REQUEST, connections=1, seconds=0.5, pid=process.pid)
        found = drive(port, REQUEST, connections=connections, seconds=seconds, pid=process.pid)
    finally:
        for pid in tree(process.pid):
            os.kill(pid, signal.SIGKILL)
        process.wait()
    if found.pop("failed"):
        raise SkippedError(f"{name} failed requests")
    return found


def measure_http_stack(context: Context) -> dict[str, Any]:
    """Return rate and CPU per request of each stack at several numbers of connections."""
    seconds = 0.5 if context.quick else 1.5
    tables = []
    skipped: dict[str, str] = {}
    for n in CONNECTIONS if not context.quick else (16,):

        def stack(name: str, n: int = n) -> Callable[[], Values]:
            def once() -> Values:
                rate, p50, p99, cpu = measure_stack(name, n, seconds)
                return {"rate": rate, "p50_ms": p50, "p99_ms": p99, "cpu_us": cpu}

            return once

        def server(name: str, n: int = n) -> Callable[[], Values]:
            return lambda: peer(name, n, seconds)

        contestants = {NAMES[name]: stack(name) for name in STACKS}
        contestants |= {
            "granian, RSGI": server("granian"),
            "blacksheep on uvicorn": server("blacksheep"),
            "robyn": server("robyn"),
        }
        turns = take_turns(contestants, rounds=context.rounds(3), warm_up=False)
        skipped |= turns.skipped
        tables.append(
            table(
                f"{n} connection{'s' if n > 1 else ''}",
                COLUMNS,
                turns.rows,
                ratio="rate",
                headlines=[headline(f"HTTP stack alone, requests/s at {n} connections", NAMES["mulle"], "rate")] if n == 64 else [],
            )
        )
    notes = ["Each server decodes 30 floats from JSON, sums them and answers JSON; no model. One process; closed loop on the same cores."]
    return report("The HTTP stack alone", tables, skipped=skipped, notes=notes)
