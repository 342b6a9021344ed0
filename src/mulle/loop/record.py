"""What is kept of a finished stage (`record.json`) and of a run (`runs/<run_id>.json`): versioned documents."""

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec

from mulle.core.errors import MulleError
from mulle.formats.envelope import decode_document, read_limited

RECORD_FILE = "record.json"
RECORD_FORMAT = "mulle.stage-record"
RUN_FORMAT = "mulle.run"
VERSION = 1
MAX_RECORD_BYTES = 64 << 20

S = TypeVar("S", bound=msgspec.Struct)


class StageRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One finished stage. It is written last: a folder with a record is whole.

    Attributes:
        stage: The stage's name.
        key: SHA-256 of `ingredients`; also the folder's name.
        ingredients: Everything the result depends on, kept so that a later plan can say what changed.
        outputs: Output name to digest.
        facts: Small values for summaries.
        freshness: What a source looked like when it was read.
        files: Every file of the folder and its size in bytes.
        seconds: Wall time of the body.
        peak_memory_bytes: Largest resident memory of the stage's own process.
        started: UTC, ISO 8601.
        run_id: The run that made it.
        reason: Why it was run.
    """

    format: Literal["mulle.stage-record"] = RECORD_FORMAT
    version: Literal[1] = VERSION
    stage: str
    key: str
    ingredients: dict[str, Any]
    outputs: dict[str, str]
    facts: dict[str, Any]
    freshness: list[dict[str, Any]]
    files: dict[str, int]
    seconds: float
    peak_memory_bytes: int
    started: str
    run_id: str
    reason: str


class StageEntry(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """One stage in the document of a run; `cached` ones show what they cost when they were made."""

    stage: str
    status: Literal["cached", "done", "failed"]
    why: str
    key: str = ""
    seconds: float = 0.0
    peak_memory_bytes: int = 0
    outputs: dict[str, str] = msgspec.field(default_factory=dict[str, str])
    facts: dict[str, Any] = msgspec.field(default_factory=dict[str, Any])
    made_by: str = ""


class RunDocument(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """What a run did, or is doing."""

    format: Literal["mulle.run"] = RUN_FORMAT
    version: Literal[1] = VERSION
    run_id: str
    project: str
    environment: str
    status: Literal["running", "done", "failed", "interrupted"]
    started: str
    finished: str = ""
    seconds: float = 0.0
    options: dict[str, Any] = msgspec.field(default_factory=dict[str, Any])
    stages: list[StageEntry] = msgspec.field(default_factory=list[StageEntry])
    error: dict[str, Any] | None = None

    def to_bytes(self) -> bytes:
        """Return the document as readable JSON."""
        return msgspec.json.format(msgspec.json.encode(self), indent=1)


def read_record(folder: Path) -> StageRecord | None:
    """Return the record in `folder`; None when there is none, or none this version can read: the stage is run again."""
    return _read(folder / RECORD_FILE, StageRecord, RECORD_FORMAT)


def read_run(path: Path) -> RunDocument | None:
    """Return the document of a run; None when there is none this version can read."""
    return _read(path, RunDocument, RUN_FORMAT)


def new_run_id(now_ns: int) -> str:
    """Return a name for a run: its UTC start to the second, and four random bytes. Names sort by time."""
    return f"{utc(now_ns):%Y%m%d-%H%M%S}-{os.urandom(4).hex()}"


def utc(now_ns: int) -> datetime:
    """Return nanoseconds since 1970 as a UTC time."""
    return datetime.fromtimestamp(now_ns / 1e9, tz=UTC)


def iso(now_ns: int) -> str:
    """Return nanoseconds since 1970 as UTC in ISO 8601, to the second."""
    return utc(now_ns).isoformat(timespec="seconds").replace("+00:00", "Z")


def _read(path: Path, kind: type[S], name: str) -> S | None:
    try:
        return decode_document(read_limited(path, max_bytes=MAX_RECORD_BYTES), kind, name=name, version=VERSION, where=str(path))
    except MulleError:
        return None
