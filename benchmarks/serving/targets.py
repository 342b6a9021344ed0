"""What was promised of the server, each with the figure that keeps or misses it: pure, over `results.json`."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from serving import names
from serving.figures import Json, cell, ratio, smallest_ratio, value

Sense = Literal["at most", "at least", "below", "above"]


@dataclass(frozen=True, slots=True)
class Target:
    """One promise.

    Attributes:
        kind: `must` or `aim`.
        what: Of what.
        sense: On which side of the limit it is kept.
        limit: The limit.
        unit: Of both figures, as in tables; `times` for ratios.
        measured: The figure, or None where it was not measured.
    """

    kind: Literal["must", "aim"]
    what: str
    sense: Sense
    limit: float
    unit: str
    measured: float | None

    @property
    def verdict(self) -> str:
        """`kept`, `missed` or `not measured`."""
        if self.measured is None:
            return "not measured"
        kept = {
            "at most": self.measured <= self.limit,
            "at least": self.measured >= self.limit,
            "below": self.measured < self.limit,
            "above": self.measured > self.limit,
        }[self.sense]
        return "kept" if kept else "missed"


def targets(results: Json) -> list[Target]:
    """Return every promise with what was measured."""
    found: list[Target] = []

    def say(what: str, measured: float | None, unit: str, **limits: tuple[Sense, float]) -> None:
        for kind in ("must", "aim"):
            if kind in limits:
                sense, limit = limits[kind]
                found.append(Target(kind, what, sense, limit, unit, measured))

    _tabular(results, say)
    _pictures(results, say)
    _grpc(results, say)
    _footprint(results, say)
    _overload(results, say)
    return found


_Say = Callable[..., None]


def _tabular(results: Json, say: _Say) -> None:
    full = names.FULL
    others = names.SERVERS
    say(
        "one row, 64 connections, everything on: server CPU per request",
        value(results, "json-64", full, "cpu_us"),
        "µs",
        must=("at most", 14),
        aim=("at most", 11),
    )
    say(
        "the same: requests/s over the tutorial app's",
        ratio(results, "json-64", full, names.TUTORIAL),
        "times",
        must=("at least", 8),
        aim=("at least", 10),
    )
    say(
        "the same, over the tutorial app with intra_op = 1",
        ratio(results, "json-64", full, names.TUTORIAL_ONE),
        "times",
        must=("at least", 7),
    )
    say("the same, over the best other peer", smallest_ratio(results, "json-64", full, others), "times", must=("at least", 10))
    say("the same: p99", value(results, "json-64", full, "p99_ms"), "ms", must=("at most", 3))
    own, echo = value(results, "json-1", full, "p50_ms"), value(results, "json-1", names.ECHO, "p50_ms")
    bare = value(results, "json-1", names.RUN_ONE, "rate")
    limit = own / (echo + 1000 / bare) if own and echo and bare else None
    say("one connection: p50 over bare HTTP echo + one session.run", limit, "times", must=("at most", 1.5))
    say(
        "32 rows per request: rows/s over the best peer's",
        smallest_ratio(results, "rows32-16", full, names.PROMISED),
        "times",
        must=("at least", 5),
    )
    two = ratio(results, "json-64", names.TWO, names.MULLE, "cpu_us")
    say("two workers: CPU per request over one worker's", two, "times", must=("at most", 1.15))


def _pictures(results: Json, say: _Say) -> None:
    own = names.MULLE
    say(
        "small network, JPEG: requests/s over the tutorial app's",
        ratio(results, "jpeg-S-16", own, names.TUTORIAL),
        "times",
        must=("at least", 2.5),
    )
    say(
        "small network, JPEG: share of decode + resize + run on all cores",
        ratio(results, "jpeg-S-16", own, names.PIXELS_ALL),
        "percent",
        aim=("at least", 0.85),
    )
    say(
        "small network, JPEG in draft mode, over the tutorial app",
        ratio(results, "jpeg-S-16", names.DRAFT, names.TUTORIAL),
        "times",
        must=("at least", 4),
    )
    say(
        "small network, binary tensor: share of bare session.run",
        ratio(results, "tensor-S-16", own, names.RUN_CORE),
        "percent",
        must=("at least", 0.6),
        aim=("at least", 0.65),
    )
    say("small network, binary tensor: over Triton", ratio(results, "tensor-S-16", own, names.TRITON), "times", must=("at least", 2.5))
    say(
        "ResNet shape, 16 connections: share of bare session.run on all cores",
        ratio(results, "tensor-I-16", own, names.RUN_ALL),
        "percent",
        must=("at least", 0.75),
        aim=("at least", 0.9),
    )
    for kind, said in (("jpeg", "JPEG"), ("tensor", "tensor")):
        say(
            f"ResNet shape, one connection, {said}: over the best peer",
            smallest_ratio(results, f"{kind}-I-1", own, names.PROMISED),
            "times",
            must=("at least", 1),
        )


def _grpc(results: Json, say: _Say) -> None:
    say(
        "gRPC, 64 calls: CPU over a bare grpc.aio handler's",
        ratio(results, "grpc-64", names.MULLE, names.GRPC_BARE, "cpu_us"),
        "times",
        must=("at most", 1.3),
    )
    for n in (1, 16, 64):
        say(
            f"gRPC, {n} call{'s' if n > 1 else ''}: requests/s over Triton's",
            ratio(results, f"grpc-{n}", names.MULLE, names.TRITON),
            "times",
            must=("above", 1),
        )


def _footprint(results: Json, say: _Say) -> None:
    say("start to first answer", value(results, "start", names.MULLE, "cold_start_s"), "s", must=("below", 0.7))
    say("serve-only install", value(results, "install", "mulle (base dependencies only)", "size_mb"), "MB", must=("below", 200))
    say("memory of one tabular worker under load", value(results, "json-64", names.MULLE, "memory_mib"), "MiB", must=("below", 120))


def _overload(results: Json, say: _Say) -> None:
    for table, said in (("overload-S", "small network, JPEG"), ("overload-tensor", "small network, tensor")):
        say(
            f"overload, {said}: good answers as a share of capacity",
            value(results, table, names.MULLE, "good_share"),
            "percent",
            must=("at least", 0.9),
        )
    refusal = value(results, "overload-T", names.MULLE, "refusal_share")
    good = value(results, "overload-T", names.MULLE, "good_share")
    bound = None if refusal is None else 0.9 * max(0.0, (1 - 2 * refusal) / (1 - refusal)) if refusal < 1 else 0.0
    if bound is not None:
        say(
            f"overload, tabular: share of capacity, refusals costing r = {refusal:.2f} of an answer",
            good,
            "percent",
            must=("at least", bound),
        )
    else:
        say("overload, tabular: share of capacity (nothing had to be refused)", good, "percent", must=("at least", 0.9))
    for table, said in _overload_tables():
        say(
            f"overload, {said}: p99 of accepted over unloaded p99",
            value(results, table, names.MULLE, "p99_times"),
            "times",
            must=("at most", 5),
        )
        peak, before = (cell(results, table, names.MULLE, key) for key in ("memory_peak_mib", "memory_before_mib"))
        growth = None if peak is None or before is None else peak["rounds"][0] / before["rounds"][0]
        say(f"overload, {said}: peak memory over memory before", growth, "times", must=("at most", 1.25))
        say(
            f"overload, {said}: p50 one second later over unloaded",
            value(results, table, names.MULLE, "after_times"),
            "times",
            must=("at most", 1.5),
        )
        share = value(results, table, names.MULLE, "client_share")
        say(f"overload, {said}: the load generator's core, busy", share, "percent", must=("at most", 0.85))


def _overload_tables() -> Iterator[tuple[str, str]]:
    yield "overload-T", "tabular"
    yield "overload-S", "small network, JPEG"
    yield "overload-tensor", "small network, tensor"
