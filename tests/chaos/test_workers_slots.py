"""The sockets that outlive workers, and the configuration that is handed to them."""

import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mulle.core.errors import SpecError, UnavailableError
from mulle.formats.api_keys import KeySource
from mulle.serve.config import ServeConfig
from mulle.serve.seat import decode_config, encode_config
from mulle.serve.slots import accept_rest, close_slots, open_slots, reserve_port

linux = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the kernel does not spread connections: one socket is shared")


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_slots_share_one_port(host):
    """All of them listen on the same free port, each in its own way non-blocking."""
    slots = open_slots(host, 0, 3)
    ports = {slot.getsockname()[1] for slot in slots}
    blocking = {slot.getblocking() for slot in slots}
    close_slots(slots)

    assert 1 == len(ports)
    assert {False} == blocking


@linux
def test_the_kernel_spreads_connections_and_every_one_waits_somewhere():
    """A hundred connections: each is in exactly one queue, and no queue gets all."""
    slots = open_slots("127.0.0.1", 0, 2)
    clients = [socket.create_connection(slots[0].getsockname()) for _ in range(100)]
    waiting = [accept_rest(slot) for slot in slots]
    for connection in [*clients, *waiting[0], *waiting[1]]:
        connection.close()
    close_slots(slots)

    assert 100 == sum(len(queue) for queue in waiting)
    assert min(len(queue) for queue in waiting) > 10


@pytest.mark.parametrize("reuse", [pytest.param(False, id="a plain server"), pytest.param(True, id="one that would share its port")])
def test_a_port_in_use_is_refused(reuse):
    """Nobody joins a port that somebody listens on, although with SO_REUSEPORT the system would let it."""
    with socket.socket() as other:
        if reuse:
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        codes = []
        for attempt in (lambda: open_slots("127.0.0.1", port, 2), lambda: reserve_port("127.0.0.1", port)):
            with pytest.raises(UnavailableError) as raised:
                attempt()
            codes.append(raised.value.code)

    assert ["serve-port"] * 2 == codes


@pytest.mark.parametrize("host", [pytest.param("no.such.host.invalid", id="no such host"), pytest.param("x" * 300, id="no host at all")])
def test_an_address_that_is_none_is_refused(host):
    """The option to mend is named."""
    with pytest.raises(SpecError) as raised:
        open_slots(host, 0, 2)

    assert ("serve-address", "--host") == (raised.value.code, raised.value.where)


def test_a_reserved_port_takes_no_connections_and_lets_workers_in():
    """It only keeps the number: clients are refused until a worker listens, and then all reach the worker."""
    with reserve_port("127.0.0.1", 0) as reserved:
        address = reserved.getsockname()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address)
        with socket.socket() as worker:
            worker.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            worker.bind(address)
            worker.listen()
            clients = [socket.create_connection(address, timeout=5) for _ in range(20)]
            worker.setblocking(False)
            waiting = accept_rest(worker)
            for connection in [*clients, *waiting]:
                connection.close()

    assert 20 == len(waiting)


def test_a_closed_queue_gives_nothing():
    """A worker that drains twice finds nothing the second time."""
    (slot,) = open_slots("127.0.0.1", 0, 1)
    first = accept_rest(slot)
    slot.close()

    assert ([], []) == (first, accept_rest(slot))


def test_a_configuration_arrives_as_it_was_sent():
    """Every value of a server's configuration, paths and references to keys included, in one line."""
    config = ServeConfig(
        state_dir=Path("/프로젝트/.mulle"),
        deployment="이탈",
        trusted=["ab" * 32],
        bundle=Path("묶음"),
        keys=KeySource(text="f3" * 32),
        metrics_dir=Path("/run/x"),
        drain_timeout_s=2.5,
        worker=3,
    )
    sent = encode_config(config)

    assert config == decode_config(sent, ServeConfig)
    assert b"\n" not in sent


def test_a_worker_without_a_supervisor_ends():
    """Whoever starts the program by hand, or loses its supervisor before there was a seat, is not left with a process."""
    ours, theirs = socket.socketpair()
    tiny = Path(__file__).parents[1] / "support" / "tiny_worker.py"
    process = subprocess.Popen([sys.executable, str(tiny), str(theirs.fileno())], pass_fds=(theirs.fileno(),))
    theirs.close()
    hello = ours.recv(4096)
    start = time.monotonic()
    ours.close()
    code = process.wait(10)

    assert b'"hello"' in hello
    assert 0 == code
    assert time.monotonic() - start < 3
