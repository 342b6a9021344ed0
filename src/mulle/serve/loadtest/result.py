"""What one load test asked and what came back: plain values that merge across generator processes."""

import math
from typing import Any, Literal

import msgspec

from mulle.serve.loadtest.histogram import Histogram, is_rough

Arrivals = Literal["constant", "poisson"]

QUANTILES = (0.5, 0.9, 0.99, 0.999)

SATURATED_CPU = 0.85
"""Above this share of a core the generator's own queue is part of what it measures."""

OFFERED_SHARE = 0.99
"""A rate counts as offered when at least this share of what was due was sent in time."""

_SLACK = 5


HELD_SHARE = 0.01
"""Above this share of requests without a free connection, the connections were the limit."""


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """What to ask of a server.

    Attributes:
        host: Name or address.
        port: TCP port.
        requests: Whole HTTP/1.1 requests, head and body, sent in turn; see `requests.render_request`.
        connections: How many stay open. In a closed loop each asks again when it has its answer.
        duration_s: How long is measured.
        warmup_s: How long is asked before that, and thrown away.
        rate: Requests per second, open loop; None: closed loop.
        arrivals: How an open loop spaces them: evenly, or at random as independent clients do.
        pipeline: How many requests may wait for answers on one connection, open loop only.
        timeout_s: After this long without its answer a request is given up: the client is gone.
        seed: Of random arrivals.
    """

    host: str
    port: int
    requests: tuple[bytes, ...]
    connections: int = 16
    duration_s: float = 10.0
    warmup_s: float = 1.0
    rate: float | None = None
    arrivals: Arrivals = "constant"
    pipeline: int = 1
    timeout_s: float = 10.0
    seed: int = 0


class Second(msgspec.Struct, frozen=True, kw_only=True):
    """One second of a test, for progress and for the chart over time; latencies in nanoseconds."""

    at_s: float
    n_answered: int
    n_ok: int
    n_errors: int
    p50_ns: float
    p99_ns: float
    waiting: int
    warm: bool


class Result(msgspec.Struct, kw_only=True):
    """Outcomes of every request whose intended send time lay in the measured window; each has exactly one.

    Attributes:
        connections: How many were asked for.
        asked_rate: Requests per second that were to be offered; None: closed loop.
        arrivals: Spacing of an open loop.
        pipeline: Requests allowed to wait on one connection.
        measured_s: Length of the window.
        by_status: HTTP status to buckets (`Histogram.to_pairs`) of latency from the *intended* send time, nanoseconds.
        errors: Kind to count: `refused`, `reset` (closed without a byte of the answer), `short` (closed within it),
            `timeout`, `malformed`, `unsent` (an open loop found no free connection before the time-out), `unreachable`.
        n_sent: Requests written within the window.
        n_held: Requests of an open loop that were due while no connection was free: they waited for the server, not for the generator.
        n_completed: Answers that arrived within the window, whenever they were asked.
        n_late: Answers that came after their request was given up.
        n_reconnects: Connections opened again.
        bytes_in: Read within the window.
        bytes_out: Written within the window.
        lag: Buckets of how much later than intended the requests of an open loop were written.
        cpu_s: The generator's own CPU in the window, all processes.
        n_processes: How many generated.
        interrupted: Whether it was stopped before its end.
        seconds: One per second, warm-up included.
    """

    connections: int
    asked_rate: float | None
    arrivals: Arrivals
    pipeline: int
    measured_s: float
    by_status: dict[int, dict[int, int]]
    errors: dict[str, int]
    n_sent: int
    n_held: int
    n_completed: int
    n_late: int
    n_reconnects: int
    bytes_in: int
    bytes_out: int
    lag: dict[int, int]
    cpu_s: float
    n_processes: int = 1
    interrupted: bool = False
    seconds: list[Second] = []

    @property
    def n_answered(self) -> int:
        """Requests of the window that got a whole answer, of any status."""
        return sum(sum(pairs.values()) for pairs in self.by_status.values())

    @property
    def n_ok(self) -> int:
        """Requests answered with a 2xx."""
        return self.n_of(200, 299)

    @property
    def n_refused(self) -> int:
        """Requests the server turned away: 503 or 429."""
        return self.n_of(503, 503) + self.n_of(429, 429)

    @property
    def n_errors(self) -> int:
        """Requests without an answer, or with one that is no 2xx."""
        return self.n_answered - self.n_ok + sum(self.errors.values())

    @property
    def n_requests(self) -> int:
        """All requests of the window."""
        return self.n_answered + sum(self.errors.values())

    @property
    def error_share(self) -> float:
        """`n_errors` over `n_requests`; 0 when nothing was asked."""
        return self.n_errors / max(1, self.n_requests)

    @property
    def rate(self) -> float:
        """Answers per second that arrived in the window, of any status."""
        return self.n_completed / self.measured_s if self.measured_s else 0.0

    @property
    def ok_rate(self) -> float:
        """Good answers per second: `rate` times the share of 2xx among the answers."""
        return self.rate * self.n_ok / max(1, self.n_answered)

    @property
    def offered_rate(self) -> float:
        """Requests per second that were really written."""
        return self.n_sent / self.measured_s if self.measured_s else 0.0

    @property
    def cpu_share(self) -> float:
        """Cores one generator process kept busy, 0 to 1."""
        return self.cpu_s / max(1e-9, self.measured_s) / self.n_processes

    @property
    def cpu_us_per_request(self) -> float:
        """The generator's CPU per answer, in microseconds."""
        return 1e6 * self.cpu_s / max(1, self.n_completed)

    @property
    def saturated(self) -> bool:
        """Whether the generator itself was the limit, so that its latencies are partly its own."""
        return self.cpu_share > SATURATED_CPU

    @property
    def could_offer(self) -> bool:
        """Whether what was due within the window was sent within it; True for a closed loop.

        What is due at random is not exactly the rate times the time, so it is counted, not computed.
        """
        return self.asked_rate is None or self.n_sent >= OFFERED_SHARE * self.n_requests - _SLACK

    @property
    def held(self) -> bool:
        """Whether so many requests waited for a free connection that a late send is the server's doing."""
        return self.n_held > HELD_SHARE * max(1, self.n_requests)

    def n_of(self, first: int, last: int) -> int:
        """Return how many answers had a status in [first, last]."""
        return sum(sum(pairs.values()) for status, pairs in self.by_status.items() if first <= status <= last)

    def latency(self, first: int = 200, last: int = 299) -> Histogram:
        """Return the latencies of answers with a status in [first, last]; by default the good ones."""
        return Histogram().merged(*(Histogram.from_pairs(pairs) for status, pairs in self.by_status.items() if first <= status <= last))

    def lags(self) -> Histogram:
        """Return how late the requests of an open loop were written."""
        return Histogram.from_pairs(self.lag)

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as plain JSON: milliseconds, counts, and what is rough."""
        return {
            "loop": "closed" if self.asked_rate is None else "open",
            "connections": self.connections,
            "asked_rate": self.asked_rate,
            "arrivals": None if self.asked_rate is None else self.arrivals,
            "pipeline": self.pipeline,
            "measured_s": round(self.measured_s, 3),
            "interrupted": self.interrupted,
            "requests": self.n_requests,
            "answered": self.n_answered,
            "ok": self.n_ok,
            "refused": self.n_refused,
            "rate": round(self.rate, 2),
            "ok_rate": round(self.ok_rate, 2),
            "error_share": self.error_share,
            "errors": dict(sorted(self.errors.items())),
            "late_answers": self.n_late,
            "reconnects": self.n_reconnects,
            "latency_ms": describe_latency(self.latency()),
            "latency_ms_by_status": {
                str(status): describe_latency(Histogram.from_pairs(pairs)) for status, pairs in sorted(self.by_status.items())
            },
            "bytes_in": self.bytes_in,
            "bytes_out": self.bytes_out,
            "generator": {
                "processes": self.n_processes,
                "cpu_share": round(self.cpu_share, 4),
                "cpu_us_per_request": round(self.cpu_us_per_request, 3),
                "saturated": self.saturated,
                "offered_rate": round(self.offered_rate, 2),
                "could_offer": self.could_offer,
                "held_requests": self.n_held,
                "send_lag_ms": describe_latency(self.lags()) if self.asked_rate is not None else None,
            },
            "seconds": [
                {
                    "at_s": round(second.at_s, 2),
                    "warmup": second.warm,
                    "answered": second.n_answered,
                    "errors": second.n_errors,
                    "p50_ms": _ms(second.p50_ns),
                    "p99_ms": _ms(second.p99_ns),
                    "waiting": second.waiting,
                }
                for second in self.seconds
            ],
        }


def describe_latency(histogram: Histogram) -> dict[str, Any]:
    """Return sample count, mean, largest and the usual percentiles in milliseconds, and which of them are rough."""
    n = histogram.n
    values = dict(zip(QUANTILES, histogram.quantiles(QUANTILES), strict=True))
    return {
        "n": n,
        "mean": _ms(histogram.mean()),
        **{quantile_name(q): _ms(value) for q, value in values.items()},
        "max": _ms(histogram.largest()),
        "rough": [quantile_name(q) for q in QUANTILES if is_rough(n, q)],
    }


def quantile_name(q: float) -> str:
    """Return `p50`, `p99`, `p99.9`."""
    return f"p{100 * q:.4g}"


def milliseconds(value: float) -> str:
    """Return milliseconds with three figures, without an exponent."""
    if value == 0 or not math.isfinite(value):
        return "–" if not math.isfinite(value) else "0"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:,.{min(digits, 4)}f}"


def merge_results(parts: list[Result]) -> Result:
    """Return one result for tests that ran at the same time in several processes, at least one.

    Rates add up; seconds are matched by their number, with the slowest process's percentiles.
    """
    first = parts[0]
    by_status: dict[int, dict[int, int]] = {}
    errors: dict[str, int] = {}
    for part in parts:
        for status, pairs in part.by_status.items():
            _add(by_status.setdefault(status, {}), pairs)
        _add(errors, part.errors)
    lag: dict[int, int] = {}
    for part in parts:
        _add(lag, part.lag)
    return Result(
        connections=sum(part.connections for part in parts),
        asked_rate=None if first.asked_rate is None else sum(part.asked_rate or 0.0 for part in parts),
        arrivals=first.arrivals,
        pipeline=first.pipeline,
        measured_s=max(part.measured_s for part in parts),
        by_status=by_status,
        errors=errors,
        n_sent=sum(part.n_sent for part in parts),
        n_held=sum(part.n_held for part in parts),
        n_completed=sum(part.n_completed for part in parts),
        n_late=sum(part.n_late for part in parts),
        n_reconnects=sum(part.n_reconnects for part in parts),
        bytes_in=sum(part.bytes_in for part in parts),
        bytes_out=sum(part.bytes_out for part in parts),
        lag=lag,
        cpu_s=sum(part.cpu_s for part in parts),
        n_processes=sum(part.n_processes for part in parts),
        interrupted=any(part.interrupted for part in parts),
        seconds=[merge_seconds(list(row)) for row in zip(*(part.seconds for part in parts), strict=False)],
    )


def merge_seconds(row: list[Second]) -> Second:
    """Return one second of several processes: counts add up, the slowest percentiles stand."""
    return Second(
        at_s=max(second.at_s for second in row),
        n_answered=sum(second.n_answered for second in row),
        n_ok=sum(second.n_ok for second in row),
        n_errors=sum(second.n_errors for second in row),
        p50_ns=max((second.p50_ns for second in row if not math.isnan(second.p50_ns)), default=math.nan),
        p99_ns=max((second.p99_ns for second in row if not math.isnan(second.p99_ns)), default=math.nan),
        waiting=sum(second.waiting for second in row),
        warm=row[0].warm,
    )


def _add(into: dict[Any, int], pairs: dict[Any, int]) -> None:
    for key, count in pairs.items():
        into[key] = into.get(key, 0) + count


def _ms(value_ns: float) -> float | None:
    return None if math.isnan(value_ns) else round(value_ns / 1e6, 4)
