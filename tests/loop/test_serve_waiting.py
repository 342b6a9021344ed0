"""`on_overload = wait` on a real server: what it stopped reading it reads later, in order, and ends with nothing left out."""

import json
import threading

import pytest

from support.http_client import RawClient
from support.serving import running

N = 600


def pipeline(name, *, known):
    """Return many requests in one piece, each with an id of its own; with `known` false every head differs from the others."""
    parts = []
    for i in range(N):
        body = json.dumps([{"tenure": i % 60, "monthly": 30, "prediction_id": f"{name}-{i:04}"}]).encode()
        trace = "" if known else f"x-trace: {name}-{i}\r\n"
        head = f"POST /predict HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n{trace}content-length: {len(body)}\r\n\r\n"
        parts.append(head.encode() + body)
    return b"".join(parts)


@pytest.mark.parametrize("known", [True, False], ids=["heads that repeat", "heads that never do"])
@pytest.mark.parametrize("max_batch", [1, 64])
def test_long_pipelines_are_answered_in_order(tmp_path, known, max_batch):
    """Eight clients send 600 requests each without reading between: every answer comes once, in order, and none is a refusal."""
    answered = {}

    def work(name):
        with RawClient(started.host, started.port, 30.0) as client:
            client.send(pipeline(name, known=known))
            answered[name] = [client.reply() for _ in range(N)]

    with running(tmp_path, on_overload="wait", max_batch=max_batch) as (started, _):
        threads = [threading.Thread(target=work, args=(f"c{i}",)) for i in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    ids = {name: [reply.headers["mulle-prediction-id"] for reply in replies] for name, replies in answered.items()}

    assert {200} == {reply.status for replies in answered.values() for reply in replies}
    assert {f"c{i}": [f"c{i}-{j:04}" for j in range(N)] for i in range(8)} == ids
