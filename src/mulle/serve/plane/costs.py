"""What a batch of a model costs on this host, learnt by measuring; pure arithmetic.

Kept per power of two of the rows: measured once at load, corrected by every batch that runs.
"""

from collections.abc import Mapping

_WEIGHT = 0.1
_WORTH = 0.05
_MAX_LEVEL = 24


class CostCurve:
    """Nanoseconds by number of rows.

    Args:
        measured_ns: Rows to nanoseconds, at least one point, every one positive.
    """

    def __init__(self, measured_ns: Mapping[int, float]) -> None:
        levels = {_level(n): float(ns) for n, ns in sorted(measured_ns.items())}
        self._levels: list[float] = []
        known = sorted(levels)
        for level in range(_MAX_LEVEL + 1):
            cost = levels[level] if level in levels else _between(levels, known, level)
            # More rows never cost less: a measurement that says so was disturbed.
            self._levels.append(max(cost, self._levels[-1] if self._levels else 0.0))
        self._top = known[-1]
        self._best: tuple[int, int] = (0, 0)

    def estimate_ns(self, n_rows: int) -> float:
        """Return what a batch of `n_rows` is expected to take."""
        if n_rows <= 1:
            return self._levels[0]
        level = min(_level(n_rows), _MAX_LEVEL)
        low, base = self._levels[level], 1 << level
        if n_rows == base or level == _MAX_LEVEL:
            return low * n_rows / base
        return low + (self._levels[level + 1] - low) * (n_rows - base) / base

    def row_ns(self, max_rows: int) -> float:
        """Return what one row costs in a batch of the best size."""
        best = self.best_batch(max_rows)
        return self.estimate_ns(best) / best

    def best_batch(self, max_rows: int) -> int:
        """Return the batch to aim at: growing it further would save less than 5 % per row, or it would exceed `max_rows`.

        Only sizes that were measured are recommended.
        """
        if self._best[0] == max_rows:
            return self._best[1]
        best, cheapest = 1, self._levels[0]
        for level in range(1, self._top + 1):
            rows = 1 << level
            if rows > max_rows:
                break
            per_row = self._levels[level] / rows
            if per_row < cheapest * (1 - _WORTH):
                best, cheapest = rows, per_row
        if self._top >= 1 and best << 1 > max_rows > best > 1:
            best = max_rows
        self._best = (max_rows, best)
        return best

    def observe(self, n_rows: int, ns: float) -> None:
        """Learn from one batch; a single slow one (a page fault, a busy core) moves the estimate by a tenth of the gap at most doubled."""
        level = min(_level(n_rows), _MAX_LEVEL)
        expected = self.estimate_ns(n_rows)
        ratio = min(ns / expected, 2.0) if expected > 0 else 1.0
        self._levels[level] *= 1 + _WEIGHT * (ratio - 1)
        self._top = max(self._top, level)
        # A longer batch cannot be cheaper than a shorter one: keep neighbours in order.
        for higher in range(level + 1, _MAX_LEVEL + 1):
            if self._levels[higher] >= self._levels[higher - 1]:
                break
            self._levels[higher] = self._levels[higher - 1]
        for lower in range(level - 1, -1, -1):
            if self._levels[lower] <= self._levels[lower + 1]:
                break
            self._levels[lower] = self._levels[lower + 1]
        self._best = (0, 0)


def _level(n_rows: int) -> int:
    return max(n_rows, 1).bit_length() - 1


def _between(levels: Mapping[int, float], known: list[int], level: int) -> float:
    """Return a level's cost from its measured neighbours: proportional beyond the last, a straight line between two."""
    below = [k for k in known if k < level]
    above = [k for k in known if k > level]
    if not below:
        return levels[above[0]] / (1 << (above[0] - level))
    if not above:
        return levels[below[-1]] * (1 << (level - below[-1]))
    low, high = below[-1], above[0]
    share = ((1 << level) - (1 << low)) / ((1 << high) - (1 << low))
    return levels[low] + (levels[high] - levels[low]) * share
