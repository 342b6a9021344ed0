"""Ten thousand connections that say nothing: they cost little memory, no time, and nobody else an answer."""

import os
import re
import resource
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest

from support.bundles import seal_churn, trusted_key, write_spec
from support.http_client import RawClient

pytestmark = pytest.mark.slow
N_IDLE = 10_000
MAX_BYTES_EACH = 12_000
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
ROW = [{"tenure": 1, "monthly": 70}]
SERVER = """
import sys
from pathlib import Path
from mulle.serve.http.checks import Limits
from mulle.serve.server import ServeConfig, serve
limits = Limits(connections=12_000, idle_timeout_s=600, head_timeout_s=600)
config = ServeConfig(state_dir=Path(sys.argv[1]), deployment="churn", trusted=[sys.argv[2]], port=0, limits=limits)
serve(config, on_ready=lambda started: print(started.port, flush=True))
"""


@pytest.fixture
def server(tmp_path):
    """A server in a process of its own, whose memory is only its own; gives its process and port."""
    state = tmp_path / ".mulle"
    write_spec(state, [seal_churn(state / "bundles")], generation=1)
    process = subprocess.Popen([sys.executable, "-c", SERVER, str(state), trusted_key()], stdout=subprocess.PIPE, text=True)
    try:
        yield process, int(process.stdout.readline())
    finally:
        process.terminate()
        process.wait(30)
        process.stdout.close()


def resident_bytes(pid):
    return int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]) * PAGE_BYTES


def latencies(port, n):
    """Return how long each of `n` predictions took, in seconds."""
    took = []
    with RawClient("127.0.0.1", port) as client:
        for _ in range(n):
            before = time.perf_counter()
            assert 200 == client.request("POST", "/predict", ROW).status
            took.append(time.perf_counter() - before)
    return took


@pytest.mark.parametrize(
    "begin",
    [
        pytest.param(b"", id="silent from the start"),
        pytest.param(b"GET /v2/health/live HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", id="silent after an answer"),
        pytest.param(b"POST /predict HTTP/1.1\r\nHost: 127.", id="silent in the middle of a head"),
    ],
)
def test_ten_thousand_idle_connections_cost_little(server, require_service, record_testsuite_property, request, begin):
    """Memory per connection is bounded, and a prediction among them takes as long as without them."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    require_service(hard >= N_IDLE + 500, f"{N_IDLE} open files", "ulimit -n 20000")
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, N_IDLE + 2_000), hard))
    process, port = server
    latencies(port, 2_000)
    alone = statistics.median(latencies(port, 300))
    before = resident_bytes(process.pid)
    held = []
    try:
        for _ in range(N_IDLE):
            connection = socket.create_connection(("127.0.0.1", port), timeout=10)
            held.append(connection)
            if begin:
                connection.sendall(begin)
            if begin.endswith(b"\r\n\r\n"):
                connection.recv(4_096)
        among = statistics.median(latencies(port, 300))
        with RawClient("127.0.0.1", port) as client:
            text = client.request("GET", "/metrics").body.decode()
        each = (resident_bytes(process.pid) - before) / N_IDLE
    finally:
        for connection in held:
            connection.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    name = request.node.callspec.id
    record_testsuite_property(
        f"{name}: bytes per connection, median µs alone and among", (round(each), round(alone * 1e6), round(among * 1e6))
    )
    n_open = float(re.search(r"^mulle_connections (\S+)", text, re.MULTILINE)[1])

    assert n_open >= N_IDLE
    assert each < MAX_BYTES_EACH
    assert among < 3 * alone + 0.001
    assert latencies(port, 1)
