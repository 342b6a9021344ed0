"""The HTTP stacks of `http_stack.py`, and three servers from the peers' environment, under the same requests.

Every server is started as a fresh process and driven by the same client. In a first, short attempt the stacks went through
`http_stack.measure` instead (forked, with its own client) and came out about twice as dear as they do here, while the servers
from the peers' environment stayed where they were: figures of the two ways must not be put into one table.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from http_stack import REQUEST, STACKS
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


OWN = (
    "import socket, http_stack; s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1); "
    "s.bind(('127.0.0.1', {port})); s.listen(1024); s.setblocking(False); http_stack.STACKS[{name!r}](s)"
)


def own_command(name: str, port: int) -> list[str]:
    """Return how a stack of `http_stack.py` is started in a process of its own."""
    return [sys.executable, "-c", OWN.format(name=name, port=port)]


def peer_command(name: str, port: int) -> list[str]:
    """Return how a server in the peers' environment is started."""
    return [str(peer_bin("http") / "python"), str(HERE / "peers" / "http_servers.py"), name, str(port)]


def measure_server(command: Callable[[str, int], list[str]], name: str, connections: int, seconds: float) -> Values:
    """Return the figures of a server, started anew."""
    port = free_port()
    process = subprocess.Popen(
        command(name, port),
        cwd=HERE / "peers" if command is peer_command else HERE,
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
    seconds = 0.5 if context.quick else 1.0
    tables = []
    skipped: dict[str, str] = {}
    for n in CONNECTIONS if not context.quick else (16,):

        def server(command: Callable[[str, int], list[str]], name: str, n: int = n) -> Callable[[], Values]:
            return lambda: measure_server(command, name, n, seconds)

        contestants = {NAMES[name]: server(own_command, name) for name in STACKS}
        contestants |= {
            "granian, RSGI": server(peer_command, "granian"),
            "blacksheep on uvicorn": server(peer_command, "blacksheep"),
            "robyn": server(peer_command, "robyn"),
        }
        turns = take_turns(contestants, rounds=context.rounds(2), warm_up=False)
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
