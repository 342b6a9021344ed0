"""The boundary around the user's own functions: whatever they raise becomes one error with their file and line."""

import sysconfig
import traceback
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from mulle.core.errors import MulleError, UserCodeError

_OWN = Path(__file__).resolve().parent.parent
_MAX_MESSAGE = 300


@contextmanager
def user_code(what: str, *, root: Path | None = None) -> Generator[None]:
    """Run the block; turn what it raises into a `UserCodeError` that points into the user's file.

    Mulle's own errors pass unchanged: they already say what to do. So does Ctrl-C.

    Args:
        what: What was being run: `the source 'customers'`.
        root: The project's folder. Without it every file outside Mulle, the standard library and installed packages
            counts as the user's.

    Raises:
        UserCodeError: the block raised, or asked the whole process to exit.
    """
    try:
        yield
    except MulleError:
        raise
    except (Exception, SystemExit) as error:
        message = bounded(str(error) or "no message", _MAX_MESSAGE)
        raise UserCodeError(
            "user-code",
            f"{what} raised {type(error).__name__}: {message}",
            fix="mend the line named above; `mulle --debug` shows the whole traceback",
            where=user_line(error.__traceback__, root=root),
        ) from error


def user_line(trace: TracebackType | None, *, root: Path | None = None) -> str:
    """Return `file:line` of the innermost frame that is the user's own, or an empty string when there is none.

    With `root`, files below it are the user's and are shown relative to it.
    """
    base = None if root is None else root.resolve()
    for frame in reversed(traceback.extract_tb(trace)):
        if frame.filename.startswith("<"):
            continue
        path = Path(frame.filename).resolve()
        if base is not None and path.is_relative_to(base) and not _is_installed(path):
            return f"{path.relative_to(base)}:{frame.lineno}"
        if base is None and not _is_installed(path):
            return f"{frame.filename}:{frame.lineno}"
    return ""


def bounded(text: str, limit: int) -> str:
    """Return `text` in at most `limit` characters on one line, with an ellipsis where it was cut."""
    line = " ".join(text.split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


def _is_installed(path: Path) -> bool:
    """Return whether `path` is Mulle's own, the standard library's or an installed package's.

    A virtual environment inside the project's folder must not pass for the user's code.
    """
    if path.is_relative_to(_OWN) or "site-packages" in path.parts or "dist-packages" in path.parts:
        return True
    return any(path.is_relative_to(folder) for folder in _STANDARD)


_STANDARD = tuple(Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib"))
