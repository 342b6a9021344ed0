"""The fork server: one lean single-threaded process per run, which forks one child per stage.

Forking a small process costs about a millisecond; starting Python would cost thirty times that, and forking the parent
(with its threads and open terminal) would be unsafe. Each child is its own session, so that it can be ended with
everything it started, and its peak memory is its own.

Protocol: one JSON object per line. Requests come on standard input: first the settings, then one per stage. Events go to
the file descriptor given as argument: from the child `pid`, `report`, `result` or `error`; from the server, last, `exit`.
The server ends its child and itself when standard input closes or the parent dies.
"""

import gc
import json
import os
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from threading import Lock
from typing import Any

from mulle.core.errors import MulleError, SpecError, UnavailableError, UserCodeError
from mulle.core.user_code import user_line
from mulle.loop.paths import folder_unwritable
from mulle.loop.settings.model import Settings
from mulle.loop.stage import StageContext, StageResult

TRACEBACK_MARK = "--- traceback ---"
_MAX_MESSAGE = 500
_MAX_CAUSES = 20
_FULL = ("No space left on device", "disk is full")
_LITTLE_BYTES = 1 << 20
_PR_SET_PDEATHSIG = 1


def main(arguments: list[str]) -> int:
    """Serve requests until standard input closes; return the exit code."""
    events, parent = int(arguments[0]), int(arguments[1])
    die = _death_signal()
    die(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_write, False)
    signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
    signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
    requests = _Lines(0)
    first = requests.read()
    if first is None:
        return 0
    settings = Settings.model_validate(json.loads(first))
    import_module("mulle.core.canonical")  # every stage hashes: loaded once here, shared by all children
    gc.freeze()  # what is there now is shared with every child: a collection there must not copy its pages
    while (line := requests.read()) is not None:
        request = json.loads(line)
        server = os.getpid()
        started = time.monotonic()
        child = os.fork()
        if child == 0:
            signal.set_wakeup_fd(-1)
            os.close(wake_read)
            os.close(wake_write)
            die(server)
            _run_child(request, settings, events)  # never returns
        status, peak = _wait(child, wake_read)
        _send(events, {"exit": {"status": status, "peak_memory_bytes": peak, "seconds": time.monotonic() - started}})
        if status is None:
            return 1
    return 0


class _Lines:
    """Lines from a file descriptor, without read-ahead into a child."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._buffer = b""

    def read(self) -> bytes | None:
        while b"\n" not in self._buffer:
            piece = os.read(self._descriptor, 1 << 16)
            if not piece:
                return None
            self._buffer += piece
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line


def _wait(child: int, wake: int) -> tuple[int | None, int]:
    """Return the child's wait status and its peak memory in bytes; end it when standard input closes."""
    poller = select.poll()
    poller.register(wake, select.POLLIN)
    poller.register(0, 0)  # only POLLHUP and POLLERR: nothing is asked while a stage runs
    while True:
        pid, status, usage = os.wait4(child, os.WNOHANG)
        if pid == child:
            return status, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        for descriptor, _ in poller.poll(1000):
            if descriptor == wake:
                os.read(wake, 512)
            else:
                _kill_group(child)
                os.wait4(child, 0)
                return None, 0


def _kill_group(child: int) -> None:
    for kill in (os.killpg, os.kill):
        try:
            kill(child, signal.SIGKILL)
        except ProcessLookupError:
            continue  # it has not made its own group yet, or has just ended


def _nothing(parent: int) -> None:
    del parent


def _death_signal() -> Callable[[int], None]:
    """Return a function that has this process killed when its parent dies (Linux; elsewhere a closed pipe says it)."""
    if not sys.platform.startswith("linux"):
        return _nothing
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)

    def die(parent: int) -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:  # it died in between
            os._exit(1)

    return die


def _send(descriptor: int, message: dict[str, Any]) -> None:
    # A leading line break ends whatever a killed child left half-written.
    data = memoryview(b"\n" + json.dumps(message, ensure_ascii=False, default=str).encode("utf-8", "replace") + b"\n")
    while data:
        data = data[os.write(descriptor, data) :]


def _run_child(request: dict[str, Any], settings: Settings, events: int) -> None:
    code = 1
    try:
        os.setsid()
        for number in (signal.SIGINT, signal.SIGCHLD, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        _send(events, {"pid": os.getpid()})
        log = Path(request["log"])
        try:
            _redirect(log)
        except OSError as error:
            _fail(events, folder_unwritable(log.parent, error))
        else:
            code = _answer(request, settings, events)
    except BaseException:  # noqa: BLE001 - the last line of defence of a forked process: it must not return into the server
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except (OSError, ValueError):
                continue  # the log's disk is full: the error has been sent
        os._exit(code)


def _redirect(log: Path) -> None:
    null = os.open(os.devnull, os.O_RDONLY)
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(null, 0)
    os.dup2(out, 1)
    os.dup2(out, 2)
    os.close(null)
    os.close(out)


def _answer(request: dict[str, Any], settings: Settings, events: int) -> int:
    lock = Lock()

    def report(message: str, done: float | None = None, total: float | None = None) -> None:
        with lock:
            _send(events, {"report": [str(message)[:_MAX_MESSAGE], done, total]})

    try:
        result = _call(request, settings, report)
        message = {
            "result": {"outputs": dict(result.outputs), "facts": dict(result.facts), "freshness": [_plain(f) for f in result.freshness]}
        }
        data = json.dumps(message, allow_nan=False, ensure_ascii=False)
    except MulleError as error:
        known = (full_disk(error, Path(request["state_dir"])) if isinstance(error, UnavailableError) else None) or error
        _fail(events, known)
        return 1
    except BaseException as error:  # noqa: BLE001 - everything a body may raise is turned into one error with its place
        known = full_disk(error, Path(request["state_dir"]))
        known = known or explain_exception(error, request["stage"], Path(request["project_dir"]), Path(request["log"]))
        _fail(events, known)
        return 1
    _send(events, json.loads(data))
    return 0


def _fail(events: int, error: MulleError) -> None:
    """Send the error, then log the traceback behind a mark: what the stage itself printed is shown to people, this is not."""
    _send(events, {"error": {**error.to_dict(), "kind": type(error).__name__}})
    with suppress(OSError):  # the log's disk may be what is full, and the error is on its way
        sys.stdout.flush()
        sys.stderr.write(f"{TRACEBACK_MARK}\n")
        traceback.print_exc()


def _call(request: dict[str, Any], settings: Settings, report: Any) -> StageResult:
    project_dir, output = Path(request["project_dir"]), Path(request["output"])
    scratch = Path(request["scratch"])
    scratch.mkdir()
    os.environ["TMPDIR"] = str(scratch)  # temporary files go with the draft, however the process ends
    os.chdir(project_dir)
    for folder in reversed([str(project_dir), *request["python_path"]]):
        sys.path.insert(0, folder)
    context = StageContext(
        stage=request["stage"],
        project_dir=project_dir,
        settings=settings,
        parameters=request["parameters"],
        options=request["options"],
        situation=request["situation"],
        inputs={name: Path(path) for name, path in request["inputs"].items()},
        input_outputs=request["input_outputs"],
        output=output,
        state_dir=Path(request["state_dir"]),
        run_id=request["run_id"],
        report=report,
    )
    module, function = request["run"].split(":")
    result = getattr(import_module(module), function)(context)
    if not isinstance(result, StageResult):
        raise TypeError(f"the body of stage {request['stage']!r} returned {type(result).__name__}, not a StageResult")
    return result


def full_disk(error: BaseException, folder: Path) -> MulleError | None:
    """Return the error of a full disk where that is what lies behind `error`, whatever a library made of it; else None."""
    import errno
    import shutil

    seen: BaseException | None = error
    for _ in range(_MAX_CAUSES):
        if seen is None:
            return None
        text = str(seen)
        if (isinstance(seen, OSError) and seen.errno in {errno.ENOSPC, errno.EDQUOT}) or any(sign in text for sign in _FULL):
            return folder_unwritable(folder, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
        if "disk I/O error" in text and shutil.disk_usage(folder).free < _LITTLE_BYTES:
            return folder_unwritable(folder, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
        seen = seen.__cause__ or seen.__context__
    return None


def explain_exception(error: BaseException, stage: str, project_dir: Path, log: Path) -> MulleError:
    """Return the error for whatever a stage's body raised that does not explain itself."""
    import errno

    if isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EROFS}:
        return folder_unwritable(project_dir, error)
    if isinstance(error, OSError) and error.errno in {errno.EACCES, errno.EPERM}:
        return folder_unwritable(Path(str(error.filename or project_dir)), error)
    if isinstance(error, MemoryError):
        return UnavailableError(
            "stage-memory",
            f"stage {stage!r} ran out of memory",
            fix="free memory or take fewer rows; the same command continues here",
            where=str(log),
        )
    place = user_line(error.__traceback__, root=project_dir)
    shown = f"{type(error).__name__}: {error}"[:300]
    if place:
        return UserCodeError(
            "user-code",
            f"stage {stage!r} raised {shown}",
            fix="mend that line; the log has the traceback",
            where=place,
            facts={"log": str(log)},
        )
    return SpecError(
        "stage-crashed",
        f"stage {stage!r} raised {shown}",
        fix="read the log; if the cause is not yours it is a defect of Mulle",
        where=str(log),
    )


def _plain(item: Any) -> dict[str, Any]:
    if hasattr(item, "to_dict"):
        return dict(item.to_dict())
    return dict(item)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
