"""Revisions swapped under full load: nobody fails, and every answer belongs to the revision it names."""

import asyncio
import json
import threading
import time
from collections import Counter
from typing import Self

import pytest

from mulle.serve.reload import POLL_S
from support.bundles import answers, churn_graph, seal_churn, write_spec
from support.live_server import ROW, LiveServer, live_server
from support.serving import wait_until

pytestmark = pytest.mark.chaos

SHIFTS = (0.0, 0.75)
HEAD = "POST /predict HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"


def swap(state, bundles, generation, weights=None):
    """Serve one of two bundles, or both by weight."""
    write_spec(state, bundles, generation=generation, weights=weights)


class Clients:
    """Closed-loop connections that keep what each answer said: its revision, its body's revision and its score."""

    def __init__(self, server: LiveServer, n: int) -> None:
        self.server = server
        self.n = n
        self.seen: Counter[tuple[int, str, str, float]] = Counter()
        self.ids: list[str] = []
        self.broken: list[str] = []
        self._stop = False
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop = True
        self._thread.join(30)
        assert not self._thread.is_alive()

    async def _run(self) -> None:
        await asyncio.gather(*(self._client() for _ in range(self.n)))

    async def _client(self) -> None:
        body = json.dumps([ROW]).encode()
        head = f"{HEAD}content-length: {len(body)}\r\n\r\n"
        reader, writer = await asyncio.open_connection(self.server.host, self.server.port)
        try:
            while not self._stop:
                writer.write(head.encode() + body)
                raw = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
                status, *lines = raw.decode().split("\r\n")
                headers = dict(line.split(": ", 1) for line in lines if line)
                said = json.loads(await reader.readexactly(int(headers["content-length"])))
                score = said["predictions"][0]["probabilities"]["Yes"] if status.split()[1] == "200" else -1.0
                self.seen[int(status.split()[1]), headers.get("mulle-revision", ""), str(said.get("revision")), score] += 1
                self.ids += said.get("prediction_ids", [])
        except (OSError, TimeoutError, asyncio.IncompleteReadError) as error:
            self.broken.append(repr(error))
        finally:
            writer.close()


def test_swaps_under_full_load_fail_and_mix_nothing(tmp_path):
    """A new generation every 300 ms for ten seconds under 32 connections: no failure, and each score is that of the revision named."""
    state = tmp_path / ".mulle"
    bundles = [seal_churn(state / "bundles", shift=shift) for shift in SHIFTS]
    scores = [float(answers(churn_graph(shift=shift), [ROW])[0, 1]) for shift in SHIFTS]
    swap(state, [bundles[0]], 1)
    with live_server(tmp_path) as server, Clients(server, 32) as clients:
        generation, end = 1, time.monotonic() + 10
        while time.monotonic() < end:
            time.sleep(0.3)
            generation += 1
            swap(state, [bundles[(generation - 1) % 2]], generation)
        caught_up = wait_until(lambda: server.health()["generation"] == generation, 10)
    statuses = Counter[int]()
    for (status, *_), n in clients.seen.items():
        statuses[status] += n
    revisions = {int(header) for _, header, _, _ in clients.seen}

    assert caught_up
    assert ([], {200}) == (clients.broken, set(statuses))
    assert statuses[200] > 1_000
    assert len(clients.ids) == len(set(clients.ids))
    assert len(revisions) > 10
    for _, header, body, score in clients.seen:
        assert header == body
        assert score == pytest.approx(scores[(int(header) - 1) % 2], abs=1e-6)


def test_weights_hold_and_units_stay(tmp_path):
    """90 to 10: the share of 4,000 units is right to sampling error, and a unit keeps its revision as long as the weights stand."""
    state = tmp_path / ".mulle"
    bundles = [seal_churn(state / "bundles", shift=shift) for shift in SHIFTS]
    swap(state, bundles, 1, {1: 90, 2: 10})

    def asked(client):
        body = json.dumps([ROW]).encode()
        chosen = []
        for start in range(0, 4_000, 50):
            own = [HEAD + f"mulle-unit: customer-{i}\r\ncontent-length: {len(body)}\r\n\r\n" for i in range(start, start + 50)]
            client.send(b"".join(head.encode() + body for head in own))
            chosen += [client.reply() for _ in range(50)]
        assert {200} == {reply.status for reply in chosen}
        return [reply.headers["mulle-revision"] for reply in chosen]

    with live_server(tmp_path) as server, server.client() as client:
        first = asked(client)
        second = asked(client)
        # The same two bundles again, newly numbered, with the same weights and salt.
        swap(state, bundles, 3, {3: 90, 4: 10})
        time.sleep(2 * POLL_S)
        assert wait_until(lambda: server.health()["generation"] == 3)
        third = asked(client)
        turns = Counter(client.request("POST", "/predict", [ROW]).headers["mulle-revision"] for _ in range(500))

    assert first == second
    assert [str(int(revision) + 2) for revision in first] == third
    # Four standard deviations of 4,000 draws.
    assert first.count("2") / 4_000 == pytest.approx(0.1, abs=4 * (0.1 * 0.9 / 4_000) ** 0.5)
    # Without a unit the revisions take turns: nearer to the weights than chance would be.
    assert turns["4"] / 500 == pytest.approx(0.1, abs=0.01)
