"""The `[gates]` table of the settings as gates: plain values in, plain values out."""

import difflib
from collections.abc import Mapping
from typing import Any, cast

from mulle.core.errors import SpecError
from mulle.release.gate_types import DEFAULT_CONFIDENCE, BoundGate, ChampionGate, FairnessGate, Gate, LatencyGate, SizeGate
from mulle.stats.metric_names import METRICS, Task, metric_info

MEBIBYTE = 1 << 20

_METRIC_KEYS = ("min", "max", "judge", "no_worse_than_champion")
_CHAMPION_KEYS = ("confidence", "margin")
_FAIRNESS_KEYS = ("slice_by", "max_gap", "metric", "min_rows", "confidence", "small")
_LATENCY_KEYS = ("p50_max", "p99_max")
_SIZE_KEYS = ("max",)


def parse_gates(table: Mapping[str, Any], *, task: Task) -> tuple[Gate, ...]:
    """Return the gates of a `[gates]` table; keys whose value is None count as absent.

    Args:
        table: `{"roc_auc": {"min": 0.8, "no_worse_than_champion": {}}, "fairness": {"slice_by": ["female"], "max_gap": 0.1},
            "latency_ms": {"p99_max": 5}, "size_mb": {"max": 20}}`. `size_mb` is in mebibytes, `size_bytes` in bytes.
        task: Metrics must have a meaning for it.

    Raises:
        SpecError: an unknown gate, metric or key (the nearest name is offered), a value of the wrong kind, or min > max.
    """
    gates: list[Gate] = []
    for name, given in table.items():
        if given is None:
            continue
        entries = _entries(name, given)
        if name == "fairness":
            gates += _fairness(entries, task)
        elif name == "latency_ms":
            _require_keys(name, entries, _LATENCY_KEYS)
            gates += [
                LatencyGate("p50" if key == "p50_max" else "p99", _number(name, key, value, low=0.0)) for key, value in entries.items()
            ]
        elif name in {"size_mb", "size_bytes"}:
            _require_keys(name, entries, _SIZE_KEYS)
            unit = MEBIBYTE if name == "size_mb" else 1
            gates += [SizeGate(int(_number(name, "max", value, low=0.0) * unit)) for value in entries.values()]
        else:
            gates += _metric(name, entries, task)
    return tuple(gates)


def _metric(name: str, entries: Mapping[str, Any], task: Task) -> list[Gate]:
    if name not in METRICS:
        known = [*METRICS, "fairness", "latency_ms", "size_mb"]
        near = difflib.get_close_matches(name, known, n=1)
        raise SpecError(
            "gate-unknown",
            f"there is no gate {name[:60]!r}",
            fix=f"did you mean {near[0]!r}?" if near else f"use one of {', '.join(known)}",
        )
    metric_info(name, task=task)
    _require_keys(name, entries, _METRIC_KEYS)
    judge = entries.get("judge", "point")
    if judge not in {"point", "interval"}:
        raise SpecError("gate-value", f"gate {name!r}: judge is {judge!r}"[:200], fix='use "point" or "interval"')
    gates: list[Gate] = []
    bounds: dict[str, float] = {}
    for side in ("min", "max"):
        if side in entries:
            bounds[side] = _number(name, side, entries[side])
            gates.append(BoundGate(name, side, bounds[side], judge))
    if len(bounds) == 2 and bounds["min"] > bounds["max"]:  # noqa: PLR2004 - both bounds
        raise SpecError("gate-value", f"gate {name!r}: min {bounds['min']!r} is above max {bounds['max']!r}", fix="swap the two numbers")
    champion = entries.get("no_worse_than_champion")
    if champion is not None and champion is not False:
        options = {} if champion is True else _entries(f"{name}.no_worse_than_champion", champion)
        _require_keys(f"{name}.no_worse_than_champion", options, _CHAMPION_KEYS)
        margin = options.get("margin")
        gates.append(ChampionGate(name, _confidence(name, options), None if margin is None else _number(name, "margin", margin, low=0.0)))
    return gates


def _fairness(entries: Mapping[str, Any], task: Task) -> list[Gate]:
    _require_keys("fairness", entries, _FAIRNESS_KEYS)
    columns = entries.get("slice_by")
    if isinstance(columns, str) or not columns:
        raise SpecError("gate-value", f"gate 'fairness': slice_by is {columns!r}"[:200], fix='name columns: slice_by = ["female"]')
    metric = str(entries.get("metric", "rmse" if task == "regression" else "accuracy"))
    metric_info(metric, task=task)
    small = entries.get("small", "inconclusive")
    if small not in {"inconclusive", "ignore"}:
        raise SpecError("gate-value", f"gate 'fairness': small is {small!r}"[:200], fix='use "inconclusive" or "ignore"')
    return [
        FairnessGate(
            str(column),
            _number("fairness", "max_gap", entries.get("max_gap", 0.1), low=0.0),
            metric,
            int(_number("fairness", "min_rows", entries.get("min_rows", 30), low=1.0)),
            _confidence("fairness", entries),
            small,
        )
        for column in columns
    ]


def _entries(name: str, given: object) -> dict[str, Any]:
    if not isinstance(given, Mapping):
        raise SpecError("gate-value", f"gate {name[:60]!r} is {given!r}"[:200], fix=f"write a table: {name[:60]} = {{ … }}")
    return {str(key): value for key, value in cast("Mapping[object, object]", given).items() if value is not None}


def _require_keys(name: str, entries: Mapping[str, Any], known: tuple[str, ...]) -> None:
    for key in entries:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            raise SpecError(
                "gate-key",
                f"gate {name!r} has no setting {key[:60]!r}",
                fix=f"did you mean {near[0]!r}?" if near else f"use one of {', '.join(known)}",
            )


def _number(name: str, key: str, value: object, *, low: float | None = None) -> float:
    good = isinstance(value, int | float) and not isinstance(value, bool) and value == value and (low is None or value >= low)  # noqa: PLR0124 - NaN
    if not good:
        raise SpecError(
            "gate-value", f"gate {name!r}: {key} is {value!r}"[:200], fix="use a number" if low is None else f"use a number from {low:g}"
        )
    return float(cast("float", value))


def _confidence(name: str, entries: Mapping[str, Any]) -> float:
    value = _number(name, "confidence", entries.get("confidence", DEFAULT_CONFIDENCE))
    if not 0.5 < value < 1.0:  # noqa: PLR2004 - below one half a bound lies on the wrong side
        raise SpecError("gate-value", f"gate {name!r}: confidence is {value!r}", fix="use a number between 0.5 and 1, such as 0.95")
    return value
