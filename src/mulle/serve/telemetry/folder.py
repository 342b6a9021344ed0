"""The folder in which the workers of one server share their numbers: in memory where there is a file system for that."""

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Generator
from pathlib import Path

_PREFIX = "mulle-metrics-"
_NEW_PREFIX = ".mulle-metrics-"
OWNER = "owner.lock"
"""The one file in it that holds no numbers."""
_MEMORY = Path("/dev/shm")  # noqa: S108 - the kernel's own place for shared memory; the folder made in it is private


@contextlib.contextmanager
def shared_folder(base: Path | None = None) -> Generator[Path]:
    """Yield a new private folder for `MetricsRegistry`, removed at the end; what killed servers left behind is removed too.

    A file system in memory (`/dev/shm`) is preferred: the pages of a disk's file system are written back now and then, and a
    store into one that is being written waits for it.

    Args:
        base: Where; None: `/dev/shm`, or the folder for temporary files.

    Raises:
        OSError: nothing can be written there.
    """
    if base is None:
        base = _MEMORY if os.access(_MEMORY, os.W_OK) else Path(tempfile.gettempdir())
    _sweep(base)
    # The lock outlives nobody: whoever finds it free finds the folder of a server that was killed. Hence it is held before
    # the folder gets the name by which others find it.
    hidden = Path(tempfile.mkdtemp(prefix=_NEW_PREFIX, dir=base))
    owner = os.open(hidden / OWNER, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    folder = hidden.with_name(_PREFIX + hidden.name.removeprefix(_NEW_PREFIX))
    try:
        fcntl.flock(owner, fcntl.LOCK_EX)
        hidden.rename(folder)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(owner)


def _sweep(base: Path) -> None:
    for folder in base.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):
            if folder.lstat().st_uid == os.getuid():
                descriptor = os.open(folder / OWNER, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(folder, ignore_errors=True)
                finally:
                    os.close(descriptor)
