"""What the server says to its operator: lines of text or JSON on standard error, and an access log that waits for nobody.

A line never holds a secret or a value of a request: fields that are named like secrets and texts that look like keys are masked,
and of an exception that is not Mulle's or the operating system's only type and frames are told, because its message may quote
what the model was asked.
"""

import json
import logging
import os
import re
import sys
import threading
import traceback
from collections import deque
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import IO, Any, Literal, NamedTuple, TypeAlias, cast

import msgspec

from mulle.core.errors import MulleError, SpecError
from mulle.formats import telemetry as names
from mulle.serve.telemetry.registry import MetricsRegistry

LogFormat: TypeAlias = "Literal['text', 'json']"
FORMATS = ("text", "json")
LEVELS = ("debug", "info", "warning", "error")
MAX_TEXT_CHARS = 8_192
MASK = "***"
_OWN_FIELDS = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_RESERVED = frozenset({"time", "level", "logger", "event", "exception"})
_SECRET_NAME = re.compile(r"(?i)(authorization|api[-_]?key|password|passwd|secret|token|cookie|credential|private[-_]?key)")
_SECRET_TEXT = re.compile(r"(?i)\bmk_[a-z0-9]+_[a-z0-9_-]+|\b(bearer|basic)\s+[a-z0-9._~+/=-]{8,}|(?<=://)[^/\s:@]+:[^/\s@]+(?=@)")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_MAX_CAUSES = 8
_EVERY_S = 0.1
_QUEUE_LINES = 16_384
_PATH_CHARS = 256


class JsonFormatter(logging.Formatter):
    """One JSON object per line: time, level, logger, event, the fields given as `extra`, and `exception`.

    Args:
        fields: Told in every line: `{"worker": 1}`.
    """

    def __init__(self, fields: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        self._fields = dict(fields or {})

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, without its end."""
        line: dict[str, Any] = {
            "time": _time(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": _event(record),
            **self._fields,
            **_fields_of(record),
        }
        if record.exc_info:
            line["exception"] = _exception(record.exc_info[1])
        return _json_line(line)


class TextFormatter(logging.Formatter):
    """One line for people: time, level, event, fields as `name=value`; control characters escaped, frames on lines of their own.

    Args:
        fields: Told in every line.
    """

    def __init__(self, fields: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        self._fields = dict(fields or {})

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, without its end."""
        fields = {**self._fields, **_fields_of(record)}
        told = "".join(f" {name}={_escaped(value if isinstance(value, str) else _dumped(value))}" for name, value in fields.items())
        line = f"{_time(record.created)} {record.levelname.lower():7} {_escaped(_event(record))}{told}"
        if record.exc_info:
            # The frames are ours: their lines need no escaping but what a file's name may hold.
            line += "".join(f"\n  {_escaped(row)}" for row in _exception(record.exc_info[1]).split("\n"))
        return line


def configure_logging(
    fmt: str = "text", level: str = "info", *, fields: Mapping[str, Any] | None = None, stream: IO[str] | None = None
) -> logging.Handler:
    """Return the handler that now writes what the process logs; the only one, also when called again.

    Args:
        fmt: `text` or `json`.
        level: `debug`, `info`, `warning` or `error`.
        fields: Told in every line.
        stream: Standard error unless given.

    Raises:
        SpecError: `log-format`, `log-level`.
    """
    if fmt not in FORMATS:
        raise SpecError("log-format", f"there is no log format {fmt!r}", fix=f"use one of {', '.join(FORMATS)}")
    if level.lower() not in LEVELS:
        raise SpecError("log-level", f"there is no log level {level!r}", fix=f"use one of {', '.join(LEVELS)}")
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter(fields) if fmt == "json" else TextFormatter(fields))
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level.upper())
    # A line that cannot be written must not become a traceback on the same broken stream.
    logging.raiseExceptions = False
    return handler


class Access(NamedTuple):
    """One answered request, for the access log. Nothing of its body, its query string or its headers but the prediction's id."""

    time_ns: int
    method: str
    path: str
    status: int
    duration_ns: int
    request_bytes: int = 0
    response_bytes: int = 0
    client: str = ""
    deployment: str = ""
    revision: int = 0
    prediction_id: str = ""
    key: str = ""
    trace_id: str = ""


class AccessLog:
    """One JSON line per request, written by a thread every 0.1 s: a pipe nobody reads costs lines, counted, never an answer.

    Args:
        descriptor: Where lines go; standard output unless given.
        fields: Told in every line.

    Note:
        A worker that is killed loses the lines of its last 0.1 s. The prediction log is the record; this is for people.
    """

    def __init__(self, descriptor: int = 1, fields: Mapping[str, Any] | None = None) -> None:
        self.n_dropped = 0
        self._descriptor = descriptor
        self._fields = {**(fields or {})}
        self._queue: deque[Access] = deque()
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._work, name="mulle-access-log", daemon=True)
        self._thread.start()

    def add(self, access: Access) -> None:
        """Keep one request to be written; dropped and counted when the reader of the log is far behind."""
        if len(self._queue) < _QUEUE_LINES:
            self._queue.append(access)
        else:
            self.n_dropped += 1

    def tell(self, registry: MetricsRegistry) -> None:
        """Count dropped lines in `registry` from now on."""
        dropped = registry.total(names.ACCESS_DROPPED)
        registry.collectors.append(lambda: dropped.tell(self.n_dropped))

    def close(self, timeout_s: float = 1.0) -> None:
        """Write what is queued, for at most `timeout_s`, and stop."""
        self._ending.set()
        self._thread.join(timeout_s)

    def _work(self) -> None:
        ending = False
        while not ending:
            ending = self._ending.wait(_EVERY_S)
            while self._queue:
                lines = [self._line(self._queue.popleft()) for _ in range(min(len(self._queue), 32))]
                try:
                    _write(self._descriptor, b"".join(lines))
                except OSError:
                    self.n_dropped += len(lines)

    def _line(self, access: Access) -> bytes:
        told = {name: value for name, value in access._asdict().items() if value != "" and name not in {"time_ns", "duration_ns", "path"}}
        path = _clean(access.path.partition("?")[0][:_PATH_CHARS])
        line = {
            "time": _time(access.time_ns / 1e9),
            "level": "info",
            "logger": "mulle.access",
            "event": "request",
            **self._fields,
            "path": path,
            "duration_ms": round(access.duration_ns / 1e6, 3),
            **told,
        }
        return _json_line(line).encode() + b"\n"


def _write(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _event(record: logging.LogRecord) -> str:
    try:
        return _clean(record.getMessage())
    except (TypeError, ValueError):
        # A library whose sentence and arguments do not fit: better half of it than nothing.
        return _clean(f"{record.msg} (its arguments do not fit)")


def _json_line(line: Mapping[str, Any]) -> str:
    text = msgspec.json.encode(line, enc_hook=str).decode()
    # JSON allows some ends of lines within a string; what reads lines may not.
    return _CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def _fields_of(record: logging.LogRecord) -> dict[str, Any]:
    """Return what was given as `extra`, secrets masked; names of our own keys get an underscore."""
    return {
        f"{name}_" if name in _RESERVED else name: _masked(name, value) for name, value in vars(record).items() if name not in _OWN_FIELDS
    }


def _masked(name: str, value: Any) -> Any:
    if _SECRET_NAME.search(name):
        return MASK
    if isinstance(value, str):
        return _clean(value)
    if isinstance(value, dict):
        return {str(k): _masked(str(k), v) for k, v in cast("dict[object, object]", value).items()}
    if isinstance(value, (list, tuple)):
        return [_masked("", v) for v in cast("list[object]", value)]
    if value is None or isinstance(value, (bool, int, float)):
        return value
    return _clean(str(value))


def _clean(text: str) -> str:
    """Return `text` bounded, encodable, and without what looks like a key."""
    text = text.encode("utf-8", "replace").decode()
    if len(text) > MAX_TEXT_CHARS:
        text = f"{text[:MAX_TEXT_CHARS]}… ({len(text)} characters)"
    return _SECRET_TEXT.sub(MASK, text)


def _escaped(text: str) -> str:
    return _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


def _dumped(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)


def _exception(error: BaseException | None) -> str:
    """Return an exception with its causes: types, frames, and messages only where they quote no request."""
    parts: list[str] = []
    while error is not None and len(parts) < _MAX_CAUSES:
        message = f": {_clean(str(error))}" if isinstance(error, (MulleError, OSError)) else ""
        frames = [f"  {f.filename}:{f.lineno} in {f.name}" for f in traceback.extract_tb(error.__traceback__)]
        parts.append("\n".join([f"{type(error).__module__}.{type(error).__qualname__}{message}", *frames]))
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return "\ncaused by ".join(parts)
