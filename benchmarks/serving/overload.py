"""Twice as many requests as a server can answer, in an open loop whose clients give up after two seconds."""

import threading
import time
from typing import Any

import msgspec
from load import tree_memory_mib

from serving.drive import Shot, shoot
from serving.fleet import Ask, Fleet, Server
from serving.rounds import summary

TIMES = 2.0
GIVE_UP_S = 2.0
MOST_CONNECTIONS = 4000
PIPELINED = 1024
"""Connections of a pipelined load; enough that requests seldom wait for a mate on their own connection."""

_STEP, _MOST_STEPS, _STEP_S = 1.25, 5, 2.0
_ANSWERED = 0.98
_LOOK_S = 0.5


def overload(fleet: Fleet, name: str, kind: str, *, seconds: float, busy: int, pipeline: int = 1) -> dict[str, Any]:
    """Return a row: capacity, what was offered, what came back, memory, and the latency one second later.

    Args:
        fleet: With the server.
        name: The contestant.
        kind: What it is asked.
        seconds: How long.
        busy: Connections at which the capacity is taken, in a closed loop.
        pipeline: Requests that may wait on one connection: for servers so quick that the generator would be the limit.

    Raises:
        SkippedError: it cannot be started, or the generator failed.
    """
    with fleet.turn(name) as server:
        server.require_right(kind)
        ask = server.contestant.asks[kind]
        calm = shoot(server, ask, connections=1, seconds=2.0)
        capacity = shoot(server, ask, connections=busy, seconds=3.0)
        if pipeline > 1:
            capacity = _climb(server, ask, capacity, pipeline)
        rate = TIMES * capacity.rate
        wanted = int(rate * GIVE_UP_S * 1.25 / pipeline)
        before = tree_memory_mib(server.pid)
        peak = [before]
        ended = threading.Event()

        def look() -> None:
            while not ended.wait(_LOOK_S):
                peak.append(tree_memory_mib(server.pid))

        watcher = threading.Thread(target=look, daemon=True)
        watcher.start()
        try:
            shot = shoot(
                server,
                ask,
                connections=max(64, min(MOST_CONNECTIONS, wanted)) if pipeline == 1 else PIPELINED,
                seconds=seconds,
                warm_s=0.0,
                rate=rate,
                timeout_s=GIVE_UP_S,
                pipeline=pipeline,
            )
        finally:
            ended.set()
            watcher.join()
        time.sleep(1.0)
        after = shoot(server, ask, connections=1, seconds=2.0, warm_s=0.0, timeout_s=5.0)
        later = tree_memory_mib(server.pid)
    return _row(calm, capacity, shot, after, (before, max(peak), later))


def _climb(server: Server, ask: Ask, capacity: Shot, pipeline: int) -> Shot:
    """Return the busiest shot of rising rates: pipelined requests are cheaper, so a closed loop understates what the server can do."""
    rate = capacity.rate
    for _ in range(_MOST_STEPS):
        options = {"rate": rate, "pipeline": pipeline, "timeout_s": GIVE_UP_S}
        shot = shoot(server, ask, connections=PIPELINED, seconds=_STEP_S, warm_s=0.0, **options)
        assert shot.result is not None
        good = shot.result.n_ok / shot.result.measured_s
        if good > capacity.rate:
            capacity = msgspec.structs.replace(shot, rate=good)
        if good < _ANSWERED * rate:
            break
        rate *= _STEP
    time.sleep(1.0)
    return capacity


def _row(calm: Shot, capacity: Shot, shot: Shot, after: Shot, memory: tuple[float, float, float]) -> dict[str, Any]:
    result = shot.result
    assert result is not None
    # The generator gives up every few milliseconds, not to the microsecond: what came later is lost all the same.
    in_time = result.latency().share_within(int(GIVE_UP_S * 1e9)) if result.n_ok else 0.0
    good = result.n_ok * in_time / result.measured_s
    row = {
        "capacity": capacity.rate,
        # Every request whose time had come, also those that found no free connection until their client gave up.
        "offered": result.n_requests / result.measured_s,
        "offered_share": result.n_requests / result.measured_s / max(1.0, result.asked_rate or 1.0),
        "good": good,
        "good_share": good / max(1.0, capacity.rate),
        "refused": result.n_refused / result.measured_s,
        "lost": (result.n_requests - result.n_refused) / result.measured_s - good,
        "calm_p50_ms": calm.histogram().quantile(0.5) / 1e6,
        "calm_p99_ms": calm.histogram().quantile(0.99) / 1e6,
        "memory_before_mib": memory[0],
        "memory_peak_mib": memory[1],
        "memory_after_mib": memory[2],
        "client_share": result.cpu_share,
    }
    if result.n_ok:
        row["p99_ms"] = result.latency().quantile(0.99) / 1e6
        row["p99_times"] = row["p99_ms"] / row["calm_p99_ms"]
    if after.latency:
        row["after_p50_ms"] = after.histogram().quantile(0.5) / 1e6
        row["after_times"] = row["after_p50_ms"] / row["calm_p50_ms"]
    if result.n_refused > result.n_ok / 10:
        # What the answers did not use, the refusals did.
        cost = max(0.0, shot.cpu_s * 1e6 - capacity.cpu_us * result.n_ok) / result.n_refused
        row["refusal_us"] = cost
        row["refusal_share"] = cost / capacity.cpu_us
    cells = {key: summary([value]) for key, value in row.items()}
    if "p99_ms" in row:
        cells["p99_ms"] |= {"pooled": row["p99_ms"], "samples": result.n_ok}
    return cells
