"""A worker's side of the supervisor: takes a seat, says that it lives, and ends with whoever started it.

A worker program imports everything first and then waits for its seat: a listening socket and the configuration, over the
socket pair it was started with. So a spare worker costs no more than memory, and takes the place of a dead one in the time it
takes to load the model.

To the worker:   one byte with the listening socket beside it, then one line: `{"worker", "incarnation", "drain_timeout_s", "config"}`
From the worker: lines: `{"say": "hello" | "ready" | "beat" | "error", …}`
"""

import asyncio
import contextlib
import faulthandler
import os
import resource
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from mulle.core.errors import MulleError

BEAT_S = 0.5
ORPHAN_GRACE_S = 2.0
"""How long a worker may still answer what it has, once its supervisor is gone."""
_WATCHDOG_S = 60.0
_LINE_BYTES = 1 << 20
T = TypeVar("T")


class _SeatLine(msgspec.Struct):
    worker: int
    incarnation: int
    drain_timeout_s: float
    config: msgspec.Raw


@dataclass(slots=True)
class Seat:
    """What a worker was given, and how it reports.

    Attributes:
        listener: Listens already; the supervisor keeps it open too.
        worker: Slot, from 0.
        incarnation: Unique among all workers of the supervisor: an old and a new worker of one slot live at once while one drains.
        config: JSON; see `decode_config`.
        drain_timeout_s: How long requests on their way may take after SIGTERM.
    """

    listener: socket.socket
    worker: int
    incarnation: int
    config: bytes
    drain_timeout_s: float
    _control: socket.socket
    _beats: "asyncio.Task[None] | None" = field(default=None)

    def ready(self, info: Mapping[str, Any]) -> None:
        """Tell the supervisor that this worker answers; to be called on its running loop, which from now on must turn.

        Args:
            info: Told to whoever started the server; plain JSON.
        """
        _say(self._control, {"say": "ready", "info": dict(info), "rss_bytes": rss_bytes()})
        self._beats = asyncio.get_running_loop().create_task(self._beat())

    async def _beat(self) -> None:
        """Say that the loop turns. Where nobody reads it, beats are lost and nothing else."""
        while True:
            # If the loop stands still for a minute, and nobody is there to end this process, it ends itself: the watchdog
            # is a thread that needs no interpreter.
            faulthandler.dump_traceback_later(_WATCHDOG_S, exit=True)
            await asyncio.sleep(BEAT_S)
            with contextlib.suppress(OSError):
                _say(self._control, {"say": "beat", "rss_bytes": rss_bytes()})


def run_worker(descriptor: int, serve: Callable[[Seat], None]) -> int:
    """Take a seat, serve until SIGTERM, and return the exit code.

    Args:
        descriptor: This end of the socket pair.
        serve: Serves on `seat.listener`, calls `seat.ready` once it does, drains on SIGTERM and returns.
    """
    control = socket.socket(fileno=descriptor)
    # A hung worker is asked where it hangs before it is killed; this answers even where the interpreter does not.
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    _say(control, {"say": "hello", "rss_bytes": rss_bytes()})
    seat = _take_seat(control)
    if seat is None:
        return 0
    threading.Thread(target=_end_with, args=(control, seat.drain_timeout_s), name="mulle-parent", daemon=True).start()
    try:
        serve(seat)
    except MulleError as error:
        with contextlib.suppress(OSError):
            _say(control, {"say": "error", "kind": type(error).__name__, **error.to_dict()})
        return error.exit_code
    finally:
        faulthandler.cancel_dump_traceback_later()
    return 0


def encode_config(config: Any) -> bytes:
    """Return a configuration (a dataclass of plain values, paths among them) as JSON in one line."""
    return msgspec.json.encode(config, enc_hook=_plain)


def decode_config(data: bytes, kind: type[T]) -> T:
    """Return the configuration in `data`.

    Raises:
        msgspec.ValidationError: it is another one; both ends are the same program, so this is a defect.
    """
    return msgspec.json.decode(data, type=kind, dec_hook=_rich)


def rss_bytes() -> int:
    """Return the resident memory of this process, in bytes; its peak where the system does not tell the present."""
    try:
        with Path("/proc/self/statm").open("rb") as file:
            return int(file.read().split()[1]) * resource.getpagesize()
    except OSError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


def _take_seat(control: socket.socket) -> Seat | None:
    """Wait for a seat; None when the supervisor has gone before there was one."""
    mark, descriptors, _, _ = socket.recv_fds(control, 1, 1)
    if not mark or not descriptors:
        return None
    line = bytearray()
    while not line.endswith(b"\n"):
        piece = control.recv(_LINE_BYTES)
        if not piece:
            return None
        line += piece
    given = msgspec.json.decode(bytes(line), type=_SeatLine)
    listener = socket.socket(fileno=descriptors[0])
    listener.setblocking(False)
    return Seat(listener, given.worker, given.incarnation, bytes(given.config), given.drain_timeout_s, control)


def _end_with(control: socket.socket, drain_timeout_s: float) -> None:
    """Wait until the supervisor is gone (its end of the pair closes, by kill -9 too), then drain, and end in any case."""
    with contextlib.suppress(OSError):
        while control.recv(_LINE_BYTES):
            pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(min(ORPHAN_GRACE_S, drain_timeout_s))
    os._exit(1)


def _say(control: socket.socket, message: Mapping[str, Any]) -> None:
    """Send one line without waiting for its reader."""
    control.send(msgspec.json.encode(message) + b"\n", socket.MSG_DONTWAIT)


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    raise NotImplementedError(f"{type(value).__name__} cannot be handed to a worker")


def _rich(kind: type[Any], value: Any) -> Any:
    if kind is Path:
        return Path(value)
    raise NotImplementedError(f"{kind.__name__} cannot be taken by a worker")
