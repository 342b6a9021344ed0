"""The dimensions a model's parameters may be searched in, as plain values."""

from dataclasses import dataclass

from mulle.core.errors import SpecError


@dataclass(frozen=True, slots=True)
class Uniform:
    """A real number in [low, high]; evenly on the logarithm when `log`."""

    low: float
    high: float
    log: bool = False


@dataclass(frozen=True, slots=True)
class Integer:
    """A whole number in [low, high]."""

    low: int
    high: int


@dataclass(frozen=True, slots=True)
class Choice:
    """One of a few values."""

    options: tuple[str | int | float | bool | None, ...]


Dimension = Uniform | Integer | Choice


def uniform(low: float, high: float) -> Uniform:
    """Return a dimension of real numbers in [low, high]."""
    _require_order(low, high)
    return Uniform(low, high)


def log_uniform(low: float, high: float) -> Uniform:
    """Return a dimension of positive real numbers in [low, high], evenly on the logarithm."""
    _require_order(low, high)
    if low <= 0:
        raise SpecError("search-range", f"log_uniform starts at {low!r}", fix="start above 0, or use mulle.uniform")
    return Uniform(low, high, log=True)


def integer(low: int, high: int) -> Integer:
    """Return a dimension of whole numbers in [low, high]."""
    _require_order(low, high)
    return Integer(low, high)


def choice(*options: str | float | bool | None) -> Choice:
    """Return a dimension of a few values."""
    if not options:
        raise SpecError("search-range", "choice() has no options", fix="name at least one value")
    return Choice(options)


def _require_order(low: float, high: float) -> None:
    if not low < high:
        raise SpecError("search-range", f"the range {low!r} to {high!r} is empty", fix="give the lower end first")
