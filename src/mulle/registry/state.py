"""The port to the event log: one append-only, hash-chained log, and what is remembered beside it.

Who may do what, before any method:

- **Processes and threads.** Any number of both may use stores on the same log at once. `append` is atomic and total
  order is its promise: sequence numbers are 1, 2, 3 … without gaps, whoever wrote them. A store object may be shared by
  threads, and used after `fork` in the child.
- **Ownership.** The log is the truth. Nobody changes or removes a line: adapters refuse it where their database can.
  Cursors belong to the reader they are named after. Tables (`save_tables`) are a projection for people with an SQL
  client: they can be dropped at any time, and nothing in Mulle reads a decision out of them.
- **Time** comes with the drafts; a store has no clock.
- **Waiting.** A writer waits for other writers, boundedly; then `UnavailableError`. Never "database is locked".
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, Protocol

from mulle.core.errors import ConflictError
from mulle.formats.events import Event, EventDraft

TableName = Literal["versions", "deployments"]
Cell = str | int | None
TableRow = Mapping[str, Cell]
TABLES: dict[TableName, tuple[str, ...]] = {
    "versions": ("model", "number", "bundle_digest", "run_id", "dataset_digest", "git_commit", "outcome", "created_ns"),
    "deployments": ("name", "environment", "model", "champion", "challenger", "generation"),
}
"""The projection tables and their columns; the first two columns of each are its key."""


class StateStore(Protocol):
    """One event log. Real: `SqliteStateStore`; in tests also `MemoryStateStore`, held to the same contract suite."""

    def append(self, drafts: Sequence[EventDraft], *, expected_seq: int | None) -> tuple[Event, ...]:
        """Return the drafts as events, all of them in the log and in order, or none.

        Args:
            drafts: May be empty.
            expected_seq: The head the caller has read and decided on; None appends whatever the head is.

        Raises:
            ConflictError: the head is no longer `expected_seq`.
            SpecError: a draft that cannot be recorded.
            UnavailableError: the log cannot be written now.
        """
        ...

    def events(self, after: int = 0, *, limit: int | None = None) -> Iterator[Event]:
        """Yield the events with `seq > after` in order, at most `limit`; the chain is not verified here."""
        ...

    def head(self) -> tuple[int, str]:
        """Return the last event's `seq` and hash; (0, 64 zeros) for an empty log."""
        ...

    def cursor(self, name: str) -> int:
        """Return how far the reader called `name` has come: a `seq`, 0 at first."""
        ...

    def advance_cursor(self, name: str, seq: int) -> None:
        """Remember that everything up to `seq` is done; a cursor never moves backwards."""
        ...

    def reset_cursor(self, name: str) -> None:
        """Forget the cursor, so that its reader starts again from the first event."""
        ...

    def save_tables(self, tables: Mapping[TableName, Sequence[TableRow]], *, seq: int) -> None:
        """Replace the projection tables by these rows; ignored if they already show a later `seq`."""
        ...

    def tables(self) -> dict[TableName, list[dict[str, Cell]]]:
        """Return the projection tables as they are, table name to rows in order of their keys."""
        ...

    def drop_tables(self) -> None:
        """Empty the projection tables; the log stays."""
        ...

    def close(self) -> None:
        """Give back what the store holds; it is not used afterwards."""
        ...


def require_head(seq: int, expected_seq: int | None) -> None:
    """Return if the head is where the caller thinks it is.

    Raises:
        ConflictError: it is not.
    """
    if expected_seq is not None and expected_seq != seq:
        raise ConflictError(
            "state-conflict",
            "somebody else wrote to the event log in the meantime; nothing of this was recorded",
            fix="look at `mulle events show`, then give the same command again",
            facts={"decided on": f"event {expected_seq}", "the log is at": f"event {seq}"},
        )
