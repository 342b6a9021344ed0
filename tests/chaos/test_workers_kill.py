"""Workers that are killed, stopped, hung or broken under load: what is lost, and what is not."""

import os
import signal
import socket
import time

import pytest

from support.http_client import RawClient
from support.workers import Load, alive, supervised

pytestmark = pytest.mark.chaos
ASK = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"


def kill_one(server):
    """Kill the worker of slot 0 and return its process and after how many seconds another was ready."""
    victim = server.pids()[0]
    os.kill(victim, signal.SIGKILL)
    return victim, server.wait_for(lambda slots: slots[0][1] not in {0, victim} and slots[0][2] == "ready")


@pytest.mark.slow
def test_a_killed_worker_loses_only_its_open_connections(tmp_path):
    """Killed with -9 five times under load: nobody is refused, only the victims' own connections end, each replaced within a second."""
    victims, times = set(), []
    with supervised(tmp_path, n=2) as server, Load(server.port) as load:
        for _ in range(5):
            time.sleep(0.3)
            victim, seconds = kill_one(server)
            victims.add(victim)
            times.append(seconds)
            server.wait_for(lambda slots: all(slot[2] == "ready" for slot in slots))
            time.sleep(1.0)  # a spare is imported
        load.stop()
        restarts = [slot[3] for slot in server.status()]
        code = server.end()

    assert 0 == load.outcomes["refused"]
    assert load.outcomes["answered"] > 100
    assert set(load.cut_pids) <= victims | {None}
    # At the moment of each kill every client had at most one request on its way.
    assert load.outcomes["cut"] + load.outcomes["idle"] <= 5 * 4
    assert max(times) < 1.0
    assert [5, 0] == restarts
    assert 0 == code


def test_connections_in_the_queue_of_a_killed_worker_are_answered(tmp_path):
    """Fifty clients whom a stopped worker never accepted are answered by its replacement, every one."""
    with supervised(tmp_path, n=1) as server:
        victim = server.pids()[0]
        os.kill(victim, signal.SIGSTOP)
        clients = [RawClient("127.0.0.1", server.port) for _ in range(50)]
        for client in clients:
            client.send(ASK)
        os.kill(victim, signal.SIGKILL)
        answers = [int(client.reply().body) for client in clients]
        for client in clients:
            client.socket.close()
        now = server.pids()

    assert 50 == len(answers)
    assert set(now) == set(answers)
    assert victim not in answers


@pytest.mark.parametrize("one_each", [pytest.param(True, id="a socket per slot"), pytest.param(False, id="one socket for all")])
def test_both_ways_of_listening_answer(tmp_path, one_each):
    """With a socket per slot, and with one shared as on systems that do not spread connections: answered by the one left."""
    with supervised(tmp_path, n=2, one_each=one_each) as server, Load(server.port) as load:
        time.sleep(0.3)
        kill_one(server)
        time.sleep(0.3)
        load.stop()

    assert load.outcomes["answered"] > 20
    assert 0 == load.outcomes["refused"]
    assert load.outcomes["cut"] + load.outcomes["idle"] <= 4


def test_a_hung_worker_is_killed_and_replaced(tmp_path):
    """A loop that stands still gives no sign of life: it prints where, is killed, and another answers."""
    with supervised(tmp_path, n=1, hang_timeout_s=1.0) as server:
        victim = server.pids()[0]
        with RawClient("127.0.0.1", server.port) as client:
            client.send(b"GET /hang HTTP/1.1\r\nhost: x\r\n\r\n")
            server.wait_for(lambda slots: slots[0][1] not in {0, victim} and slots[0][2] == "ready")
        with RawClient("127.0.0.1", server.port) as client:
            answer = int(client.request("GET", "/").body)
        log = server.log()

    assert victim != answer
    assert "no sign of life for 1 s" in log
    assert "data_received" in log


def test_a_stopped_worker_is_replaced(tmp_path):
    """A process that is stopped from outside cannot print anything: killed all the same."""
    with supervised(tmp_path, n=2, hang_timeout_s=1.0) as server:
        victim, other = server.pids()
        os.kill(victim, signal.SIGSTOP)
        server.wait_for(lambda slots: slots[0][1] not in {0, victim} and slots[0][2] == "ready")
        answered = other in server.pids()

    assert answered
    assert not alive(victim)


def test_a_worker_that_keeps_failing_is_tried_less_and_less_often(tmp_path):
    """The others go on, the log counts the failures and says when the next try is, and what was mended is taken up again."""
    with supervised(tmp_path, n=2) as server:
        (tmp_path / "fail-0").write_text("")
        os.kill(server.pids()[0], signal.SIGKILL)
        server.wait_for(lambda slots: slots[0][3] >= 3)
        tries = server.status()[0][3]
        other = server.status()[1]
        (tmp_path / "fail-0").unlink()
        server.wait_for(lambda slots: slots[0][2] == "ready")
        log = server.log()

    assert 3 <= tries <= 4
    assert ["ready", 0] == other[2:]
    assert "error[tiny-broken]" in log
    assert log.index("replaced at once") < log.index("next try in 0.5 s") < log.index("next try in 1 s")


def test_a_worker_that_cannot_start_stops_the_start(tmp_path):
    """Nothing is half started: the worker's own error is the supervisor's, and the port is free."""
    (tmp_path / "fail-1").write_text("")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with supervised(tmp_path, n=2, port=port) as server:
        code = server.process.wait(20)

    assert ({}, 2) == (server.told, code)
    assert "error[tiny-broken]: worker 1 was told to fail" in server.log()
    with socket.create_server(("127.0.0.1", port)):
        pass


@pytest.mark.parametrize("path", [pytest.param("/", id="workers that turn"), pytest.param("/hang", id="a worker that hangs")])
def test_workers_end_with_a_supervisor_that_was_killed(tmp_path, path):
    """Killed with -9 itself it leaves nobody behind: within three seconds no worker lives, and the port is free."""
    with supervised(tmp_path, n=2) as server, RawClient("127.0.0.1", server.port) as client:
        client.send(f"GET {path} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
        time.sleep(0.5)
        workers = server.pids()
        server.process.kill()
        server.process.wait()
        start = time.monotonic()
        while any(alive(pid) for pid in workers) and time.monotonic() < start + 10:
            time.sleep(0.02)
        seconds = time.monotonic() - start
        with socket.create_server(("127.0.0.1", server.port)):
            pass

    assert seconds < 3.0


def test_a_port_that_is_taken_is_said(tmp_path):
    """A second supervisor does not join the first one's port, although the system would let it."""
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    with supervised(tmp_path / "one", n=2) as first, supervised(tmp_path / "two", n=2, port=first.port) as second:
        code = second.process.wait(20)
        with RawClient("127.0.0.1", first.port) as client:
            status = client.request("GET", "/").status

    assert 0 != code
    assert "serve-port" in second.log()
    assert 200 == status
