"""Where relative paths of a project start: a context variable, set by whoever runs the project's code."""

from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

_folder: ContextVar[Path | None] = ContextVar("mulle_project_folder", default=None)


def current_folder() -> Path:
    """Return the folder relative paths start from: the project's while it runs, else the current one."""
    return _folder.get() or Path.cwd()


@contextmanager
def project_folder(folder: Path) -> Generator[Path]:
    """Resolve relative paths against `folder` inside the block."""
    token = _folder.set(folder.resolve())
    try:
        yield folder
    finally:
        _folder.reset(token)
