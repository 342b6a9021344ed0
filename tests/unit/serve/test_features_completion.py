"""Completing a request from a store: who wins, what is missing, how long it may take, what is remembered."""

import asyncio
import logging
import time

import pytest

from mulle.core.errors import CheckError, MulleError, SpecError, UnavailableError
from mulle.core.schema import Column, ColumnType
from mulle.formats.bundle import ColumnInfo
from mulle.formats.feature_rows import FeatureRow, write_feature_rows
from mulle.serve.plane.features import FeatureCompleter, FeaturePolicy, FeatureRows, FileFeatureSource, complete, lacking
from mulle.serve.protocols.completion import BodyCompleter

MODEL = (
    ColumnInfo("tenure", ColumnType.NUMBER),
    ColumnInfo("monthly", ColumnType.NUMBER, nullable=False),
    ColumnInfo("계약", ColumnType.TEXT),
)
STORED = {"tenure": 12.0, "monthly": 70.0, "계약": "월별", "stranger": 1.0}


class HandClock:
    """Turned by hand; starts where the machine's monotonic clock is."""

    def __init__(self):
        self.ns = 1_000_000_000_000

    def now_ns(self):
        return self.ns

    def monotonic_ns(self):
        return self.ns


class Store:
    """Answers `STORED` for every entity but `nobody`; counts, waits or fails when told to."""

    def __init__(self, *, wait_s=0.0, error=None, deaf=False, rows=None):
        self.asked = []
        self.wait_s, self.error, self.deaf, self.rows = wait_s, error, deaf, rows

    async def fetch(self, service, entities, *, deadline_ns):
        self.asked.append(list(entities))
        end = time.monotonic() + self.wait_s
        while time.monotonic() < end:
            try:
                await asyncio.sleep(end - time.monotonic())
            except asyncio.CancelledError:
                if not self.deaf:
                    raise
        if self.error is not None:
            raise self.error
        found = [None if entity == "nobody" else dict(STORED) for entity in entities] if self.rows is None else self.rows
        return FeatureRows(found, [None if row is None else 30.0 for row in found])


def policy(**changes):
    return FeaturePolicy(**({"service": "customers"} | changes))


def run(store, rows, *, clock=None, times=1, deadline_ns=0, **changes):
    """Return the completion of the last of `times` identical requests."""

    async def main():
        completer = FeatureCompleter(store, policy(**changes), clock=clock or HandClock())
        for _ in range(times):
            done = await completer.complete(rows, columns=MODEL, entity="customer", deadline_ns=deadline_ns)
        return done

    return asyncio.run(main())


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        pytest.param({"customer": "17"}, {"tenure": 12.0, "monthly": 70.0, "계약": "월별"}, id="only the key: everything from the store"),
        pytest.param({"customer": "17", "monthly": 5}, {"tenure": 12.0, "monthly": 5, "계약": "월별"}, id="what the request says wins"),
        pytest.param({"customer": "17", "tenure": None}, {"tenure": None, "monthly": 70.0, "계약": "월별"}, id="null is an answer too"),
        pytest.param({"customer": 17}, {"tenure": 12.0, "monthly": 70.0, "계약": "월별"}, id="a number is a key"),
    ],
)
def test_the_store_fills_what_the_request_left_out(row, expected):
    """Columns the model does not have stay in the store."""
    done = run(Store(), [row])

    assert [row | expected] == done.rows
    assert (1, 3 - len(row) + 1, 0, False, 30.0) == (done.n_asked, done.n_filled, done.n_missing, done.late, done.oldest_s)


@pytest.mark.parametrize(
    "rows",
    [
        pytest.param([{"customer": "17", "tenure": 1, "monthly": 2, "계약": None}], id="nothing is lacking"),
        pytest.param([{"tenure": 1}], id="nobody is named"),
        pytest.param([{"customer": None}], id="the key is null"),
        pytest.param([], id="no rows"),
    ],
)
def test_a_request_that_needs_nothing_asks_nobody(rows):
    """The rows stay the request's own objects."""
    store = Store()
    done = run(store, rows)

    assert ([], rows, 0) == (store.asked, done.rows, done.n_asked)
    assert all(mine is theirs for mine, theirs in zip(rows, done.rows, strict=True))


def test_many_rows_are_one_question():
    """Each entity is asked for once; every row gets its own values; rows that lack nothing are not asked for."""
    store = Store()
    whole = {"customer": "9", "tenure": 1, "monthly": 2, "계약": "2년"}
    rows = [{"customer": "a"}, whole, {"customer": "b", "monthly": 1}, {"customer": "a", "monthly": 2}]
    done = run(store, rows)

    assert [["a", "b"]] == store.asked
    assert [70.0, 2, 1, 2] == [row["monthly"] for row in done.rows]
    assert [False, True, False, False] == [mine is theirs for mine, theirs in zip(rows, done.rows, strict=True)]
    assert {"customer": "a"} == rows[0]


def test_only_the_columns_of_the_service_are_asked_for():
    """A request that lacks what the store never had does not pay for it."""
    store = Store()
    run(store, [{"customer": "17", "monthly": 1}], columns=frozenset({"monthly"}))
    done = run(store, [{"customer": "17"}], columns=frozenset({"monthly"}))

    assert [["17"]] == store.asked
    assert [{"customer": "17", "monthly": 70.0}] == done.rows


@pytest.mark.parametrize(
    ("changes", "store", "expected"),
    [
        pytest.param({"missing": "refuse"}, Store(), "features-missing", id="refuse: nobody knows this customer"),
        pytest.param({"missing": "refuse"}, Store(rows=[{"tenure": 1.0}]), "features-missing", id="refuse: the row lacks a column"),
        pytest.param({"missing": "refuse", "max_age_s": 29}, Store(rows=[STORED]), "features-missing", id="refuse: the row is too old"),
        pytest.param({"missing": "refuse", "max_age_s": 30}, Store(rows=[STORED]), STORED, id="as old as allowed"),
        pytest.param({"missing": "refuse"}, Store(wait_s=5), "features-late", id="refuse: the store is late"),
        pytest.param({"missing": "refuse"}, Store(error=OSError("gone")), "features-late", id="refuse: the store is broken"),
        pytest.param({"missing": "refuse"}, Store(rows=[]), "features-late", id="refuse: the store answers nonsense"),
        pytest.param({"missing": "null"}, Store(), dict.fromkeys(STORED), id="null: unknown"),
        pytest.param(
            {"missing": "null"}, Store(rows=[{"tenure": 1.0}]), {"tenure": 1.0, "monthly": None, "계약": None}, id="null: in part"
        ),
        pytest.param({"missing": "null"}, Store(wait_s=5), dict.fromkeys(STORED), id="null: late"),
        pytest.param({"missing": "default", "defaults": {"monthly": 9}}, Store(), {"monthly": 9}, id="default: the others stay absent"),
        pytest.param(
            {"missing": "default", "defaults": {"monthly": 9}}, Store(deaf=True, wait_s=0.3), {"monthly": 9}, id="default: late, deaf"
        ),
    ],
)
def test_the_policy_settles_what_nobody_knows(caplog, changes, store, expected):
    """Refused with a reason, null, or a default; a store that is late, broken or wrong is the same case."""
    caplog.set_level(logging.CRITICAL, "mulle.serve")
    started = time.monotonic()
    try:
        found = run(store, [{"customer": "nobody"}], budget_s=0.05, **changes).rows[0]
    except MulleError as error:
        found = error.code
    known = {column.name for column in MODEL}

    assert (expected if isinstance(expected, str) else {"customer": "nobody"} | {k: v for k, v in expected.items() if k in known}) == found
    assert store.deaf or time.monotonic() - started < 2


def test_the_refusal_says_what_to_send():
    """It is the caller's to mend when a value is missing, and nobody's when the store is late."""
    with pytest.raises(SpecError) as missing:
        run(Store(), [{"customer": "17"}, {"customer": "nobody", "tenure": 1}])
    with pytest.raises(UnavailableError) as late:
        complete([{"customer": "1"}], [0], None, columns=MODEL, entity="customer", policy=policy())

    assert ("row 1, column 'monthly'", "send a value for 'monthly'") == (missing.value.where, missing.value.fix)
    assert "20 ms" in late.value.what


def test_a_request_does_not_wait_past_its_own_deadline():
    """The shorter of budget and deadline counts; a deadline that has passed asks nobody."""
    clock = HandClock()
    store = Store(wait_s=5)
    started = time.monotonic()
    done = run(store, [{"customer": "1"}], clock=clock, budget_s=10, missing="null", deadline_ns=clock.ns + 50_000_000)
    gone = Store()
    late = run(gone, [{"customer": "1"}], clock=clock, missing="null", deadline_ns=clock.ns - 1)

    assert time.monotonic() - started < 2
    assert (True, True, []) == (done.late, late.late, gone.asked)


def test_too_many_questions_are_not_asked():
    """A store that hangs does not gather a crowd: beyond the limit a request is settled at once."""

    async def main():
        store = Store(wait_s=0.2)
        completer = FeatureCompleter(store, policy(max_fetches=3, missing="null", budget_s=5), clock=HandClock())
        rows = [[{"customer": str(i)}] for i in range(10)]
        done = await asyncio.gather(*(completer.complete(one, columns=MODEL, entity="customer") for one in rows))
        again = await completer.complete(rows[0], columns=MODEL, entity="customer")
        return len(store.asked), [one.late for one in done], again.late

    assert (4, [False] * 3 + [True] * 7, False) == asyncio.run(main())


def test_what_is_remembered_is_not_asked_again():
    """For a while, unknown entities too, and never more of them than allowed; ages go on."""

    async def main():
        clock, store = HandClock(), Store()
        completer = FeatureCompleter(store, policy(cache_rows=2, cache_s=10, missing="null"), clock=clock)

        async def ask(*keys):
            return await completer.complete([{"customer": key} for key in keys], columns=MODEL, entity="customer")

        await ask("a", "nobody")
        clock.ns += 4_000_000_000
        second = await ask("nobody", "a")
        await ask("b")
        await ask("a", "b")
        clock.ns += 11_000_000_000
        await ask("b")
        return store.asked, second.oldest_s

    asked, age = asyncio.run(main())

    assert [["a", "nobody"], ["b"], ["a"], ["b"]] == asked
    assert 34.0 == age


def test_a_failing_store_is_complained_about_now_and_then(caplog):
    """A thousand failing requests are not a thousand lines."""
    run(Store(error=CheckError("features-unreadable", "torn", fix="write it again")), [{"customer": "1"}], times=50, missing="null")

    assert 1 == len([record for record in caplog.records if "features" in record.getMessage()])


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"service": "../x"}, id="a service that is a path"),
        pytest.param({"budget_s": 0}, id="no time at all"),
        pytest.param({"missing": "default"}, id="defaults that are not given"),
        pytest.param({"defaults": {"a": 1}}, id="defaults nobody uses"),
        pytest.param({"cache_rows": 5, "cache_s": 0}, id="a memory of no time"),
    ],
)
def test_a_policy_that_contradicts_itself_is_refused(changes):
    """Before anything is served with it."""
    with pytest.raises(SpecError):
        policy(**changes)


def test_lacking_does_not_look_at_values():
    """Keys decide: null is an answer, another column is no substitute."""
    rows = [{"customer": 1, "x": 2}, {"customer": 1, "tenure": None, "monthly": None, "계약": None}, {"monthly": 1}]

    assert [0] == lacking(rows, MODEL, "customer", policy())
    assert [] == lacking(rows, MODEL, None, policy())


def test_a_newer_file_is_taken_over_and_a_torn_one_is_not(tmp_path, caplog):
    """Old rows are answered until the new ones are verified; a bad file is complained about once and changes nothing."""
    path = tmp_path / "customers.features"

    def write(value):
        rows = [FeatureRow("17", {"tenure": value})]
        write_feature_rows(path, rows, service="customers", entity="customer", columns=[Column("tenure", ColumnType.NUMBER)], now_ns=5)

    async def main():
        source = FileFeatureSource(tmp_path, clock=HandClock(), poll_s=0)

        async def value():
            # Asked once to make it look, and until what it found is settled.
            for _ in range(20):
                await source.fetch("customers", ["17"], deadline_ns=0)
                await asyncio.sleep(0.005)
            return (await source.fetch("customers", ["17"], deadline_ns=0)).rows[0]["tenure"]

        write(1)
        found = [await value()]
        write(2)
        found.append(await value())
        path.write_bytes(path.read_bytes()[:-1])
        found.append(await value())
        path.unlink()
        found.append(await value())
        write(3)
        found.append(await value())
        await source.close()
        return found

    found = asyncio.run(main())

    assert [1.0, 2.0, 2.0, 2.0, 3.0] == found
    assert 2 == len([record for record in caplog.records if "newer feature rows" in record.getMessage()])


@pytest.mark.parametrize(
    ("columns", "written", "expected"),
    [
        pytest.param({"tenure"}, True, {}, id="as the policy says"),
        pytest.param(None, True, {}, id="whatever it supplies"),
        pytest.param({"tenure", "age"}, True, {"shop": "features-policy"}, id="a column it does not supply"),
        pytest.param({"tenure"}, False, {"shop": "file-missing"}, id="no file: told, not raised"),
    ],
)
def test_a_store_is_made_ready_before_the_first_request(tmp_path, columns, written, expected):
    """Its first request does not pay for loading, and what is wrong is known at the start."""
    if written:
        kinds = [Column("tenure", ColumnType.NUMBER)]
        write_feature_rows(tmp_path / "customers.features", [], service="customers", entity="customer", columns=kinds, now_ns=5)

    async def main():
        source = FileFeatureSource(tmp_path, clock=HandClock())
        chosen = policy(columns=None if columns is None else frozenset(columns))
        completer = BodyCompleter({"shop": FeatureCompleter(source, chosen, clock=HandClock())})
        problems = await completer.warm()
        await completer.close()
        return {name: error.code for name, error in problems.items()}

    assert expected == asyncio.run(main())


def test_a_file_under_a_wrong_name_is_refused(tmp_path):
    """Features of another service are not served because somebody renamed a file."""
    columns = [Column("tenure", ColumnType.NUMBER)]
    write_feature_rows(tmp_path / "shops.features", [], service="customers", entity="customer", columns=columns, now_ns=5)
    with pytest.raises(SpecError, match="customers"):
        asyncio.run(FileFeatureSource(tmp_path, clock=HandClock()).columns("shops"))
