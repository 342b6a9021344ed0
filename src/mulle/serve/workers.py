"""The supervisor of N worker processes on one port: starts, watches, replaces, drains and rolls them. Single-threaded.

It serves nothing itself and holds what must outlive a worker: the listening sockets (`slots.py`) and the count of restarts. A
*spare* worker that has imported everything waits for the next seat, because importing is most of a start.

    SIGTERM, SIGINT   drain all and end; a second one ends at once
    SIGHUP            replace the workers one by one; where a terminal is attached it means that this went away: drain and end

Workers end by themselves when the supervisor is gone, however it went: their end of the socket pair closes.
"""

import logging
import os
import selectors
import signal
import socket
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

from mulle.core.errors import MulleError, UnavailableError
from mulle.serve.slots import close_slots
from mulle.serve.worker_process import Slot, WorkerProcess

LOG = logging.getLogger("mulle.serve")
_AT_ONCE = 5
_BACKOFF_S = (*[0.0] * _AT_ONCE, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
"""Waits before the next try, by how often in a row a slot's worker has ended; the last one repeats. One that was never ready is not
tried again at once."""
_STABLE_S = 10.0
SPARE = -1
_TURN_S = 0.1
_GRACE_S = 3.0
_TELL_S = 0.3


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerPlan:
    """What the supervisor starts.

    Attributes:
        slots: Listening sockets, one per worker; closed at the end.
        config: Gives the configuration for the next worker as JSON in one line; asked again at SIGHUP.
        command: The program; the descriptor of its socket pair is appended.
        drain_timeout_s: How long a worker may take to answer what it has.
        hang_timeout_s: Without a sign of life for so long a worker is killed and replaced.
        start_timeout_s: How long a worker may take until it is ready.
        spare: Keep one worker more, imported and waiting.
        terminal: Whether SIGHUP means that the terminal went away.
    """

    slots: Sequence[socket.socket]
    config: Callable[[], bytes]
    command: Sequence[str]
    drain_timeout_s: float = 10.0
    hang_timeout_s: float = 10.0
    start_timeout_s: float = 60.0
    spare: bool = True
    terminal: bool = field(default_factory=lambda: os.isatty(0))


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """One slot, or the spare worker, as others may see it.

    Attributes:
        worker: The slot; `SPARE` for the spare.
        pid: Its process; 0 while there is none.
        state: `starting`, `ready`, `waiting` (for the next try) or `draining`; the spare is `ready` when it has imported everything.
        restarts: How often a worker of this slot ended unasked.
        rss_bytes: Resident memory, as last told.
        uptime_s: Since the process was started.
    """

    worker: int
    pid: int
    state: str
    restarts: int
    rss_bytes: int
    uptime_s: float


class Supervisor:
    """Keeps one worker per slot.

    Args:
        plan: What to start.
        on_ready: Called once, when all workers are ready, with what each of them told.
        on_change: Called with the slots whenever one of them changed.
        on_restart: Called with the slot of a worker that ended unasked.
    """

    def __init__(
        self,
        plan: WorkerPlan,
        *,
        on_ready: Callable[[list[Mapping[str, Any]]], None],
        on_change: Callable[[list[WorkerStatus]], None] | None = None,
        on_restart: Callable[[int], None] | None = None,
    ) -> None:
        self._plan = plan
        self._on_ready = on_ready
        self._on_change = on_change
        self._on_restart = on_restart
        self._config = plan.config()
        self._slots = [Slot(number, listener) for number, listener in enumerate(plan.slots)]
        self._processes: list[WorkerProcess] = []
        self._spare: WorkerProcess | None = None
        self._spare_at_s = 0.0
        self._rolling: deque[Slot] = deque()
        self._selector = selectors.DefaultSelector()
        self._signals: deque[int] = deque()
        self._n_incarnations = 0
        self._told = False
        self._stopping = False
        self._n_killed = 0
        self._shown: list[tuple[int, str, int]] = []

    def run(self) -> int:
        """Keep the workers until a signal ends them; return 0, or 1 when some had to be killed at the end.

        Raises:
            MulleError: what a worker said before the first time that all were ready; everything has been ended.
            UnavailableError: `workers-start`: a worker ended before that without a word.
        """
        wake_read, wake_write = socket.socketpair()
        for end in (wake_read, wake_write):
            end.setblocking(False)
        numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)
        before = {number: signal.signal(number, self._note) for number in numbers}
        before_fd = signal.set_wakeup_fd(wake_write.fileno(), warn_on_full_buffer=False)
        self._selector.register(wake_read, selectors.EVENT_READ)
        try:
            while True:
                self._turn(wake_read)
                if self._stopping and not self._processes:
                    return 1 if self._n_killed else 0
        finally:
            for process in list(self._processes):
                self._kill(process, "the others are ended as well")
                process.popen.wait()
                self._close(process)
            signal.set_wakeup_fd(before_fd)
            for number, handler in before.items():
                signal.signal(number, handler)
            self._selector.close()
            wake_read.close()
            wake_write.close()
            close_slots(self._plan.slots)

    def status(self) -> list[WorkerStatus]:
        """Return the slots as they are, in their order, and the spare after them if there is one."""
        now = time.monotonic()
        slots = [self._status_of(slot, now) for slot in self._slots]
        spare = self._spare
        if spare is None:
            return slots
        state = "ready" if spare.imported else "starting"
        return [*slots, WorkerStatus(SPARE, spare.popen.pid, state, 0, spare.rss_bytes, now - spare.started_s)]

    # ---- one turn

    def _turn(self, wake: socket.socket) -> None:
        slept = time.monotonic()
        for key, _ in self._selector.select(_TURN_S):
            if key.data is None:
                wake.recv(4096)
            else:
                self._hear(key.data)
        now = time.monotonic()
        if now - slept > _TURN_S + 1.0:
            # This process itself was kept from running: nobody has missed a beat by that.
            for process in self._processes:
                process.seen_s = now
        while self._signals:
            self._act(self._signals.popleft(), now)
        for process in [process for process in self._processes if process.popen.poll() is not None]:
            self._ended(process, now)
        self._judge(now)
        if not self._stopping:
            self._fill(now)
            self._roll(now)
        self._show()

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if number != signal.SIGCHLD:
            self._signals.append(number)

    def _act(self, number: int, now: float) -> None:
        if number == signal.SIGHUP and not self._plan.terminal:
            if self._stopping or not self._told:
                return
            self._reconfigure()
            self._rolling = deque(slot for slot in self._slots if slot.current is not None)
            LOG.info("replacing %d workers one by one", len(self._rolling))
        elif self._stopping:
            for process in list(self._processes):
                self._kill(process, "the end was asked for twice")
        else:
            self._stop(now)

    def _stop(self, now: float) -> None:
        LOG.info("draining %d workers", sum(slot.current is not None for slot in self._slots))
        self._stopping = True
        self._rolling.clear()
        # The workers hold the sockets as well: what waits in the queues is theirs to answer before they close them.
        close_slots(self._plan.slots)
        for process in list(self._processes):
            if process.slot is None or not process.ready:
                process.popen.kill()  # it has accepted nothing
            elif process.draining_until_s is None:
                self._drain(process, now)

    # ---- starting

    def _fill(self, now: float) -> None:
        """Give every empty slot a worker, the spare first; then see to the next spare."""
        for slot in self._slots:
            if slot.current is None and now >= slot.start_at_s:
                try:
                    slot.current = self._seat(slot, now, fresh=False)
                except OSError as error:  # no process, no descriptor left: the other workers go on
                    LOG.error("worker %d cannot be started: %s", slot.worker, error)  # noqa: TRY400 - for operators
                    slot.start_at_s = now + _BACKOFF_S[-1]
        all_ready = all(slot.current is not None and slot.current.ready for slot in self._slots)
        if all_ready and not self._told:
            self._told = True
            self._on_ready([slot.current.info for slot in self._slots if slot.current is not None])
        # A spare is made when nothing more urgent wants the processor.
        if all_ready and self._plan.spare and self._spare is None and not self._rolling and now >= self._spare_at_s:
            self._spare = self._spawn(now)

    def _seat(self, slot: Slot, now: float, *, fresh: bool) -> WorkerProcess:
        """Return a worker that has been given the slot: the spare if it is there (and may be used), else a new one."""
        process = self._spare if self._spare is not None and self._spare.imported and not fresh else None
        if process is None:
            process = self._spawn(now)
        else:
            self._spare = None
        process.slot = slot
        process.started_s = process.seen_s = now
        try:
            process.give_seat(slot.worker, slot.listener, self._config, self._plan.drain_timeout_s)
        except OSError as error:  # it has just died: its end will be noticed
            LOG.warning("worker %d could not be given its seat: %s", slot.worker, error)
        return process

    def _spawn(self, now: float) -> WorkerProcess:
        self._n_incarnations += 1
        process = WorkerProcess.spawn(self._plan.command, self._n_incarnations, now)
        self._processes.append(process)
        self._selector.register(process.control, selectors.EVENT_READ, process)
        return process

    def _reconfigure(self) -> None:
        try:
            self._config = self._plan.config()
        except MulleError as error:
            LOG.error("the configuration was not read again, the old one is used: %s", error)  # noqa: TRY400 - for operators
        if self._spare is not None:
            self._spare.popen.kill()  # it has imported the old program
            self._spare = None

    def _roll(self, now: float) -> None:
        """Replace the first slot in line: the new worker takes the same socket before the old one lets go of it."""
        if not self._rolling:
            return
        slot = self._rolling[0]
        old = slot.current
        if old is None:
            self._rolling.popleft()
        elif slot.next is None and old.draining_until_s is None:
            slot.next = self._seat(slot, now, fresh=True)
        elif slot.next is not None and slot.next.ready:
            slot.current, slot.next = slot.next, None
            self._rolling.popleft()
            self._drain(old, now)
            LOG.info("worker %d: process %d takes over from %d", slot.worker, slot.current.popen.pid, old.popen.pid)

    # ---- hearing, judging, ending

    def _hear(self, process: WorkerProcess) -> bool:
        """Take what a process has said; return whether there may be more."""
        heard = process.hear()
        if heard is False and process.control in self._registered():
            self._selector.unregister(process.control)  # its end, or about to be: `poll` will tell
        return heard is True

    def _judge(self, now: float) -> None:
        """Kill who gives no sign of life, takes too long to start, or to drain."""
        for process in list(self._processes):
            if process.kill_at_s is not None:
                if now >= process.kill_at_s:
                    self._kill(process, process.why)
            elif process.draining_until_s is not None:
                if now > process.draining_until_s:
                    self._kill(process, f"it was not drained within {self._plan.drain_timeout_s:g} s")
            elif process.ready and now - process.seen_s > self._plan.hang_timeout_s:
                # It prints where it hangs first; a stopped process cannot, and is not waited for.
                process.why = f"it gave no sign of life for {self._plan.hang_timeout_s:g} s"
                process.kill_at_s = now + _TELL_S
                process.popen.send_signal(signal.SIGUSR1)
            elif process.slot is not None and not process.ready and now - process.started_s > self._plan.start_timeout_s:
                self._kill(process, f"it was not ready within {self._plan.start_timeout_s:g} s")

    def _ended(self, process: WorkerProcess, now: float) -> None:
        """Take note of a process that has ended, and say when its slot is filled again."""
        while self._hear(process):  # its last words
            pass
        self._close(process)
        how = process.how()
        if process is self._spare:
            self._spare, self._spare_at_s = None, now + _STABLE_S
            if not self._stopping:
                LOG.warning("the spare worker %s", how)
        slot = process.slot
        if slot is None or self._stopping:
            return
        if not self._told:
            raise process.error or UnavailableError(
                "workers-start", f"worker {slot.worker} {how} before it was ready", fix="read its lines above; `mulle doctor` may know why"
            )
        if process is slot.next:
            slot.next = None
            self._rolling.clear()
            LOG.error("the new worker %d %s: the old workers go on%s", slot.worker, how, process.reason())
        elif process is slot.current:
            self._lost(slot, process, now, how)

    def _lost(self, slot: Slot, process: WorkerProcess, now: float, how: str) -> None:
        slot.n_restarts += 1
        if process.ready and now - process.started_s > _STABLE_S:
            slot.n_in_a_row = 0
        if not process.ready:
            slot.n_in_a_row = max(slot.n_in_a_row, _AT_ONCE)
        wait = _BACKOFF_S[min(slot.n_in_a_row, len(_BACKOFF_S) - 1)]
        slot.n_in_a_row += 1
        # A replacement that was on its way for another reason takes the place.
        slot.current, slot.next = slot.next, None
        if slot.current is not None and slot in self._rolling:
            self._rolling.remove(slot)
        slot.start_at_s = now + wait
        if self._on_restart is not None:
            self._on_restart(slot.worker)
        when = "replaced at once" if wait == 0 or slot.current is not None else f"next try in {wait:g} s"
        LOG.error("worker %d (process %d) %s: %s%s", slot.worker, process.popen.pid, how, when, process.reason())

    def _drain(self, process: WorkerProcess, now: float) -> None:
        process.draining_until_s = now + self._plan.drain_timeout_s + _GRACE_S
        process.popen.terminate()

    def _kill(self, process: WorkerProcess, why: str) -> None:
        if process.popen.poll() is None:
            process.why = why
            process.popen.kill()
            self._n_killed += self._stopping and process.ready
            if process.slot is not None:
                LOG.warning("worker %d (process %d) is killed: %s", process.slot.worker, process.popen.pid, why)

    def _close(self, process: WorkerProcess) -> None:
        if process.control in self._registered():
            self._selector.unregister(process.control)
        process.control.close()
        if process in self._processes:
            self._processes.remove(process)

    def _registered(self) -> set[object]:
        return {key.fileobj for key in self._selector.get_map().values()}

    # ---- telling

    def _status_of(self, slot: Slot, now: float) -> WorkerStatus:
        process = slot.current
        if process is None:
            return WorkerStatus(slot.worker, 0, "waiting", slot.n_restarts, 0, 0.0)
        state = "draining" if process.draining_until_s is not None else "ready" if process.ready else "starting"
        return WorkerStatus(slot.worker, process.popen.pid, state, slot.n_restarts, process.rss_bytes, now - process.started_s)

    def _show(self) -> None:
        if self._on_change is None:
            return
        status = self.status()
        shown = [(slot.pid, slot.state, slot.restarts) for slot in status]
        if shown != self._shown:
            self._shown = shown
            self._on_change(status)


def serve_workers(
    plan: WorkerPlan,
    *,
    on_ready: Callable[[list[Mapping[str, Any]]], None],
    on_change: Callable[[list[WorkerStatus]], None] | None = None,
    on_restart: Callable[[int], None] | None = None,
) -> int:
    """Serve with one worker per slot until SIGTERM or SIGINT; return 0, or 1 when a worker had to be killed at the end.

    To be called in the main thread.

    Args:
        plan: What to start.
        on_ready: Called once, when all workers are ready, with what each of them told.
        on_change: Called with the slots whenever one of them changed.
        on_restart: Called with the slot of a worker that ended unasked.

    Raises:
        MulleError: a worker could not start; everything has been ended.
    """
    return Supervisor(plan, on_ready=on_ready, on_change=on_change, on_restart=on_restart).run()
