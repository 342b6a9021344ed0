"""What a load test says: the facts of one invocation, as JSON, as lines for a terminal, and judged against an objective."""

import math
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mulle.serve.loadtest.histogram import Histogram, is_rough
from mulle.serve.loadtest.knee import MAX_ERROR_SHARE, Knee
from mulle.serve.loadtest.processes import Measured
from mulle.serve.loadtest.result import QUANTILES, Result, milliseconds, quantile_name

FORMAT = "mulle.loadtest"
VERSION = 1

QUIET_SHARE = 0.5
"""Above this load per core, before the test began, other work is in the figures."""

ERROR_WORDS = {
    "refused": "connection refused",
    "unreachable": "could not connect",
    "reset": "closed without an answer",
    "short": "closed within the answer",
    "timeout": "no answer in time",
    "malformed": "no HTTP answer",
    "unsent": "no free connection in time",
}


@dataclass(frozen=True, slots=True)
class Asked:
    """What was asked of whom.

    Attributes:
        url: Address and path.
        source: Where the requests came from, in words.
        n_requests: Different requests, sent in turn.
        n_rows: Rows in each; None where that means nothing.
        n_bytes: Mean size of a request, head included.
        header_names: Names of the headers given; values may be secret.
        timeout_s: When a client gives up.
        duration_s: Of each measurement.
        warmup_s: Before each, not counted.
    """

    url: str
    source: str
    n_requests: int
    n_rows: int | None
    n_bytes: int
    header_names: tuple[str, ...]
    timeout_s: float
    duration_s: float
    warmup_s: float


@dataclass(frozen=True, slots=True)
class LoadReport:
    """One invocation: its measurements in order, and the knee where one was looked for.

    Attributes:
        asked: What of whom.
        began: ISO 8601, UTC.
        machine: Facts of this machine by label.
        measured: One per row of the table; empty where only the knee was looked for.
        knee: The knee, with its own steps.
        slo_ms: The p99 that was to be kept, milliseconds; None: nothing was promised.
    """

    asked: Asked
    began: str
    machine: dict[str, str]
    measured: Sequence[Measured] = ()
    knee: Knee | None = None
    slo_ms: float | None = None
    misses: tuple[str, ...] = field(init=False)
    """Each way the objective was missed, in words; empty when it was kept or there is none."""

    def __post_init__(self) -> None:
        """Judge, once."""
        object.__setattr__(self, "misses", tuple(_misses(self)))

    @property
    def results(self) -> list[Result]:
        """The measurements of the table."""
        return [one.result for one in self.measured]

    @property
    def kept(self) -> bool:
        """Whether nothing promised was missed."""
        return not self.misses

    @property
    def interrupted(self) -> bool:
        """Whether it was ended before its end."""
        return any(result.interrupted for result in self.results) or (self.knee is not None and self.knee.limit == "interrupted")

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON."""
        asked = self.asked
        return {
            "format": FORMAT,
            "version": VERSION,
            "began": self.began,
            "url": asked.url,
            "requests": {
                "source": asked.source,
                "different": asked.n_requests,
                "rows_each": asked.n_rows,
                "mean_bytes": asked.n_bytes,
                "headers": list(asked.header_names),
            },
            "timeout_s": asked.timeout_s,
            "duration_s": asked.duration_s,
            "warmup_s": asked.warmup_s,
            "machine": self.machine,
            "slo_ms": self.slo_ms,
            "kept": None if self.slo_ms is None else self.kept,
            "misses": list(self.misses),
            "interrupted": self.interrupted,
            "measurements": [{**one.result.to_dict(), "server": _server(one)} for one in self.measured],
            "knee": None if self.knee is None else self.knee.to_dict(),
        }


def machine_facts() -> dict[str, str]:
    """Return what a reader must know of this machine to read the figures: processor, cores, memory, system, load; no names."""
    facts = {"processor": _processor(), "cores": str(len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1)}
    if hasattr(os, "sysconf"):
        facts["memory"] = f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB"
    facts["system"] = f"{platform.system()} {platform.release().split('-')[0]}"
    facts["python"] = platform.python_version()
    facts["load before"] = f"{os.getloadavg()[0]:.1f}"
    return facts


def busy_remark(machine: Mapping[str, str]) -> str | None:
    """Return what to say of a machine that had other work before the test began; None of a quiet one."""
    try:
        load, cores = float(machine["load before"]), int(machine["cores"])
    except (KeyError, ValueError):
        return None
    if load <= QUIET_SHARE * cores:
        return None
    return f"this machine was busy before the test began (load {load:g} on {cores} cores): repeat it when it is quiet"


def title_of(result: Result) -> str:
    """Return how a measurement is called in tables."""
    if result.asked_rate is None:
        return f"{result.connections:,} connection{'s' if result.connections > 1 else ''}"
    spaced = " at random" if result.arrivals == "poisson" else ""
    return f"{rate_text(result.asked_rate)}/s{spaced}"


def rate_text(rate: float) -> str:
    """Return a rate as people write it: four figures below a thousand, whole numbers above."""
    return f"{rate:,.4g}" if rate < 1000 else f"{rate:,.0f}"  # noqa: PLR2004 - a fraction matters only below


def percentile_text(histogram: Histogram, q: float) -> str:
    """Return a percentile in milliseconds as it is shown: three figures, `~` where it rests on too few samples, a dash for none."""
    value = histogram.quantile(q)
    if math.isnan(value):
        return "–"
    return f"{'~' if is_rough(histogram.n, q) else ''}{milliseconds(value / 1e6)}"


def table_of(measured: Sequence[Measured]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Return header and rows of the table of measurements, as text."""
    with_server = any(one.server is not None for one in measured)
    header = ("asked", "answered/s", *(f"{quantile_name(q)} ms" for q in QUANTILES), "samples", "failed", "client CPU")
    rows: list[tuple[str, ...]] = []
    for one in measured:
        result, good = one.result, one.result.latency()
        row = (
            title_of(result),
            rate_text(result.rate),
            *(percentile_text(good, q) for q in QUANTILES),
            f"{good.n:,}",
            f"{result.n_errors:,}" + (f" ({result.error_share:.2%})" if result.n_errors else ""),
            f"{result.cpu_share:.0%}",
        )
        rows.append((*row, _server_text(one)) if with_server else row)
    return ((*header, "server CPU/req") if with_server else header), rows


def remarks_on(measured: Sequence[Measured], *, failures: bool = True) -> list[str]:
    """Return what must be said beside the table: failures by kind, refusals, a generator at its limit, rough percentiles.

    Args:
        measured: The rows of the table.
        failures: Whether failures and refusals are told here; a page has a part of its own for them.
    """
    found: list[str] = []
    for one in measured:
        result = one.result
        name = title_of(result)
        if result.n_errors and failures:
            found.append(f"{name}: {failures_text(result)}")
        if result.n_refused and failures:
            turned = result.latency(429, 429).merged(result.latency(503, 503))
            found.append(f"{name}: refusals took p50 {percentile_text(turned, 0.5)}, p99 {percentile_text(turned, 0.99)} ms")
        if not result.could_offer:
            asked = rate_text(result.asked_rate or 0.0)
            found.append(f"{name}: only {rate_text(result.offered_rate)}/s could be sent of the {asked}/s asked: {_why(result)}")
        elif result.saturated:
            found.append(f"{name}: {_why(result)}; the latencies are partly the generator's own")
        if result.interrupted:
            found.append(f"{name}: ended early, after {result.measured_s:.1f} s")
    if any(is_rough(result.latency().n, q) for result in (one.result for one in measured) for q in QUANTILES):
        found.append("~ rests on fewer than 100 samples beyond it: measure longer before believing it")
    return found


def failures_text(result: Result) -> str:
    """Return the failures of a measurement by kind, most frequent first."""
    kinds = {f"status {status}": result.n_of(status, status) for status in result.by_status if not 200 <= status <= 299}  # noqa: PLR2004 - 2xx
    kinds |= {ERROR_WORDS.get(kind, kind): count for kind, count in result.errors.items()}
    return ", ".join(f"{count:,} × {kind}" for kind, count in sorted(kinds.items(), key=lambda item: -item[1]) if count)


def knee_sentence(knee: Knee) -> str:
    """Return the knee in one sentence."""
    promise = f"p99 ≤ {milliseconds(knee.slo_ms)} ms" + ("" if knee.slo_given else " (five times the unloaded p99)")
    promise += f" and under {MAX_ERROR_SHARE:.1%} failed"
    if knee.limit == "interrupted":
        return f"the search was ended early; kept so far: {_rate_text(knee.rate)}"
    if knee.rate is None:
        return f"no rate that was tried kept {promise}"
    if knee.limit == "generator":
        return f"at least {_rate_text(knee.rate)} with {promise}: the generator could not offer more (more --processes, another machine)"
    return f"{_rate_text(knee.rate)} is the most it answers with {promise}"


def _rate_text(rate: float | None) -> str:
    return "none" if rate is None else f"{rate_text(rate)} requests/s"


def _misses(report: LoadReport) -> list[str]:
    if report.slo_ms is None:
        return []
    found: list[str] = []
    for result in report.results:
        p99_ms = result.latency().quantile(0.99) / 1e6
        if math.isnan(p99_ms):
            found.append(f"{title_of(result)}: nothing was answered")
        elif p99_ms > report.slo_ms:
            found.append(f"{title_of(result)}: p99 {milliseconds(p99_ms)} ms, allowed {report.slo_ms:g} ms")
        if result.error_share >= MAX_ERROR_SHARE:
            found.append(f"{title_of(result)}: {result.error_share:.2%} failed, allowed below {MAX_ERROR_SHARE:.1%}")
        if not result.could_offer:
            found.append(f"{title_of(result)}: only {result.offered_rate:,.0f}/s could be sent")
    if report.knee is not None and report.knee.rate is None and report.knee.limit != "interrupted":
        found.append(knee_sentence(report.knee))
    return found


def _why(result: Result) -> str:
    if result.saturated:
        return f"the generator was busy {result.cpu_share:.0%} of its core (--processes)"
    return "no connection was free (--connections, --pipeline)" if result.held else "the generator was late: the machine is busy"


def _server(one: Measured) -> dict[str, Any] | None:
    if one.server is None:
        return None
    return {
        "cpu_us_per_request": round(one.server.cpu_us_per_request, 2),
        "cores": round(one.server.cores, 3),
        "memory_bytes": one.server.memory_bytes,
        "processes": one.server.n_processes,
    }


def _server_text(one: Measured) -> str:
    return "–" if one.server is None else f"{one.server.cpu_us_per_request:,.3g} µs"


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return platform.machine()
    return next((line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name")), platform.machine())
