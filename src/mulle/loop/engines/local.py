"""The local engine: each stage in a process of its own, forked from a lean server that is started once per run."""

import json
import os
import selectors
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mulle.core import errors
from mulle.core.errors import MulleError, UnavailableError
from mulle.loop.paths import folder_unwritable
from mulle.loop.settings import Settings

_KINDS: dict[str, type[MulleError]] = {
    kind.__name__: kind
    for kind in (errors.SpecError, errors.UserCodeError, errors.CheckError, errors.ConflictError, errors.UnavailableError)
}
_LOG_TAIL_BYTES = 2000
_ENVIRONMENT = {
    "PYTHONHASHSEED": "0",  # the order of sets in user code must not differ between two runs of one recipe
    "PYTHONUNBUFFERED": "1",
    "PYTHONIOENCODING": "utf-8",
    "PYTHONUTF8": "1",
}
_LOG_READ_BYTES = 64 << 10
TRACEBACK_MARK = "--- traceback ---"
"""Written by `worker.py` before a traceback; not imported from there, which would load the child's imports here."""
_SAMPLE_S = 0.5
_SERVER_LOG = "engine.log"

OnReport = Callable[[str, float | None, float | None, int], None]
"""Message, done, total, and the stage's resident memory in bytes as last seen."""


@dataclass(frozen=True, slots=True)
class Job:
    """One stage to run; see `worker.py`."""

    stage: str
    run: str
    project_dir: str
    parameters: Any
    options: Mapping[str, Any]
    situation: Any
    inputs: Mapping[str, str]
    input_outputs: Mapping[str, Mapping[str, str]]
    output: str
    scratch: str
    state_dir: str
    run_id: str
    log: str
    python_path: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a stage gave back, and what it cost."""

    outputs: dict[str, str]
    facts: dict[str, Any]
    freshness: list[dict[str, Any]]
    seconds: float
    peak_memory_bytes: int


@dataclass(slots=True)
class _Seen:
    """What has come from a running stage so far."""

    pid: int = 0
    result: dict[str, Any] | None = None
    error: dict[str, Any] | None = None
    exit: dict[str, Any] | None = None
    message: str = ""
    done: float | None = None
    total: float | None = None
    fields: dict[str, Any] = field(default_factory=dict[str, Any])


class LocalEngine:
    """Runs stages one at a time. Not for use by several threads; `close` ends everything it started.

    Args:
        settings: Handed to every stage.
        log_dir: Where the server's own complaints go.
        python_path: Folders put before `sys.path` of the children.
    """

    def __init__(self, settings: Settings, log_dir: Path, *, python_path: Sequence[str] = ()) -> None:
        self._settings = settings
        self._log_dir = log_dir
        self._python_path = tuple(python_path)
        self._server: subprocess.Popen[bytes] | None = None
        self._events = -1
        self._buffer = b""
        self._running = 0

    def run(self, job: Job, on_report: OnReport) -> Outcome:
        """Run one stage to its end and return what it gave back.

        Raises:
            MulleError: what the stage raised; or it was killed, or ended without an answer.
            KeyboardInterrupt: passed on, after the stage and everything it started were killed.
        """
        seen = _Seen()
        try:
            server = self._start()
            self._request(server, {**asdict(job), "python_path": self._python_path})
            self._listen(seen, on_report)
        except BaseException:
            self._running = seen.pid
            self.close()
            raise
        seconds = float((seen.exit or {}).get("seconds") or 0.0)
        peak = int((seen.exit or {}).get("peak_memory_bytes") or 0)
        if seen.error is not None:
            raise rebuild_error(seen.error)
        status = (seen.exit or {}).get("status")
        if seen.result is None or status != 0:
            raise _ended_badly(job, status, peak, self._log_dir / _SERVER_LOG)
        result = seen.result
        return Outcome(result["outputs"], result["facts"], result["freshness"], seconds, peak)

    def close(self) -> None:
        """End the server, and a stage that is still running with everything it started."""
        if self._running:
            with suppress(ProcessLookupError, PermissionError):  # it may have ended by itself
                os.killpg(self._running, signal.SIGKILL)
            self._running = 0
        server, self._server = self._server, None
        if server is None:
            return
        if server.stdin is not None:
            with suppress(OSError):  # the server may be gone already
                server.stdin.close()
        try:
            server.wait(timeout=2)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()
        os.close(self._events)
        self._events, self._buffer = -1, b""

    def _start(self) -> "subprocess.Popen[bytes]":
        if self._server is not None:
            return self._server
        read, write = os.pipe()
        log = self._log_dir / _SERVER_LOG
        environment = {**os.environ, **_ENVIRONMENT}
        # OpenMP threads that spin while they wait make a fit 25 times slower as soon as the cores are shared; asleep they cost little.
        environment.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        try:
            with log.open("ab") as complaints:
                self._server = subprocess.Popen(
                    [sys.executable, "-m", "mulle.loop.worker", str(write), str(os.getpid())],
                    stdin=subprocess.PIPE,
                    stdout=complaints,
                    stderr=complaints,
                    pass_fds=(write,),
                    start_new_session=True,
                    env=environment,
                )
        except OSError as error:
            os.close(read)
            raise folder_unwritable(self._log_dir, error) from error
        finally:
            os.close(write)
        self._events = read
        self._request(self._server, self._settings.model_dump(mode="json"))
        return self._server

    def _request(self, server: "subprocess.Popen[bytes]", message: dict[str, Any]) -> None:
        if server.stdin is None:
            raise RuntimeError("the fork server was started without a pipe")
        try:
            server.stdin.write(json.dumps(message, ensure_ascii=False).encode("utf-8") + b"\n")
            server.stdin.flush()
        except BrokenPipeError:
            return  # the server has died: reading its events says so

    def _listen(self, seen: _Seen, on_report: OnReport) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._events, selectors.EVENT_READ)
            while seen.exit is None:
                ready = selector.select(_SAMPLE_S)
                if not ready:
                    if seen.pid:
                        on_report(seen.message, seen.done, seen.total, resident_bytes(seen.pid))
                    continue
                piece = os.read(self._events, 1 << 16)
                if not piece:
                    return
                self._buffer += piece
                *lines, self._buffer = self._buffer.split(b"\n")
                for line in lines:
                    self._take(line, seen, on_report)

    def _take(self, line: bytes, seen: _Seen, on_report: OnReport) -> None:
        if not line.strip():
            return
        try:
            message = json.loads(line)
        except ValueError:
            return  # a child that was killed while it wrote
        if "pid" in message:
            seen.pid = self._running = int(message["pid"])
        elif "report" in message:
            seen.message, seen.done, seen.total = message["report"]
            on_report(seen.message, seen.done, seen.total, resident_bytes(seen.pid))
        elif "result" in message:
            seen.result = message["result"]
        elif "error" in message:
            seen.error = message["error"]
        elif "exit" in message:
            seen.exit = message["exit"]
            self._running = 0


def rebuild_error(fields: Mapping[str, Any]) -> MulleError:
    """Return the error a stage sent as plain fields."""
    kind = _KINDS.get(str(fields.get("kind")), errors.SpecError)
    return kind(str(fields["code"]), str(fields["what"]), fix=str(fields["fix"]), where=str(fields["where"]), facts=dict(fields["facts"]))


def resident_bytes(pid: int) -> int:
    """Return the resident memory of a process in bytes; 0 where the system does not say."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def log_tail(path: Path) -> str:
    """Return the end of what a stage printed, at most 2,000 bytes, starting at a line; its traceback stays in the log."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _LOG_READ_BYTES))
            data = file.read().split(TRACEBACK_MARK.encode("ascii"), 1)[0]
    except OSError:
        return ""
    text = data[-_LOG_TAIL_BYTES:].decode("utf-8", "replace")
    return text if len(data) <= _LOG_TAIL_BYTES else text.partition("\n")[2]


def _ended_badly(job: Job, status: int | None, peak: int, server_log: Path) -> UnavailableError:
    facts = {"peak memory": f"{peak / 2**20:,.0f} MiB", "log": job.log} if peak else {"log": job.log}
    if status is not None and os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        name = signal.Signals(number).name if number in signal.valid_signals() else "unknown"
        hint = " (often the system, out of memory)" if number == signal.SIGKILL else ""
        what = f"stage {job.stage!r} was killed by signal {number} ({name}){hint}"
    elif status is None:
        what = f"the engine's server ended during stage {job.stage!r}"
        complaint = log_tail(server_log).strip().splitlines()[-1:]
        if complaint:
            facts = {"it said": complaint[0][:200], "log": str(server_log)}
    else:
        what = f"the process of stage {job.stage!r} ended with code {os.waitstatus_to_exitcode(status)} and no answer"
    return UnavailableError(
        "stage-killed", what, fix="free memory if it was short, then run the same command: it continues with this stage", facts=facts
    )
