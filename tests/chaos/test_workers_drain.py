"""Ending and replacing workers on purpose, under load: no request that was accepted fails."""

import os
import signal
import socket
import time

import pytest

from support.http_client import RawClient
from support.workers import Load, alive, supervised

pytestmark = pytest.mark.chaos


def test_sigterm_answers_everything_that_was_accepted(tmp_path):
    """Under load: no request is cut; kept connections closed between two requests are counted apart; exit code 0."""
    with supervised(tmp_path, n=2) as server, Load(server.port, path="/slow", per_connection=3) as load:
        time.sleep(1.0)
        code = server.end()
        load.stop()

    assert 0 == code
    assert 0 == load.outcomes["cut"]
    assert load.outcomes["idle"] <= 4
    assert load.outcomes["answered"] > 4


def test_sigterm_answers_what_waits_in_the_queue(tmp_path):
    """Connections that were never accepted when the end is asked for are answered before the socket closes."""
    with supervised(tmp_path, n=1) as server:
        worker = server.pids()[0]
        os.kill(worker, signal.SIGSTOP)
        clients = [RawClient("127.0.0.1", server.port) for _ in range(50)]
        for client in clients:
            client.send(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        os.kill(worker, signal.SIGCONT)
        replies = [client.reply() for client in clients]
        code = server.process.wait(10)
        for client in clients:
            client.socket.close()

    assert [200] * 50 == [reply.status for reply in replies]
    assert {"close"} == {reply.headers.get("connection", "close") for reply in replies}
    assert 0 == code


def test_a_second_signal_ends_at_once(tmp_path):
    """Whoever asks twice does not wait for the drain."""
    with supervised(tmp_path, n=2, drain_timeout_s=60.0) as server, RawClient("127.0.0.1", server.port) as client:
        client.send(b"GET /hang HTTP/1.1\r\nhost: x\r\n\r\n")
        time.sleep(0.2)
        workers = server.pids()
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        still = server.process.poll()
        start = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        code = server.process.wait(10)
        seconds = time.monotonic() - start

    assert (None, 1) == (still, code)
    assert seconds < 1.0
    assert not any(alive(pid) for pid in workers)


def test_a_worker_that_does_not_drain_is_killed_in_time(tmp_path):
    """The time for draining is a promise: who exceeds it is killed, and the exit code says that something was cut."""
    with supervised(tmp_path, n=1, drain_timeout_s=0.2) as server, RawClient("127.0.0.1", server.port) as client:
        client.send(b"GET /hang HTTP/1.1\r\nhost: x\r\n\r\n")
        time.sleep(0.2)
        code = server.end()
        log = server.log()

    assert 1 == code
    assert "not drained within 0.2 s" in log


def test_sighup_replaces_every_worker_without_a_failed_request(tmp_path):
    """One by one under load: other processes, no request refused or cut, no restart counted."""
    with supervised(tmp_path, n=2) as server, Load(server.port, per_connection=10) as load:
        time.sleep(0.3)
        before = server.pids()
        server.process.send_signal(signal.SIGHUP)
        server.wait_for(lambda slots: not {slot[1] for slot in slots} & set(before) and all(slot[2] == "ready" for slot in slots), 20)
        time.sleep(0.5)
        load.stop()
        restarts = [slot[3] for slot in server.status()]
        gone = [alive(pid) for pid in before]

    assert (0, 0) == (load.outcomes["refused"], load.outcomes["cut"])
    assert load.outcomes["idle"] <= 8
    assert load.outcomes["answered"] > 100
    assert [0, 0] == restarts
    assert [False, False] == gone
    assert set(server.pids()) <= set(load.answered_by)


def test_sighup_with_a_broken_configuration_keeps_the_old_workers(tmp_path):
    """A new worker that cannot start takes nobody's place."""
    with supervised(tmp_path, n=2) as server:
        before = server.pids()
        (tmp_path / "fail-0").write_text("")
        server.process.send_signal(signal.SIGHUP)
        deadline = time.monotonic() + 10
        while "the old workers go on" not in server.log() and time.monotonic() < deadline:
            time.sleep(0.02)
        after = server.pids()
        with RawClient("127.0.0.1", server.port) as client:
            status = client.request("GET", "/").status

    assert before == after
    assert 200 == status


def test_after_the_end_the_port_is_free(tmp_path):
    """Nothing holds the sockets open: another server can have the port at once."""
    with supervised(tmp_path, n=3) as server:
        code = server.end()
        with socket.create_server(("127.0.0.1", server.port)):
            pass

    assert 0 == code
