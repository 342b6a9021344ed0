"""The knee: the highest rate at which a server keeps its promise. The search is pure; `find_knee` runs it.

Double the rate until a step misses the objective, then halve the distance between the best good and the worst bad rate.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from mulle.serve.loadtest.result import Load, Result, describe_latency, milliseconds

MAX_ERROR_SHARE = 0.001
"""A step with more failed requests than this is not served, however quick the others were."""

UNLOADED_FACTOR = 5.0
"""Without an objective of their own, users get five times the unloaded p99."""

SUSTAINED_SHARE = 0.97
"""With fewer of the requests answered within the window a queue grows, however quick the first answers were."""

RESOLUTION = 0.05
_SLACK = 10
MAX_STEPS = 24
_UNLOADED_SHARE = 0.02
_LEAST_MS = 1.0

Verdict = Literal["met", "slow", "errors", "unmeasured"]


@dataclass(frozen=True, slots=True)
class Step:
    """One rate that was tried.

    Attributes:
        rate: Requests per second that were asked.
        verdict: `met`; `slow` (p99 above the objective); `errors` (too many failed); `unmeasured` (the generator could not offer it).
        why: The numbers that were compared.
        result: Everything measured.
    """

    rate: float
    verdict: Verdict
    why: str
    result: Result


@dataclass(frozen=True, slots=True)
class Knee:
    """Where a server stops keeping its promise.

    Attributes:
        rate: Highest rate tried that met the objective; None when none did.
        slo_ms: The p99 that was asked for, milliseconds.
        slo_given: Whether a person gave it; otherwise it is `UNLOADED_FACTOR` times the unloaded p99.
        unloaded: The measurement at light load the default rests on; None when it was given.
        steps: Everything tried, in order.
        limit: Why it is not higher: the server, or the generator, which then says a lower bound only.
    """

    rate: float | None
    slo_ms: float
    slo_given: bool
    unloaded: Result | None
    steps: tuple[Step, ...]
    limit: Literal["server", "generator", "interrupted"]

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON."""
        return {
            "rate": self.rate,
            "slo_ms": round(self.slo_ms, 3),
            "slo_given": self.slo_given,
            "limit": self.limit,
            "unloaded_latency_ms": None if self.unloaded is None else describe_latency(self.unloaded.latency()),
            "steps": [
                {"rate": step.rate, "verdict": step.verdict, "why": step.why, "result": step.result.to_dict()} for step in self.steps
            ],
        }


def judge(result: Result, slo_ms: float) -> tuple[Verdict, str]:
    """Return whether a step kept the objective, and the numbers compared.

    Args:
        result: Of an open loop.
        slo_ms: Largest p99 of good answers, milliseconds.
    """
    if result.error_share >= MAX_ERROR_SHARE:
        return "errors", f"{result.error_share:.2%} of {result.n_requests:,} failed; allowed below {MAX_ERROR_SHARE:.1%}"
    p99_ms = result.latency().quantile(0.99) / 1e6
    quick, abreast = p99_ms <= slo_ms, result.n_completed >= SUSTAINED_SHARE * result.n_requests - _SLACK
    compared = f"p99 {milliseconds(p99_ms)} ms of {result.n_ok:,}; allowed {milliseconds(slo_ms)} ms"
    if quick and abreast:
        return "met", compared
    if result.saturated or (not result.held and result.lags().quantile(0.99) / 1e6 > slo_ms):
        late_ms = result.lags().quantile(0.99) / 1e6
        return "unmeasured", f"the generator was late: busy {result.cpu_share:.0%}, p99 of its sends {milliseconds(late_ms)} ms late"
    if quick:
        return "slow", f"a queue grows: {result.n_completed:,} of {result.n_requests:,} answered in time for the next"
    return "slow", compared + ("; no connection was free" if result.held else "")


def next_rate(tried: Sequence[tuple[float, bool]], first: float, *, resolution: float = RESOLUTION) -> float | None:
    """Return the rate to try next, or None when the knee is known well enough. Pure.

    Args:
        tried: Rate and whether it was good, in any order.
        first: Where to begin.
        resolution: Largest relative distance between the best good rate and the least bad one that still counts as open.
    """
    if not tried:
        return _round(first)
    if len(tried) >= MAX_STEPS:
        return None
    bad = min((rate for rate, good in tried if not good), default=math.inf)
    # A rate above one that failed was lucky: it says nothing.
    good = max((rate for rate, met in tried if met and rate < bad), default=0.0)
    if math.isinf(bad):
        return _round(2 * good)
    if good == 0.0:
        halved = _round(bad / 2)
        return halved if halved >= 1 and halved < bad else None
    if bad / good - 1 <= resolution:
        return None
    middle = _round(math.sqrt(good * bad) if bad / good > 2 * (1 + resolution) else (good + bad) / 2)
    return middle if good < middle < bad else None


def find_knee(
    load: Load,
    run: Callable[[Load], Result],
    *,
    slo_ms: float | None,
    on_step: Callable[[Step], None] | None = None,
) -> Knee:
    """Return the highest rate `run` found good; a rate is bad when it missed twice.

    A closed loop first says how much the server answers at most; light load then says how quick it can be, and the search
    begins at half of that rate. A step the generator could not offer ends the search: the knee is then a lower bound.

    Args:
        load: What to ask; its rate is ignored.
        run: Runs one load test.
        slo_ms: The objective for p99, milliseconds; None: five times the unloaded p99, and at least a millisecond.
        on_step: Told every step.
    """
    full = run(_with(load, None, load.connections))
    ceiling = max(1.0, full.ok_rate)
    unloaded: Result | None = None
    if slo_ms is None and not full.interrupted:
        unloaded = run(_with(load, max(1.0, _round(ceiling * _UNLOADED_SHARE)), load.connections))
        p99_ms = unloaded.latency().quantile(0.99) / 1e6
        limit_ms = max(_LEAST_MS, UNLOADED_FACTOR * p99_ms) if not math.isnan(p99_ms) else math.nan
    else:
        limit_ms = math.nan if slo_ms is None else slo_ms
    steps: list[Step] = []
    ended: Literal["server", "generator", "interrupted"] = "server"
    if full.interrupted or math.isnan(limit_ms):
        return Knee(None, limit_ms, slo_ms is not None, unloaded, (), "interrupted" if full.interrupted else "server")
    while (rate := next_rate(_rates(steps), ceiling / 2)) is not None:
        for _ in range(2):
            result = run(_with(load, rate, load.connections))
            verdict, why = judge(result, limit_ms)
            step = Step(rate, verdict, why, result)
            steps.append(step)
            if on_step is not None:
                on_step(step)
            if verdict == "met" or result.interrupted:
                # A miss is asked twice: one hiccup of the machine is no knee.
                break
        if steps[-1].result.interrupted or steps[-1].verdict == "unmeasured":
            ended = "interrupted" if steps[-1].result.interrupted else "generator"
            break
    rates = _rates(steps)
    bad = min((rate for rate, good in rates if not good), default=math.inf)
    best = max((rate for rate, good in rates if good and rate < bad), default=None)
    return Knee(best, limit_ms, slo_ms is not None, unloaded, tuple(steps), ended)


def _rates(steps: Sequence[Step]) -> list[tuple[float, bool]]:
    """Return every rate tried, and whether it was good at least once."""
    good: dict[float, bool] = {}
    for step in steps:
        good[step.rate] = good.get(step.rate, False) or step.verdict == "met"
    return list(good.items())


def _with(load: Load, rate: float | None, connections: int) -> Load:
    return msgspec.structs.replace(load, rate=rate, connections=connections, pipeline=1 if rate is None else load.pipeline)


def _round(rate: float) -> float:
    """Return a rate to three figures: nobody reads more, and the search ends sooner."""
    if rate <= 0:
        return 0.0
    digits = 2 - math.floor(math.log10(rate))
    return round(rate, digits)
