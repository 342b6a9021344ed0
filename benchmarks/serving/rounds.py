"""Contestants in turns: every round each one is thawed, asked everything once, and frozen again."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from measure import SkippedError

from mulle.serve.loadtest.histogram import Histogram
from serving.drive import Shot, shoot
from serving.fleet import Fleet

ENOUGH = 10_000
"""Samples wanted behind every p99."""

MOST_S = 6.0


@dataclass(frozen=True, slots=True)
class Cell:
    """One thing to measure: a kind of request at a number of connections."""

    kind: str
    connections: int


@dataclass(slots=True)
class Measured:
    """What a group of scenarios gave.

    Attributes:
        shots: Cell to contestant to its shots, one per round.
        bare: Bare loop to its figures, one per round.
        skipped: Contestant to the reason it is missing.
        notes: What a reader should know of single cells.
    """

    shots: dict[Cell, dict[str, list[Shot]]] = field(default_factory=dict[Cell, dict[str, list[Shot]]])
    bare: dict[str, list[dict[str, float]]] = field(default_factory=dict[str, list[dict[str, float]]])
    skipped: dict[str, str] = field(default_factory=dict[str, str])
    notes: list[str] = field(default_factory=list[str])


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is measured in every round.

    Attributes:
        cells: What each contestant is asked, where it understands it.
        rounds: How many.
        seconds: Of one shot; slow servers get up to `MOST_S` until they have enough samples.
        bare: Loops without a server, by name; they take their turn too.
        only: Contestant to the only cells it takes part in.
        enough: Samples wanted behind a p99.
    """

    cells: Sequence[Cell]
    rounds: int
    seconds: float
    bare: Mapping[str, Callable[[], dict[str, float]]] = field(default_factory=dict[str, Callable[[], dict[str, float]]])
    only: Mapping[str, Sequence[Cell]] = field(default_factory=dict[str, Sequence[Cell]])
    enough: int = ENOUGH


def take_rounds(fleet: Fleet, plan: Plan) -> Measured:
    """Return everything measured; who fails in one round is left out of all, with the reason."""
    found = Measured(shots={cell: {} for cell in plan.cells})
    for number in range(plan.rounds):
        for name, loop in plan.bare.items():
            try:
                found.bare.setdefault(name, []).append(loop())
            except SkippedError as reason:
                found.skipped[name] = str(reason)
        for name in fleet.contestants:
            try:
                _take_turn(fleet, plan, found, name, first=number == 0)
            except (SkippedError, OSError) as reason:
                found.skipped[name] = str(reason)
                print(f"    {name}: {reason}", flush=True)
    for table in found.shots.values():
        for name in found.skipped:
            table.pop(name, None)
    found.notes += [
        f"{name} did not survive being frozen between turns {n} times and was started again." for name, n in fleet.n_restarts.items()
    ]
    return found


def _take_turn(fleet: Fleet, plan: Plan, found: Measured, name: str, *, first: bool) -> None:
    asks = fleet.contestants[name].asks
    asked = [cell for cell in plan.only.get(name, plan.cells) if cell.kind in asks and f"{name}, {cell.kind}" not in found.skipped]
    if name in found.skipped or not asked:
        return
    with fleet.turn(name) as server:
        for kind in dict.fromkeys(cell.kind for cell in asked) if first else ():
            try:
                server.require_right(kind)
            except SkippedError as reason:
                found.skipped[f"{name}, {kind}"] = str(reason)
                print(f"    {name}: {reason}", flush=True)
        for cell in asked:
            if f"{name}, {cell.kind}" in found.skipped:
                continue
            shots = found.shots[cell].setdefault(name, [])
            seconds = _seconds(shots, plan.rounds, plan.seconds, plan.enough)
            shots.append(shoot(server, asks[cell.kind], connections=cell.connections, seconds=seconds))
            print(_line(name, cell, shots[-1]), flush=True)


def _seconds(shots: Sequence[Shot], rounds: int, seconds: float, enough: int) -> float:
    if not shots:
        return seconds
    n = sum(sum(shot.latency.values()) for shot in shots)
    missing = max(0, enough - n) / max(1, rounds - len(shots))
    return min(MOST_S, max(seconds, 1.05 * missing / max(1.0, shots[-1].rate)))


def summary(values: Sequence[float]) -> dict[str, Any]:
    """Return a figure as its rounds."""
    return {"rounds": [float(f"{value:.6g}") for value in values]}


def percentile(shots: Sequence[Shot], q: float) -> dict[str, Any]:
    """Return a percentile in milliseconds over the samples of all rounds together, with their number."""
    whole = Histogram().merged(*(shot.histogram() for shot in shots))
    return {
        "rounds": [float(f"{shot.histogram().quantile(q) / 1e6:.5g}") for shot in shots if shot.latency],
        "pooled": float(f"{whole.quantile(q) / 1e6:.5g}"),
        "samples": whole.n,
    }


def row_of(shots: Sequence[Shot], n_rows: int = 1) -> dict[str, Any]:
    """Return a row of a table; one without an answer in some round has rates only."""
    row = {"rate": summary([shot.rate * n_rows for shot in shots]), "cpu_us": summary([shot.cpu_us for shot in shots])}
    if all(shot.latency for shot in shots):
        row |= {"p50_ms": percentile(shots, 0.5), "p99_ms": percentile(shots, 0.99)}
    row |= {"memory_mib": summary([shot.memory_mib for shot in shots]), "client_us": summary([shot.client_cpu_us for shot in shots])}
    failed = sum(shot.n_failed for shot in shots)
    return {**row, "failed": summary([failed])} if failed else row


def _line(name: str, cell: Cell, shot: Shot) -> str:
    p99 = shot.histogram().quantile(0.99) / 1e6
    busy = " (the generator was the limit)" if shot.saturated else ""
    said = f"{shot.rate:,.0f}/s, {shot.cpu_us:,.1f} µs, p99 {p99:.2f} ms, {shot.n_failed} failed{busy}"
    return f"    {name}: {cell.kind} c={cell.connections}: {said}"
