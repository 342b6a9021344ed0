"""The chain of events: sealing, reading back, and every way somebody may try to change the past."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mulle.core.errors import CheckError, SpecError
from mulle.formats.events import EVENT_KINDS, GENESIS, MAX_EVENT_BYTES, EventDraft, decode_event, encode_event, seal_drafts, verify_chain

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


def draft(**fields) -> EventDraft:
    return EventDraft(**{"time_ns": 7, "actor": "민지", "kind": "run-finished", "subject": "model/이탈", **fields})


def chain(n: int):
    return list(seal_drafts([draft(after={"i": i}) for i in range(n)], seq=0, prev=GENESIS))


def test_events_follow_each_other_from_the_genesis():
    """Numbers have no gaps, every event names the hash before it, and the chain verifies to its head."""
    events = chain(3)

    assert [1, 2, 3] == [event.seq for event in events]
    assert [GENESIS, events[0].hash, events[1].hash] == [event.prev for event in events]
    assert (3, events[2].hash) == verify_chain(events)
    assert (0, GENESIS) == verify_chain([])


@given(before=PLAIN, after=PLAIN, kind=st.sampled_from(EVENT_KINDS), actor=st.text(min_size=1).filter(str.strip))
def test_an_event_reads_back_equal(before, after, kind, actor):
    """Encoding and decoding give the same event and the same hash, for anything JSON can say."""
    (event,) = seal_drafts([draft(before=before, after=after, kind=kind, actor=actor)], seq=4, prev="a" * 64)
    back = decode_event(encode_event(event), where="here")

    assert event == back
    assert back.hash == back.expected_hash()


@pytest.mark.parametrize(
    ("tamper", "where"),
    [
        pytest.param(lambda e: [e[0], msgspec.structs.replace(e[1], actor="mallory"), *e[2:]], "event 2", id="another name in the middle"),
        pytest.param(lambda e: [e[0], *e[2:]], "event 2", id="a line taken out"),
        pytest.param(lambda e: [e[1], e[0], *e[2:]], "event 1", id="two lines swapped"),
        pytest.param(lambda e: [e[0], e[0], *e[1:]], "event 2", id="a line twice"),
        pytest.param(
            lambda e: [e[0], msgspec.structs.replace(e[1], actor="mallory").sealed(), *e[2:]], "event 3", id="changed and sealed again"
        ),
        pytest.param(lambda e: e[1:], "event 1", id="the beginning cut off"),
    ],
)
def test_a_changed_past_is_found_at_its_line(tamper, where):
    """The error names the first line that does not fit."""
    with pytest.raises(CheckError) as caught:
        verify_chain(tamper(chain(4)))

    assert ("events-tampered", where) == (caught.value.code, caught.value.where)


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        pytest.param({"kind": "champion-eaten"}, "event-invalid", id="a kind nobody knows"),
        pytest.param({"actor": "  "}, "event-invalid", id="nobody did it"),
        pytest.param({"subject": ""}, "event-invalid", id="it happened to nothing"),
        pytest.param({"after": {"x": float("nan")}}, "canonical-json", id="a number JSON cannot say"),
        pytest.param({"after": "x" * MAX_EVENT_BYTES}, "event-too-large", id="data instead of a digest"),
    ],
)
def test_what_cannot_be_recorded_is_refused(fields, code):
    """A draft that would break readers is refused before anything is written."""
    with pytest.raises(SpecError) as caught:
        seal_drafts([draft(**fields)], seq=0, prev=GENESIS)

    assert code == caught.value.code


@pytest.mark.parametrize(
    ("line", "code"),
    [
        pytest.param(b"{", "format-unreadable", id="cut off"),
        pytest.param(b'{"format":"mulle.event","version":2}', "format-unknown", id="a newer version"),
        pytest.param(encode_event(chain(1)[0]).replace(b"run-finished", b"run-finnisht"), "format-unreadable", id="an unknown kind"),
        pytest.param(encode_event(chain(1)[0]).replace(b'"seq"', b'"sequence"'), "format-unreadable", id="an unknown field"),
    ],
)
def test_a_line_that_is_no_event_is_refused(line, code):
    """The reader refuses what it does not know."""
    with pytest.raises(CheckError) as caught:
        decode_event(line, where="line 1")

    assert code == caught.value.code
