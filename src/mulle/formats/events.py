"""The event log's lines: who did what to what, when, before and after; each sealed by the hash of the one before.

`hash` is the SHA-256 of the canonical JSON of every other field, `prev` the hash of the event before it (64 zeros for
the first). Changing, dropping or reordering a line breaks the chain at that line. The chain shows tampering with the
middle; a cut-off tail is shown only by a hash kept elsewhere.
"""

from collections.abc import Iterable
from typing import Any, Literal, get_args

import msgspec

from mulle.core.canonical import canonical_json, digest_value
from mulle.core.errors import CheckError, SpecError
from mulle.formats.envelope import decode_document

FORMAT = "mulle.event"
VERSION = 1
GENESIS = "0" * 64
MAX_EVENT_BYTES = 1 << 20
"""The longest line: an event holds numbers and names, never data."""

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
EVENT_KINDS: tuple[EventKind, ...] = get_args(EventKind)


class EventDraft(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """An event before the log has given it its place in the chain; the fields are those of `Event`."""

    time_ns: int
    actor: str
    kind: EventKind
    subject: str
    before: Any = None
    after: Any = None


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


def seal_drafts(drafts: Iterable[EventDraft], *, seq: int, prev: str) -> tuple[Event, ...]:
    """Return the drafts as the events that follow the one numbered `seq` with hash `prev`.

    `before` and `after` become what JSON says of them (tuples turn into lists), so that an event read back equals the
    event that was appended.

    Raises:
        SpecError: an unknown kind, nobody named, a value JSON cannot say, or more than `MAX_EVENT_BYTES`.
    """
    events: list[Event] = []
    for draft in drafts:
        if draft.kind not in EVENT_KINDS or not draft.actor.strip() or not draft.subject.strip():
            raise SpecError(
                "event-invalid",
                f"an event of kind {draft.kind[:80]!r} by {draft.actor[:80]!r} on {draft.subject[:80]!r} cannot be recorded",
                fix=f"name an actor, a subject and one of the kinds {', '.join(EVENT_KINDS)}",
            )
        seq += 1
        plain = Event(
            seq=seq,
            time_ns=draft.time_ns,
            actor=draft.actor,
            kind=draft.kind,
            subject=draft.subject,
            before=msgspec.json.decode(canonical_json(draft.before)),
            after=msgspec.json.decode(canonical_json(draft.after)),
            prev=prev,
        )
        event = plain.sealed()
        size = len(encode_event(event))
        if size > MAX_EVENT_BYTES:
            raise SpecError(
                "event-too-large",
                f"an event of kind {draft.kind!r} has {size:,} bytes; the limit is {MAX_EVENT_BYTES:,}",
                fix="record digests and numbers, and keep the rest in a file",
            )
        events.append(event)
        prev = event.hash
    return tuple(events)


def encode_event(event: Event) -> bytes:
    """Return the canonical bytes of one line of the log, its hash included."""
    return canonical_json(msgspec.to_builtins(event))


def decode_event(data: bytes, *, where: str) -> Event:
    """Return the event in one line of the log; its place in the chain is not yet verified.

    Raises:
        CheckError: not an event, a newer version, an unknown kind, or fields that do not fit.
    """
    return decode_document(data, Event, name=FORMAT, version=VERSION, where=where)


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
                "events-tampered",
                problem,
                fix="restore the state database from a backup, and find out who changed it",
                where=f"event {seq}",
            )
        prev = event.hash
    return seq, prev
