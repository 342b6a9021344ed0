"""The event log in memory: for tests and for planning without a project; gone with the process."""

import threading
from collections.abc import Iterator, Mapping, Sequence

from mulle.formats.events import GENESIS, Event, EventDraft, decode_event, encode_event, seal_drafts
from mulle.registry.state import TABLES, Cell, TableName, TableRow, require_head


class MemoryStateStore:
    """A `StateStore` that keeps encoded lines in a list, so that what is read back went through the format."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lines: list[bytes] = []
        self._head = (0, GENESIS)
        self._cursors: dict[str, int] = {}
        self._tables: dict[TableName, list[dict[str, Cell]]] = {name: [] for name in TABLES}
        self._tables_seq = 0

    def append(self, drafts: Sequence[EventDraft], *, expected_seq: int | None) -> tuple[Event, ...]:
        """Return the drafts as events (see `StateStore`)."""
        with self._lock:
            seq, prev = self._head
            require_head(seq, expected_seq)
            events = seal_drafts(drafts, seq=seq, prev=prev)
            self._lines.extend(encode_event(event) for event in events)
            if events:
                self._head = (events[-1].seq, events[-1].hash)
            return events

    def events(self, after: int = 0, *, limit: int | None = None) -> Iterator[Event]:
        """Yield the events with `seq > after` (see `StateStore`)."""
        with self._lock:
            stop = None if limit is None else max(after, 0) + max(limit, 0)
            lines = self._lines[max(after, 0) : stop]
        for line in lines:
            yield decode_event(line, where="the event log in memory")

    def head(self) -> tuple[int, str]:
        """Return the last `seq` and hash."""
        with self._lock:
            return self._head

    def cursor(self, name: str) -> int:
        """Return how far the reader called `name` has come."""
        with self._lock:
            return self._cursors.get(name, 0)

    def advance_cursor(self, name: str, seq: int) -> None:
        """Remember that everything up to `seq` is done."""
        with self._lock:
            self._cursors[name] = max(seq, self._cursors.get(name, 0))

    def reset_cursor(self, name: str) -> None:
        """Forget the cursor."""
        with self._lock:
            self._cursors.pop(name, None)

    def save_tables(self, tables: Mapping[TableName, Sequence[TableRow]], *, seq: int) -> None:
        """Replace the projection tables unless they are newer."""
        with self._lock:
            if seq >= self._tables_seq:
                self._tables = {name: [dict(row) for row in tables.get(name, ())] for name in TABLES}
                self._tables_seq = seq

    def tables(self) -> dict[TableName, list[dict[str, Cell]]]:
        """Return the projection tables."""
        with self._lock:
            return {name: [dict(row) for row in rows] for name, rows in self._tables.items()}

    def drop_tables(self) -> None:
        """Empty the projection tables."""
        with self._lock:
            self._tables = {name: [] for name in TABLES}
            self._tables_seq = 0

    def close(self) -> None:
        """Nothing to give back."""
