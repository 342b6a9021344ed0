"""A measured number with how sure it is: the value type that crosses from measuring to deciding."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Estimate:
    """A metric on some rows.

    Attributes:
        value: The figure.
        low: Lower end of its interval; None where none was made.
        high: Upper end.
        se: Standard error.
    """

    value: float
    low: float | None = None
    high: float | None = None
    se: float | None = None
