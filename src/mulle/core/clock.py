"""Time and randomness as arguments: the protocols, so that everything above can be turned by hand in a test."""

from typing import Protocol


class Clock(Protocol):
    """Where time comes from. Real: `SystemClock` in `loop/wiring.py`; in tests: a clock turned by hand."""

    def now_ns(self) -> int:
        """Return nanoseconds since 1970-01-01 UTC; may go backwards when an operator sets the clock."""
        ...

    def monotonic_ns(self) -> int:
        """Return nanoseconds since an arbitrary moment; never goes backwards."""
        ...
