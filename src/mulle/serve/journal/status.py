"""What the keeper says about itself: `keeper.json` in the folder of logs."""

import os
from contextlib import suppress
from pathlib import Path

import msgspec

from mulle.core.errors import CheckError

NAME = "keeper.json"
FORMAT = "mulle.keeper-status"
VERSION = 1
_MAX_BYTES = 1 << 20


class KeeperStatus(msgspec.Struct, kw_only=True):
    """Counts of a keeper; those that only rise go on over its restarts.

    Attributes:
        pid: Of the process.
        time_ns: When this was written, nanoseconds since 1970-01-01 UTC.
        pending_segments: Closed raw segments that wait to be encoded.
        pending_bytes: Their size.
        open_bytes: Raw bytes in segments that are being written.
        encoded_segments: Segments encoded; rises.
        encoded_rows: Rows in them; rises.
        raw_bytes: Their raw size; rises.
        encoded_bytes: Their encoded size; rises.
        kept_segments: Encoded segments that are here now.
        kept_bytes: Their size.
        waiting_segments: Encoded segments the sink does not hold yet.
        shipped_segments: Segments shipped; rises.
        shipped_bytes: Their size; rises.
        ship_failures: Tries of shipping that failed; rises.
        failures: Tries of encoding or deleting that failed; rises.
        deleted_segments: Segments retention let go; rises.
        deleted_bytes: Their size; rises.
        sink: Where segments are shipped; empty: nowhere.
        last_error: Code of the latest error; empty: none so far.
        last_error_what: What it said.
        last_error_ns: When.
    """

    format: str = FORMAT
    version: int = VERSION
    pid: int = 0
    time_ns: int = 0
    pending_segments: int = 0
    pending_bytes: int = 0
    open_bytes: int = 0
    encoded_segments: int = 0
    encoded_rows: int = 0
    raw_bytes: int = 0
    encoded_bytes: int = 0
    kept_segments: int = 0
    kept_bytes: int = 0
    waiting_segments: int = 0
    shipped_segments: int = 0
    shipped_bytes: int = 0
    ship_failures: int = 0
    failures: int = 0
    deleted_segments: int = 0
    deleted_bytes: int = 0
    sink: str = ""
    last_error: str = ""
    last_error_what: str = ""
    last_error_ns: int = 0


def read_keeper_status(root: Path) -> KeeperStatus | None:
    """Return what the keeper of a folder of logs last said; None where none ever ran.

    Raises:
        CheckError: `format-unreadable`: the file is damaged or of another version.
    """
    path = root / NAME
    try:
        with path.open("rb") as source:
            data = source.read(_MAX_BYTES)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _unreadable(path, str(error.strerror)) from error
    try:
        status = msgspec.json.decode(data, type=KeeperStatus)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _unreadable(path, str(error)) from error
    if (status.format, status.version) != (FORMAT, VERSION):
        raise _unreadable(path, f"expected {FORMAT} version {VERSION}")
    return status


def write_keeper_status(root: Path, status: KeeperStatus) -> None:
    """Replace `keeper.json` in one step.

    Raises:
        OSError: the disk is full or failing; the old one stays.
    """
    draft = root / f".{NAME}.{os.getpid()}.tmp"
    try:
        draft.write_bytes(msgspec.json.format(msgspec.json.encode(status)))
        draft.replace(root / NAME)
    finally:
        with suppress(OSError):
            draft.unlink(missing_ok=True)


def _unreadable(path: Path, reason: str) -> CheckError:
    return CheckError(
        "format-unreadable", f"{path.name} cannot be read: {reason[:200]}", fix="remove it: the keeper writes a new one", where=str(path)
    )
