"""The load generator: keep-alive HTTP/1.1 on one event loop, closed (each asks again) or open (asked on time, whatever comes back).

Latency counts from the moment a request was *meant* to be sent, so a server that stalls is charged for everybody who would
have asked meanwhile. Where the generator itself is late or full it says so: `Result.lags`, `could_offer`, `saturated`.
"""

import asyncio
import gc
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from mulle.core.errors import SpecError, UnavailableError
from mulle.serve.loadtest.connection import Connection, Tally, clock
from mulle.serve.loadtest.histogram import Histogram, bucket_of
from mulle.serve.loadtest.pace import Alarm, Arriving, open_alarm
from mulle.serve.loadtest.result import Load, Result, Second

OnSecond = Callable[[Second], None]
OnConnected = Callable[[], int]

_NS = 1_000_000_000
# How long due requests gather before they are sent together: waking costs more than sending, most of all where many go into one write.
_TICK_NS, _PIPELINED_TICK_NS = 30_000, 100_000
_FRAGMENT_NS = 50_000_000
_RETRY_S = 0.05
_PAUSE_S = 0.002
_AT_ONCE = 64
_SPARE_FILES = 64
_CONNECT_TIMEOUT_S = 10.0


@dataclass(slots=True)
class _Mark:
    """The counters at one moment."""

    at_ns: int
    cpu_s: float
    n_done: int
    n_sent: int
    n_late: int
    n_reconnects: int
    bytes_in: int
    bytes_out: int


class Generator:
    """One process's part of a load test. Use `run_load`.

    Args:
        load: What to ask.
        on_second: Called on the event loop once a second.
        on_connected: Called when the connections are open; it returns the moment of the monotonic clock to begin at.
    """

    def __init__(self, load: Load, *, on_second: OnSecond | None = None, on_connected: OnConnected | None = None) -> None:
        self.load = load
        self.tally = Tally()
        self.connections: list[Connection] = []
        self._on_second = on_second
        self._on_connected = on_connected
        self._requests = load.requests
        self._n_kinds = len(load.requests)
        self._turn = 0
        self._closed = load.rate is None
        self._asking = False
        self._exhausted = False
        self._over = False
        self._free: deque[Connection] = deque()
        self._waiting: deque[int] = deque()
        self._tick_ns = _TICK_NS if load.pipeline == 1 else _PIPELINED_TICK_NS
        self._due: list[int] = []
        self._next_due = 0
        self._end_ns = 0
        self._timeout_ns = int(load.timeout_s * _NS)
        self._tasks: set[asyncio.Task[None]] = set()
        self._seconds: list[Second] = []
        self._address = (load.host, load.port)
        self._alarm: Alarm | None = None
        self._arriving: Arriving | None = None

    # The hot path -----------------------------------------------------------------------------------------------

    def answered(self, connection: Connection, now: int) -> None:
        """Go on after an answer: ask again (closed loop), or take the next request that waits (open loop)."""
        if self._closed:
            if not self._asking:
                return
            turn = self._turn
            self._turn = turn + 1 if turn + 1 < self._n_kinds else 0
            data = self._requests[turn]
            connection.queue.append(now)
            tally = self.tally
            tally.n_sent += 1
            tally.bytes_out += len(data)
            connection.write(data)
        elif self._waiting:
            self._feed(connection, now)
        elif not connection.listed:
            connection.listed = True
            self._free.append(connection)

    def _tick(self) -> None:
        """Send everything that is due, and set the alarm for what comes next."""
        now = clock()
        due, at, waiting, free = self._due, self._next_due, self._waiting, self._free
        n_before = len(waiting)
        while True:
            n, first = len(due), at
            while at < n and due[at] <= now:
                at += 1
            ready = due[first:at]
            if ready and ready[-1] >= self._end_ns:
                ready = [moment for moment in ready if moment < self._end_ns]
                self._asking, self._exhausted = False, True
            waiting.extend(ready)
            if at < n or self._exhausted or self._arriving is None:
                break
            due, at = self._arriving.block(), 0
        self._due, self._next_due = due, at
        n_new = len(waiting) - n_before
        while waiting and free:
            connection = free.popleft()
            connection.listed = False
            if connection.usable:
                self._feed(connection, now)
        if now >= self.tally.since:
            self.tally.n_held += min(n_new, len(waiting))
        if self._asking and self._alarm is not None:
            self._alarm.at(max(due[at], now + self._tick_ns))

    def _feed(self, connection: Connection, now: int) -> None:
        """Write as many waiting requests as the connection has room for."""
        waiting, tally = self._waiting, self.tally
        room = self.load.pipeline - len(connection.queue)
        n = min(room, len(waiting))
        if n <= 0:
            return
        since, lag = tally.since, tally.lag
        for _ in range(n):
            moment = waiting.popleft()
            connection.queue.append(moment)
            if moment >= since:
                lag[bucket_of(now - moment)] += 1
        if self._n_kinds == 1:
            data = self._requests[0] * n
        else:
            turn = self._turn
            data = b"".join([self._requests[(turn + i) % self._n_kinds] for i in range(n)])
            self._turn = (turn + n) % self._n_kinds
        tally.n_sent += n
        tally.bytes_out += len(data)
        connection.write(data)
        if n < room and not connection.listed:
            connection.listed = True
            self._free.append(connection)

    # Connections ------------------------------------------------------------------------------------------------

    def gone(self, connection: Connection) -> None:
        """Have a lost connection opened again."""
        if self._over:
            return
        self.tally.n_reconnects += 1
        self.connections.remove(connection)
        self._spawn()

    def _spawn(self) -> None:
        task = asyncio.get_running_loop().create_task(self._reopen())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _open(self) -> None:
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(_CONNECT_TIMEOUT_S):
            _, connection = await loop.create_connection(lambda: Connection(self), *self._address)
        if self._over:
            connection.close("reset")
            return
        self.connections.append(connection)
        if self._asking or self._waiting:
            self.answered(connection, clock())
        elif not self._closed:
            connection.listed = True
            self._free.append(connection)

    async def _reopen(self) -> None:
        while not self._over:
            try:
                await self._open()
            except OSError as error:
                kind = "refused" if isinstance(error, ConnectionRefusedError) else "unreachable"
                now = clock()
                if self._closed:
                    if self._asking:
                        self.tally.fail(kind, now)
                elif not self.connections:
                    # Nobody could have asked: everybody who wanted to was turned away.
                    while self._waiting:
                        self.tally.fail(kind, self._waiting.popleft())
                await asyncio.sleep(_RETRY_S)
            else:
                return

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            found = await loop.getaddrinfo(*self._address, type=1)
            self._address = (str(found[0][4][0]), self.load.port)
            await self._open()
        except OSError as error:
            raise UnavailableError(
                "loadtest-unreachable",
                f"nobody listens at {self.load.host}:{self.load.port}: {error.strerror or type(error).__name__}",
                fix="start the server first: mulle serve",
            ) from error
        missing = self.load.connections - 1
        while missing > 0:
            batch = min(missing, _AT_ONCE)
            outcomes = await asyncio.gather(*(self._open() for _ in range(batch)), return_exceptions=True)
            missing -= batch
            for outcome in outcomes:
                if isinstance(outcome, OSError):
                    self._spawn()
                elif outcome is not None:
                    raise outcome

    # The test ---------------------------------------------------------------------------------------------------

    async def run(self) -> Result:
        """Return what came back.

        Raises:
            UnavailableError: the very first connection cannot be opened.
        """
        load, tally = self.load, self.tally
        await self._connect()
        sweeping = asyncio.get_running_loop().create_task(self._sweep())
        begin = clock()
        if self._on_connected is not None:
            begin = max(begin, await asyncio.get_running_loop().run_in_executor(None, self._on_connected))
            await asyncio.sleep(max(0, begin - clock()) / _NS)
        measured = begin + int(load.warmup_s * _NS)
        self._end_ns = measured + int(load.duration_s * _NS)
        interrupted = False
        first: _Mark | None = None
        # An open loop knows beforehand which requests are of the window. A closed one does not: its window begins when it is cleared.
        tally.clear(measured if load.rate is not None else begin)
        self._begin_asking(begin)
        try:
            await self._until(begin, measured, warm=True)
            if load.rate is None and load.warmup_s > 0:
                tally.clear(clock())
            first = self._mark()
            await self._until(begin, self._end_ns, warm=False)
        except asyncio.CancelledError:
            interrupted = True
        last = self._mark()
        self._asking = False
        if first is None:
            tally.clear(sys.maxsize)
            first = last
        if not interrupted:
            # Whatever was due within the window and not yet looked at.
            self._tick()
            await self._drain()
        self._over = True
        for task in [*self._tasks, sweeping]:
            task.cancel()
        if self._alarm is not None:
            self._alarm.close()
        for connection in self.connections:
            connection.queue.clear()
            connection.close("reset")
        return self._result(first, last, interrupted=interrupted)

    def _begin_asking(self, begin: int) -> None:
        self._asking = True
        rate = self.load.rate
        if rate is None:
            for connection in list(self.connections):
                self.answered(connection, clock())
            return
        self._arriving = Arriving(rate, self.load.arrivals, begin, self.load.seed)
        self._due = self._arriving.block()
        self._alarm = open_alarm(asyncio.get_running_loop(), self._tick)
        self._alarm.at(self._due[0])

    async def _until(self, begin: int, moment: int, *, warm: bool) -> None:
        seen, errors, refusals, done = Histogram(), 0, 0, self.tally.n_done
        while (now := clock()) < moment:
            await asyncio.sleep(min(_NS, moment - now) / _NS)
            if 0 < moment - clock() < _FRAGMENT_NS:
                # The loop's clock is coarser than ours: the rest of this second belongs to it.
                await asyncio.sleep(max(0, moment - clock()) / _NS)
            counts = self._counted()
            new, seen = counts.minus(seen), counts
            n_errors, n_other = sum(self.tally.errors.values()), self._n_answered() - counts.n
            n_ok = new.n
            p50, p99 = new.quantiles((0.5, 0.99))
            second = Second(
                at_s=(clock() - begin) / _NS,
                n_answered=self.tally.n_done - done,
                n_ok=n_ok,
                n_errors=n_errors - errors + n_other - refusals,
                p50_ns=p50,
                p99_ns=p99,
                waiting=len(self._waiting),
                warm=warm,
            )
            errors, refusals, done = n_errors, n_other, self.tally.n_done
            self._seconds.append(second)
            if self._on_second is not None:
                self._on_second(second)

    async def _drain(self) -> None:
        """Wait for the answers of the window, at most until the last of them is given up."""
        for _ in range(int((self.load.timeout_s + 0.5) / _PAUSE_S)):
            if not self._waiting and not any(len(one.queue) > one.dead for one in self.connections):
                return
            await asyncio.sleep(_PAUSE_S)

    async def _sweep(self) -> None:
        """Give up what has waited too long."""
        pause_s = min(0.05, max(0.005, self.load.timeout_s / 20))
        tally, timeout = self.tally, self._timeout_ns
        while True:
            await asyncio.sleep(pause_s)
            oldest = clock() - timeout
            for connection in list(self.connections):
                queue = connection.queue
                while connection.dead < len(queue) and queue[connection.dead] <= oldest:
                    tally.fail("timeout", queue[connection.dead])
                    connection.dead += 1
                if connection.dead >= self.load.pipeline:
                    # A client that gives up closes; on a pipelined connection its mates keep it open.
                    connection.close("reset")
            while self._waiting and self._waiting[0] <= oldest:
                tally.fail("unsent", self._waiting.popleft())

    def _counted(self) -> Histogram:
        good = [counts for status, counts in self.tally.by_status.items() if status.startswith(b"2")]
        return Histogram(good[0].copy()).merged(*(Histogram(counts) for counts in good[1:]))

    def _n_answered(self) -> int:
        return sum(sum(counts) for counts in self.tally.by_status.values())

    def _mark(self) -> _Mark:
        tally = self.tally
        # The thread's own time: whatever else runs in this process is not the generator's.
        return _Mark(
            clock(), time.thread_time(), tally.n_done, tally.n_sent, tally.n_late, tally.n_reconnects, tally.bytes_in, tally.bytes_out
        )

    def _result(self, first: _Mark, last: _Mark, *, interrupted: bool) -> Result:
        tally, load = self.tally, self.load
        by_status = {int(status): Histogram(counts).to_pairs() for status, counts in tally.by_status.items()}
        return Result(
            connections=load.connections,
            asked_rate=load.rate,
            arrivals=load.arrivals,
            pipeline=load.pipeline,
            measured_s=(last.at_ns - first.at_ns) / _NS,
            by_status={status: pairs for status, pairs in by_status.items() if pairs},
            errors=tally.errors,
            n_sent=last.n_sent - first.n_sent,
            n_held=tally.n_held,
            n_completed=last.n_done - first.n_done,
            n_late=tally.n_late - first.n_late,
            n_reconnects=last.n_reconnects - first.n_reconnects,
            bytes_in=last.bytes_in - first.bytes_in,
            bytes_out=last.bytes_out - first.bytes_out,
            lag=Histogram(tally.lag).to_pairs(),
            cpu_s=last.cpu_s - first.cpu_s,
            interrupted=interrupted,
            seconds=self._seconds,
        )


def run_load(load: Load, *, on_second: OnSecond | None = None, on_connected: OnConnected | None = None) -> Result:
    """Return what came back from one load test, run in this thread until its end or Ctrl-C.

    Args:
        load: What to ask.
        on_second: Called once a second with that second's figures.
        on_connected: Called in a thread when the connections are open; it returns the moment of `time.monotonic_ns` to begin at, so
            that several processes begin together. None: at once.

    Raises:
        SpecError: the load makes no sense, or needs more open files than this process may have.
        UnavailableError: nobody listens there.
    """
    require_load(load)
    # Nothing here makes cycles; a collection in between would be measured as the server's latency.
    collecting = gc.isenabled()
    gc.disable()
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            return runner.run(Generator(load, on_second=on_second, on_connected=on_connected).run())
    finally:
        if collecting:
            gc.enable()


def require_load(load: Load) -> None:
    """Refuse a load that cannot be asked, before anything is opened.

    Raises:
        SpecError: see `run_load`.
    """
    wrong = None
    if not load.requests:
        wrong = "there is no request to send"
    elif load.connections < 1 or load.pipeline < 1:
        wrong = "connections and pipeline are at least 1"
    elif not (load.duration_s > 0 and load.warmup_s >= 0 and load.timeout_s > 0):
        wrong = "duration and time-out are above 0 s, the warm-up is not below"
    elif load.rate is not None and not 0 < load.rate < 1e7:  # noqa: PLR2004 - no client of Python's comes near
        wrong = "the rate lies between 0 and 10 million requests per second"
    elif load.rate is None and load.pipeline > 1:
        wrong = "pipelining belongs to an open loop: in a closed loop every connection waits for its answer"
    if wrong is not None:
        raise SpecError("loadtest-load", wrong, fix="mulle loadtest --help shows examples")
    _require_files(load.connections)


def _require_files(connections: int) -> None:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = connections + _SPARE_FILES
    if soft != resource.RLIM_INFINITY and soft < needed:
        if hard != resource.RLIM_INFINITY and hard < needed:
            raise SpecError(
                "loadtest-connections",
                f"{connections:,} connections need {needed:,} open files; this process may have {hard:,}",
                fix="ask for fewer --connections, more --processes, or raise the limit: ulimit -n",
            )
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    if sys.platform == "win32":
        return None
    import uvloop

    return uvloop.new_event_loop
