"""One worker as its supervisor sees it: a process, and a socket pair to talk over."""

import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from mulle.core.errors import CheckError, ConflictError, MulleError, SpecError, UnavailableError

_TELL_S = 0.3
_KINDS = {kind.__name__: kind for kind in (SpecError, CheckError, ConflictError, UnavailableError)}


@dataclass(slots=True, eq=False)
class WorkerProcess:
    """A started process. Times are seconds of the monotonic clock.

    Attributes:
        popen: The process.
        control: Our end of the socket pair.
        incarnation: Its number among all that were started.
        started_s: When it was given its seat; until then, when it was started.
        seen_s: Its last sign of life.
        slot: Its seat; None: it is the spare.
        imported: Whether it waits for its seat, or has it.
        ready: Whether it answers requests.
        draining_until_s: When it has to have ended; None: nobody asked it to.
        kill_at_s: When it is to be killed; None: not so far.
        why: Why it is killed.
        rss_bytes: Resident memory, as last told.
        error: What it said before it ended.
        info: What it told when it was ready.
    """

    popen: "subprocess.Popen[bytes]"
    control: socket.socket
    incarnation: int
    started_s: float
    seen_s: float
    slot: "Slot | None" = None
    imported: bool = False
    ready: bool = False
    draining_until_s: float | None = None
    kill_at_s: float | None = None
    why: str = ""
    rss_bytes: int = 0
    error: MulleError | None = None
    info: Mapping[str, Any] = field(default_factory=dict[str, Any])
    _buffer: bytes = b""

    @classmethod
    def spawn(cls, command: Sequence[str], incarnation: int, now: float) -> "WorkerProcess":
        """Return a new process that waits for a seat.

        Raises:
            OSError: the system gives no process, or no descriptor.
        """
        ours, theirs = socket.socketpair()
        try:
            popen = subprocess.Popen(
                [*command, str(theirs.fileno())],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                stdout=2,  # what a server prints for people is printed once, by the supervisor
                start_new_session=True,  # Ctrl-C is for the supervisor, which then drains them
            )
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()
        ours.setblocking(False)
        return cls(popen, ours, incarnation, now, now)

    def give_seat(self, worker: int, listener: socket.socket, config: bytes, drain_timeout_s: float) -> None:
        """Hand over a listening socket and a configuration; nothing of it is in the arguments or the environment, where others look.

        Raises:
            OSError: the process has ended.
        """
        head = {"worker": worker, "incarnation": self.incarnation, "drain_timeout_s": drain_timeout_s, "config": msgspec.Raw(config)}
        self.control.settimeout(_TELL_S)
        try:
            socket.send_fds(self.control, [b"s"], [listener.fileno()])
            self.control.sendall(msgspec.json.encode(head) + b"\n")
        finally:
            self.control.setblocking(False)

    def hear(self) -> bool | None:
        """Take what the process has said; return True if there may be more, None if not now, False if never again."""
        try:
            piece = self.control.recv(1 << 16)
        except BlockingIOError:
            return None
        except OSError:
            return False
        if not piece:
            return False
        self.seen_s = time.monotonic()
        *lines, self._buffer = (self._buffer + piece).split(b"\n")
        for line in lines:
            self._understand(msgspec.json.decode(line))
        return True

    def how(self) -> str:
        """Return in words how the process ended."""
        code = self.popen.returncode
        if self.why:
            return f"was killed, because {self.why}"
        if code is not None and code < 0:
            return f"was killed by {signal.Signals(-code).name}"
        return f"ended with code {code}"

    def reason(self) -> str:
        """Return the error the process told, to be put behind a sentence; empty when it told none."""
        return "" if self.error is None else f"; {self.error}"

    def _understand(self, said: dict[str, Any]) -> None:
        self.rss_bytes = int(said.get("rss_bytes", self.rss_bytes))
        match said.get("say"):
            case "hello":
                self.imported = True
            case "ready":
                self.ready, self.info = True, said["info"]
            case "error":
                kind = _KINDS.get(said["kind"], UnavailableError)
                self.error = kind(said["code"], said["what"], fix=said["fix"], where=said["where"], facts=said["facts"])
            case _:
                pass


@dataclass(slots=True, eq=False)
class Slot:
    """One place behind the port.

    Attributes:
        worker: Its number, from 0.
        listener: Its socket, open for as long as the supervisor lives.
        current: Who has the seat.
        next: Who takes it over when ready; the socket is handed on before the one before lets go.
        start_at_s: Before this moment nobody is given an empty seat.
        n_in_a_row: How often somebody on this seat has ended unasked and soon.
        n_restarts: How often somebody on this seat has ended unasked.
    """

    worker: int
    listener: socket.socket
    current: WorkerProcess | None = None
    next: WorkerProcess | None = None
    start_at_s: float = 0.0
    n_in_a_row: int = 0
    n_restarts: int = 0
