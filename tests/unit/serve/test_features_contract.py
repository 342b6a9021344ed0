"""What every feature store keeps, whichever it is: to join, an adapter adds a function that fills it to `STORES`."""

import asyncio
import time

import pytest

from mulle.core.errors import MulleError
from mulle.core.schema import Column, ColumnType
from mulle.formats.feature_rows import FeatureRow, write_feature_rows
from mulle.serve.plane.features import FeatureRows, FileFeatureSource

SERVICE = "customers"
COLUMNS = (Column("tenure", ColumnType.NUMBER), Column("계약", ColumnType.TEXT), Column("active", ColumnType.BOOLEAN))
NOW_NS = 1_700_000_000_000_000_000
ROWS = (
    FeatureRow("17", {"tenure": 3.5, "계약": "월별", "active": True}, NOW_NS - 60_000_000_000),
    FeatureRow("고객-2", {"tenure": None, "계약": "2년", "active": False}, NOW_NS),
    FeatureRow("a/../b\x00", {"tenure": -1.0, "계약": "", "active": None}, NOW_NS),
)


class StillClock:
    """The day the rows were written; the monotonic clock is the machine's."""

    def now_ns(self):
        return NOW_NS

    def monotonic_ns(self):
        return time.monotonic_ns()


class DictFeatureSource:
    """A store in a dictionary: for tests of what stands above the port."""

    def __init__(self, rows, *, service=SERVICE, columns=COLUMNS):
        self._rows = {row.entity: row for row in rows}
        self._service = service
        self._columns = frozenset(column.name for column in columns)

    async def columns(self, service):
        self._require(service)
        return self._columns

    async def fetch(self, service, entities, *, deadline_ns):
        self._require(service)
        found = [self._rows.get(entity) for entity in entities]
        ages = [None if row is None or row.time_ns is None else (NOW_NS - row.time_ns) / 1e9 for row in found]
        return FeatureRows([None if row is None else row.values for row in found], ages)

    async def close(self):
        self._rows = {}

    def _require(self, service):
        if service != self._service:
            raise MulleError("service-unknown", f"there is no {service!r}", fix="use the other one")


def file_store(folder):
    """Return the store over files."""
    write_feature_rows(folder / f"{SERVICE}.features", ROWS, service=SERVICE, entity="customer_id", columns=COLUMNS, now_ns=NOW_NS)
    return FileFeatureSource(folder, clock=StillClock())


STORES = {"files": file_store, "a dictionary": lambda _: DictFeatureSource(ROWS)}


def ask(folder, store, work):
    """Return what `work` does with a filled store, on an event loop of its own."""

    async def main():
        source = STORES[store](folder)
        try:
            return await work(source)
        finally:
            await source.close()
            await source.close()

    return asyncio.run(main())


def fetching(*entities):
    return lambda source: source.fetch(SERVICE, list(entities), deadline_ns=0)


@pytest.mark.parametrize("store", STORES)
def test_a_store_says_which_columns_it_supplies(tmp_path, store):
    """Known before the first request."""
    found = ask(tmp_path, store, lambda source: source.columns(SERVICE))

    assert {"tenure", "계약", "active"} == found


@pytest.mark.parametrize("store", STORES)
def test_every_entity_gets_its_own_values_in_the_order_asked(tmp_path, store):
    """Known and unknown, the same one twice, keys that look like paths."""
    found = ask(tmp_path, store, fetching("고객-2", "nobody", "17", "고객-2", "a/../b\x00", "", "1"))
    by_key = {row.entity: dict(row.values) for row in ROWS}

    assert [by_key["고객-2"], None, by_key["17"], by_key["고객-2"], by_key["a/../b\x00"], None, None] == [
        None if row is None else dict(row) for row in found.rows
    ]
    assert [0.0, None, 60.0, 0.0, 0.0, None, None] == list(found.ages_s)


@pytest.mark.parametrize("store", STORES)
def test_nothing_asked_is_nothing_answered(tmp_path, store):
    """An empty list of entities is no error."""
    found = ask(tmp_path, store, fetching())

    assert ([], []) == (list(found.rows), list(found.ages_s))


@pytest.mark.parametrize("store", STORES)
def test_questions_at_the_same_time_do_not_mix(tmp_path, store):
    """Two hundred at once, each with its own answer."""
    keys = [("17", "고객-2", "nobody")[i % 3] for i in range(200)]

    async def work(source):
        return await asyncio.gather(*(source.fetch(SERVICE, [key], deadline_ns=0) for key in keys))

    answers = ask(tmp_path, store, work)
    expected = {"17": 3.5, "고객-2": None, "nobody": "unknown"}

    assert [expected[key] for key in keys] == ["unknown" if answer.rows[0] is None else answer.rows[0]["tenure"] for answer in answers]


@pytest.mark.parametrize("store", STORES)
def test_a_cancelled_question_hurts_no_other(tmp_path, store):
    """Whoever gives up takes nobody along."""

    async def work(source):
        first = asyncio.ensure_future(source.fetch(SERVICE, ["17"], deadline_ns=0))
        second = asyncio.ensure_future(source.fetch(SERVICE, ["17"], deadline_ns=0))
        await asyncio.sleep(0)
        first.cancel()
        return await second

    assert 3.5 == ask(tmp_path, store, work).rows[0]["tenure"]


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("service", [pytest.param("others", id="unknown"), pytest.param("../customers", id="a way out of the folder")])
def test_a_service_that_is_not_there_is_refused(tmp_path, store, service):
    """With one of our own errors, whatever the name looks like."""
    with pytest.raises(MulleError):
        ask(tmp_path, store, lambda source: source.columns(service))
