"""The event log's lines: who did what to what, when, before and after; each sealed by the hash of the one before.

`hash` is the SHA-256 of the canonical JSON of every other field, `prev` the hash of the event before it (64 zeros for
the first). Changing, dropping or reordering a line breaks the chain at that line. The chain shows tampering with the
middle; a cut-off tail is shown only by a hash kept elsewhere.
"""

from collections.abc import Iterable
from typing import Any, Literal

import msgspec

from mulle.core.canonical import digest_value
from mulle.core.errors import CheckError

FORMAT = "mulle.event"
VERSION = 1
GENESIS = "0" * 64

EventKind = Literal[
    "version-registered",
    "champion-set",
    "challenger-set",
    "rolled-back",
    "gate-overridden",
    "projection-repaired",
    "projection-drift",
    "run-finished",
    "collected",
]


class Event(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One line of the append-only audit log.

    Attributes:
        seq: 1, 2, 3 … without gaps.
        time_ns: When it was appended, nanoseconds since 1970-01-01 UTC.
        actor: Who: a user name, or `mulle` for the loop itself.
        kind: What happened.
        subject: What it happened to: `model/churn`, `deployment/churn@local`.
        before: The state it replaced, or None.
        after: The state it made.
        prev: Hash of the event before.
        hash: Hash of this one.
    """

    format: Literal["mulle.event"] = FORMAT
    version: Literal[1] = VERSION
    seq: int
    time_ns: int
    actor: str
    kind: EventKind
    subject: str
    before: Any = None
    after: Any = None
    prev: str = GENESIS
    hash: str = ""

    def sealed(self) -> "Event":
        """Return the event with its own hash filled in."""
        return msgspec.structs.replace(self, hash=self.expected_hash())

    def expected_hash(self) -> str:
        """Return the hash the fields imply."""
        fields = msgspec.to_builtins(self)
        del fields["hash"]
        return digest_value(fields)


def verify_chain(events: Iterable[Event]) -> tuple[int, str]:
    """Return how many events there are and the last hash, after every link was found whole.

    Raises:
        CheckError: a gap, a changed line or a broken link; the error names the first bad `seq`.
    """
    seq, prev = 0, GENESIS
    for event in events:
        seq += 1
        problem = None
        if event.seq != seq:
            problem = f"event {seq} is missing: the next one found is {event.seq}"
        elif event.prev != prev:
            problem = f"event {seq} does not follow event {seq - 1}"
        elif event.hash != event.expected_hash():
            problem = f"event {seq} was changed after it was written"
        if problem is not None:
            raise CheckError(
                "events-tampered", problem, fix="restore the state database from a backup, and find out who changed it", where=f"event {seq}"
            )
        prev = event.hash
    return seq, prev
