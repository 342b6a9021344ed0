"""When the requests of an open loop are due, and a clock that wakes on time.

The event loop's own timers are a millisecond coarse; on Linux a timer file descriptor wakes it to some microseconds.
"""

import asyncio
import contextlib
import ctypes
import os
import sys
import time
from collections.abc import Callable
from typing import Protocol

import numpy as np

from mulle.serve.loadtest.result import Arrivals

_BLOCK = 4096
_NS = 1_000_000_000
_CLOCK_MONOTONIC = 1
_TFD_FLAGS = 0o4000 | 0o2000000  # non-blocking, close on exec
_TFD_ABSOLUTE = 1


class Arriving:
    """The moments requests are due, in nanoseconds of the monotonic clock, rising without end.

    Args:
        rate: Per second, > 0.
        arrivals: Evenly spaced or Poisson.
        start_ns: The first one's moment.
        seed: Of Poisson's randomness.
    """

    __slots__ = ("_begin", "_done", "_gap", "_random")

    def __init__(self, rate: float, arrivals: Arrivals, start_ns: int, seed: int) -> None:
        self._gap = _NS / rate
        self._begin = float(start_ns)
        self._done = 0
        self._random = np.random.default_rng(seed) if arrivals == "poisson" else None

    def block(self) -> list[int]:
        """Return the next `_BLOCK` moments."""
        if self._random is None:
            offsets = np.arange(self._done, self._done + _BLOCK) * self._gap
            self._done += _BLOCK
            return (self._begin + offsets).astype(np.int64).tolist()
        moments = self._begin + np.cumsum(self._random.exponential(self._gap, _BLOCK))
        self._begin = float(moments[-1])
        return moments.astype(np.int64).tolist()


class Alarm(Protocol):
    """Calls back once at a moment of the monotonic clock."""

    def at(self, moment_ns: int) -> None:
        """Ask for the next call; one that is still due is replaced."""
        ...

    def close(self) -> None:
        """Ask no more."""
        ...


class TimerAlarm:
    """The event loop's own timer: to about a millisecond."""

    def __init__(self, loop: asyncio.AbstractEventLoop, call: Callable[[], None]) -> None:
        self._loop, self._call = loop, call
        self._handle: asyncio.TimerHandle | None = None

    def at(self, moment_ns: int) -> None:
        """Ask for the next call."""
        if self._handle is not None:
            self._handle.cancel()
        self._handle = self._loop.call_later(max(0.0, (moment_ns - time.monotonic_ns()) / 1e9), self._call)

    def close(self) -> None:
        """Ask no more."""
        if self._handle is not None:
            self._handle.cancel()


class DescriptorAlarm:
    """A Linux timer descriptor: to some microseconds, without spinning."""

    def __init__(self, loop: asyncio.AbstractEventLoop, call: Callable[[], None]) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        self._set = libc.timerfd_settime
        self._fd: int = libc.timerfd_create(_CLOCK_MONOTONIC, _TFD_FLAGS)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create")
        # struct itimerspec: interval (s, ns), first (s, ns); no interval, so it goes off once.
        self._spec = (ctypes.c_long * 4)(0, 0, 0, 0)
        self._loop, self._call = loop, call
        loop.add_reader(self._fd, self._ring)

    def at(self, moment_ns: int) -> None:
        """Ask for the next call."""
        # A first moment of zero would switch the timer off.
        self._spec[2], self._spec[3] = divmod(max(1, moment_ns), _NS)
        self._set(self._fd, _TFD_ABSOLUTE, self._spec, None)

    def close(self) -> None:
        """Ask no more."""
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1

    def _ring(self) -> None:
        # It was set anew since it rang: nothing to read, and a later call comes.
        with contextlib.suppress(BlockingIOError):
            os.read(self._fd, 8)
            self._call()


def open_alarm(loop: asyncio.AbstractEventLoop, call: Callable[[], None]) -> Alarm:
    """Return the most exact alarm this machine has."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            return DescriptorAlarm(loop, call)
    return TimerAlarm(loop, call)
