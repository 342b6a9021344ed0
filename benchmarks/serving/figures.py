"""Reading figures out of results: pure functions over `results.json`."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

Json = Mapping[str, Any]


def middle(cell: Any) -> float | None:
    """Return the figure of a cell: the percentile over all samples together, or the median of the rounds; None where there is none."""
    if cell is None:
        return None
    pooled = cell.get("pooled")
    return pooled if pooled is not None else statistics.median(cell["rounds"])


def find_table(results: Json, name: str) -> Json | None:
    """Return a table by its name, wherever it stands."""
    return next((group["tables"][name] for group in results["groups"].values() if name in group["tables"]), None)


def cell(results: Json, table: str, row: str, key: str) -> Json | None:
    """Return one cell, or None where it was not measured."""
    found = find_table(results, table)
    return None if found is None else found["rows"].get(row, {}).get(key)


def value(results: Json, table: str, row: str, key: str) -> float | None:
    """Return one figure, or None."""
    return middle(cell(results, table, row, key))


def rate_ratio(one: Json | None, other: Json | None) -> float | None:
    """Return the median, over the rounds both took part in, of one figure over another."""
    if one is None or other is None:
        return None
    pairs = [(a, b) for a, b in zip(one["rounds"], other["rounds"], strict=False) if b]
    return statistics.median(a / b for a, b in pairs) if pairs else None


def ratio(results: Json, table: str, row: str, other: str, key: str = "rate") -> float | None:
    """Return how many times one row's figure is another's, round by round."""
    return rate_ratio(cell(results, table, row, key), cell(results, table, other, key))


def smallest_ratio(results: Json, table: str, row: str, others: Sequence[str], key: str = "rate") -> float | None:
    """Return the smallest of the ratios to those of `others` that were measured."""
    found = [one for name in others if (one := ratio(results, table, row, name, key)) is not None]
    return min(found, default=None)
