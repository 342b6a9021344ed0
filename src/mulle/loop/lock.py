"""One run at a time per project: a lock on `.mulle/run.lock` that the system drops when its holder dies."""

import fcntl
import json
import os
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

from mulle.core.errors import ConflictError
from mulle.loop.paths import folder_unwritable
from mulle.loop.record import iso

_POLL_S = 0.1


@contextmanager
def run_lock(
    path: Path, *, now_ns: int, what: str = "mulle run", wait: bool = False, on_wait: Callable[[str], None] | None = None
) -> Generator[None]:
    """Hold the project's lock inside the block.

    Args:
        path: The lock's file; its folder exists.
        now_ns: Written into the file, so that others can say since when it is held.
        what: The command that holds it, for others to read.
        wait: Wait for the other process instead of raising.
        on_wait: Told once, in words, whom the wait is for.

    Raises:
        ConflictError: another process holds it, and `wait` is off.
        UnavailableError: the file cannot be written.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise folder_unwritable(path.parent, error) from error
    try:
        told = False
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                holder = _holder(descriptor)
                if not wait:
                    raise ConflictError(
                        "run-locked",
                        f"another process works on this project: {holder}",
                        fix="wait for it, or use `mulle run --wait`",
                        where=str(path),
                    ) from None
                if not told and on_wait is not None:
                    on_wait(holder)
                told = True
                time.sleep(_POLL_S)
        # The holder's name is a service to others; the lock itself is the system's and dies with this process.
        text = json.dumps({"pid": os.getpid(), "since": iso(now_ns), "command": what}).encode("utf-8")
        try:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, text, 0)
        except OSError as error:
            raise folder_unwritable(path.parent, error) from error
        yield
    finally:
        os.close(descriptor)


def _holder(descriptor: int) -> str:
    try:
        found = json.loads(os.pread(descriptor, 4096, 0))
        return f"`{found['command']}`, process {int(found['pid'])}, since {found['since']}"
    except (ValueError, KeyError, TypeError, OSError):
        return "it has just started"
