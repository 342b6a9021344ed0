"""Encoded segments in a folder, on this machine or mounted."""

import errno
import os
import shutil
from contextlib import suppress
from pathlib import Path

from mulle.core.errors import CheckError, SpecError, UnavailableError
from mulle.formats.segment import sync_folder
from mulle.serve.journal.sink import Stored, file_digest, require_same

_CHUNK_BYTES = 1 << 20


class FolderSink:
    """A folder, on this machine or mounted.

    Args:
        folder: Made when the first file arrives; its parent must be there, so that a missing mount is noticed.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def put(self, name: str, path: Path, sha256: str) -> None:
        """Copy under a draft's name, sync, rename: as the port says."""
        target = self._place(name)
        there = self.exists(name)
        if there is not None:
            require_same(name, there, sha256, self.describe())
            return
        draft = target.with_name(f".{target.name}.tmp")
        try:
            if not self._folder.parent.is_dir():
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
            target.parent.mkdir(parents=True, exist_ok=True)
            _copy(path, draft, sha256)
            draft.rename(target)
            sync_folder(target.parent)
        except OSError as error:
            raise self._unavailable(error) from error
        finally:
            with suppress(OSError):
                draft.unlink(missing_ok=True)

    def exists(self, name: str) -> Stored | None:
        """Return size and digest of the file called so."""
        try:
            return file_digest(self._place(name))
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._unavailable(error) from error

    def describe(self) -> str:
        """Return the folder as a URL."""
        return self._folder.absolute().as_uri()

    def _place(self, name: str) -> Path:
        parts = name.split("/")
        if not all(part and part not in {".", ".."} and "\x00" not in part for part in parts):
            raise SpecError("log-sink-refused", f"{name!r} is no name in a sink", fix="use names without empty parts and dots")
        return self._folder.joinpath(*parts)

    def _unavailable(self, error: OSError) -> UnavailableError:
        return UnavailableError(
            "log-sink-unavailable",
            f"{self.describe()} cannot be used: {error.strerror}",
            fix="make room there, mount it, or mend its permissions; the segments wait here meanwhile",
            where=self.describe(),
        )


def _copy(path: Path, draft: Path, sha256: str) -> None:
    """Copy the file to the disk and read it back."""
    with path.open("rb") as source, draft.open("wb") as out:
        shutil.copyfileobj(source, out, _CHUNK_BYTES)
        out.flush()
        os.fsync(out.fileno())
    if file_digest(draft).sha256 != sha256:
        raise CheckError(
            "log-sink-verify",
            f"{path.name!r} does not read back as the segment that was to be kept",
            fix="nothing was deleted here, and it is sent again; check the disk of the sink",
            where=str(draft.parent),
        )
