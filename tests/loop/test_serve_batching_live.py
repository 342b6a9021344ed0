"""Batching on a real server: many clients at once, clients that leave, deadlines, and one bad request among good ones."""

import json
import socket
import threading

import pytest

from support.http_client import RawClient
from support.serving import running, wait_until

ROWS = 40


@pytest.fixture
def server(tmp_path):
    """One churn deployment."""
    with running(tmp_path) as (started, _):
        yield started


def head(body, **headers):
    lines = {"host": "127.0.0.1", "content-type": "application/json", "content-length": str(len(body))}
    lines |= {name.replace("_", "-"): value for name, value in headers.items()}
    return ("POST /predict HTTP/1.1\r\n" + "".join(f"{k}: {v}\r\n" for k, v in lines.items()) + "\r\n").encode() + body


def body_of(i):
    return json.dumps([{"tenure": i, "monthly": 20 + i, "계약": "1년", "prediction_id": f"p-{i}"}]).encode()


def test_a_burst_over_many_connections_gives_everybody_their_own_answer(server):
    """Forty clients ask in the same instant; each answer carries the asker's id and the score of the asker's row."""
    clients = [RawClient(server.host, server.port) for _ in range(ROWS)]
    alone = {}
    with RawClient(server.host, server.port) as one:
        for i in range(ROWS):
            one.send(head(json.dumps([{"tenure": i, "monthly": 20 + i, "계약": "1년"}]).encode()))
            alone[i] = one.reply().json["predictions"]
    for i, client in enumerate(clients):
        client.send(head(body_of(i)))
    replies = [client.reply().json for client in clients]
    for client in clients:
        client.socket.close()

    assert [[f"p-{i}"] for i in range(ROWS)] == [reply["prediction_ids"] for reply in replies]
    assert [alone[i] for i in range(ROWS)] == [reply["predictions"] for reply in replies]


def test_pipelined_requests_are_answered_in_their_order(server):
    """Good, bad and unknown paths in one write: answers come in the order of the questions."""
    with RawClient(server.host, server.port) as client:
        get = b"GET /nowhere HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n"
        client.send(head(body_of(1)) + head(b'[{"tenure": "x"}]') + get + head(body_of(2)) + head(body_of(3)))
        replies = [client.reply() for _ in range(5)]

    assert [200, 422, 404, 200, 200] == [reply.status for reply in replies]
    assert [["p-1"], ["p-2"], ["p-3"]] == [reply.json["prediction_ids"] for reply in replies if reply.status == 200]


def test_clients_that_leave_take_nobody_with_them(server):
    """Half of the clients cut the connection right after asking; the others have their answers, and the server goes on."""
    clients = [RawClient(server.host, server.port) for _ in range(ROWS)]
    for i, client in enumerate(clients):
        client.send(head(body_of(i)))
        if i % 2:
            client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
            client.socket.close()
    replies = [client.reply().json["prediction_ids"] for client in clients[::2]]
    for client in clients[::2]:
        client.socket.close()

    assert [[f"p-{i}"] for i in range(0, ROWS, 2)] == replies
    with RawClient(server.host, server.port) as client:
        assert wait_until(lambda: b"mulle_requests_in_flight 1" in client.request("GET", "/metrics").body)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        pytest.param("1000", 200, id="a second is plenty"),
        pytest.param("0", 400, id="no time at all is no number of milliseconds"),
        pytest.param("-5", 400, id="negative"),
        pytest.param("soon", 400, id="a word"),
        pytest.param("9" * 40, 400, id="longer than any request"),
    ],
)
def test_the_deadline_header_is_checked(server, value, expected):
    """Whole milliseconds up to an hour, or a clear refusal."""
    with RawClient(server.host, server.port) as client:
        client.send(head(body_of(1), mulle_timeout_ms=value))

        assert expected == client.reply().status


def test_known_heads_and_new_heads_get_the_same_answers(server):
    """The remembered way and the parser's way are one: same rows, same scores, over repeated, changed and split heads."""
    wanted = None
    with RawClient(server.host, server.port) as client:
        for i in range(12):
            request = head(json.dumps([{"tenure": 3, "monthly": 80}]).encode(), **({"x_trace": str(i)} if i % 3 == 0 else {}))
            cut = (i * 37) % len(request)
            client.send(request[:cut])
            client.send(request[cut:])
            reply = client.reply()
            wanted = wanted or reply.json["predictions"]

            assert (200, wanted) == (reply.status, reply.json["predictions"])


def test_many_threads_asking_at_once_never_get_each_others_answers(server):
    """Eight threads, four hundred requests each, every answer compared with its question."""
    wrong = []

    def work(n):
        with RawClient(server.host, server.port) as client:
            for i in range(400):
                name = f"t{n}-{i}"
                client.send(head(json.dumps([{"tenure": i % 70, "monthly": 30, "prediction_id": name}]).encode()))
                reply = client.reply()
                if reply.status != 200 or reply.json["prediction_ids"] != [name] or reply.headers["mulle-prediction-id"] != name:
                    wrong.append((name, reply))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert [] == wrong
