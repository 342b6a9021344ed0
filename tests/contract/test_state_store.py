"""One suite for every event log: memory and SQLite now; Postgres joins as one more line of STORES."""

import os
import sqlite3
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mulle.core.errors import CheckError, ConflictError, MulleError, SpecError, UnavailableError
from mulle.formats.events import GENESIS, EventDraft, verify_chain
from mulle.registry.state_memory import MemoryStateStore
from mulle.registry.state_sqlite import SqliteStateStore

STORES = {
    "memory": lambda folder: MemoryStateStore(),
    "sqlite": lambda folder: SqliteStateStore(folder / "상태" / "state.db"),
}
ROWS = {
    "versions": [
        {
            "model": "이탈",
            "number": 1,
            "bundle_digest": "d",
            "run_id": None,
            "dataset_digest": None,
            "git_commit": None,
            "outcome": "pass",
            "created_ns": 2**60,
        }
    ],
    "deployments": [{"name": "이탈", "environment": "local", "model": "이탈", "champion": 1, "challenger": None, "generation": 1}],
}


@pytest.fixture(params=list(STORES))
def store(request, tmp_path):
    """Return an empty store of each kind."""
    made = STORES[request.param](tmp_path)
    yield made
    made.close()


def draft(i: int = 0, **fields) -> EventDraft:
    return EventDraft(**{"time_ns": i, "actor": "민지", "kind": "run-finished", "subject": "model/이탈", "after": {"i": i}, **fields})


def test_an_empty_log_has_the_genesis_head(store):
    """Nothing was written: seq 0, no events, cursors at 0, empty tables."""
    assert (0, GENESIS) == store.head()
    assert [] == list(store.events())
    assert 0 == store.cursor("anybody")
    assert {"versions": [], "deployments": []} == store.tables()


def test_appended_events_come_back_in_order_and_chained(store):
    """What append returned is what events yields, and the chain leads to head."""
    first = store.append([draft(1), draft(2)], expected_seq=0)
    second = store.append([draft(3)], expected_seq=2)

    assert [*first, *second] == list(store.events())
    assert store.head() == verify_chain(store.events())
    assert () == store.append([], expected_seq=3)


@pytest.mark.parametrize(
    ("after", "limit", "expected"), [(0, None, [1, 2, 3, 4, 5]), (2, None, [3, 4, 5]), (1, 2, [2, 3]), (5, None, []), (0, 0, [])]
)
def test_reading_may_start_anywhere_and_stop(store, after, limit, expected):
    """`after` is exclusive; `limit` bounds the count."""
    store.append([draft(i) for i in range(5)], expected_seq=None)

    assert expected == [event.seq for event in store.events(after, limit=limit)]


def test_a_moved_head_is_a_conflict_and_nothing_is_written(store):
    """A decision on an old state is not recorded."""
    store.append([draft(1)], expected_seq=0)

    with pytest.raises(ConflictError) as caught:
        store.append([draft(2), draft(3)], expected_seq=0)

    assert "state-conflict" == caught.value.code
    assert 1 == store.head()[0]


def test_a_batch_with_one_bad_draft_leaves_no_trace(store):
    """All or nothing."""
    with pytest.raises(SpecError):
        store.append([draft(1), draft(2, kind="nonsense")], expected_seq=0)

    assert (0, GENESIS) == store.head()


def test_cursors_only_move_forward_until_they_are_reset(store):
    """A slow reader cannot throw a quick one back; names do not share."""
    store.advance_cursor("a", 3)
    store.advance_cursor("a", 2)
    store.advance_cursor("나", 9)
    moved = (store.cursor("a"), store.cursor("나"))
    store.reset_cursor("a")

    assert (3, 9) == moved
    assert (0, 9) == (store.cursor("a"), store.cursor("나"))


def test_tables_are_replaced_whole_and_never_by_older_ones(store):
    """Saving, an older save, dropping, and saving the older one again after the drop."""
    store.save_tables(ROWS, seq=5)
    store.save_tables({}, seq=4)
    kept = store.tables()
    store.drop_tables()
    dropped = store.tables()
    store.save_tables(ROWS, seq=1)

    assert ROWS == kept
    assert {"versions": [], "deployments": []} == dropped
    assert ROWS == store.tables()


def test_threads_append_without_gaps(store):
    """Eight threads on one store: every event is there once, and the chain is whole."""

    def hammer(k: int) -> None:
        for i in range(5):
            store.append([draft(100 * k + i), draft(100 * k + i + 50)], expected_seq=None)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(hammer, range(8)))

    assert 80 == verify_chain(store.events())[0]
    assert 80 == len({event.after["i"] for event in store.events()})


_HAMMER = """
import sys
from pathlib import Path
from mulle.core.errors import ConflictError
from mulle.formats.events import EventDraft
from mulle.registry.state_sqlite import SqliteStateStore

store = SqliteStateStore(Path(sys.argv[1]))
for i in range(30):
    draft = EventDraft(time_ns=i, actor=sys.argv[2], kind="run-finished", subject="x", after=i)
    try:
        store.append([draft], expected_seq=store.head()[0] if i % 3 == 0 else None)
    except ConflictError:
        store.append([draft], expected_seq=None)
    store.advance_cursor("c", store.head()[0])
"""


@pytest.mark.chaos
def test_processes_that_all_open_a_new_file_never_see_a_locked_database(tmp_path):
    """Five processes make the same database at once, then append: no failure, no gap, nobody's event lost."""
    path = tmp_path / "state.db"
    command = [sys.executable, "-W", "error", "-c", _HAMMER, str(path)]
    workers = [subprocess.Popen([*command, f"p{k}"], stderr=subprocess.PIPE, text=True) for k in range(5)]
    output = [worker.communicate(timeout=60)[1] for worker in workers]
    store = SqliteStateStore(path)
    events = list(store.events())

    assert ["", "", "", "", ""] == output
    assert 150 == verify_chain(events)[0]
    assert [30] * 5 == [sum(event.actor == f"p{k}" for event in events) for k in range(5)]
    assert 150 == store.cursor("c")


def test_sqlite_opens_a_migrated_file_without_alembic(tmp_path):
    """The second opening reads one row: under 100 ms, and Alembic is not even imported."""
    SqliteStateStore(tmp_path / "state.db").close()
    code = (
        "import sys, time; from pathlib import Path; from mulle.registry.state_sqlite import SqliteStateStore\n"
        "start = time.perf_counter(); SqliteStateStore(Path(sys.argv[1])); print(time.perf_counter() - start, 'alembic' in sys.modules)"
    )
    seconds, imported = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "state.db")], capture_output=True, text=True, check=True
    ).stdout.split()

    assert "False" == imported
    assert float(seconds) < 0.1


def test_sqlite_refuses_to_change_the_past(tmp_path):
    """UPDATE and DELETE on the log are refused by the database itself."""
    path = tmp_path / "state.db"
    store = SqliteStateStore(path)
    store.append([draft(1)], expected_seq=0)
    connection = sqlite3.connect(path)

    for statement in ("UPDATE mulle_events SET actor = 'x'", "DELETE FROM mulle_events"):
        with pytest.raises(sqlite3.DatabaseError, match="append-only"):
            connection.execute(statement)
    connection.close()


def test_sqlite_finds_a_line_changed_behind_its_back(tmp_path):
    """With the guard removed by hand, the hash still tells."""
    path = tmp_path / "state.db"
    store = SqliteStateStore(path)
    store.append([draft(1), draft(2)], expected_seq=0)
    connection = sqlite3.connect(path)
    connection.execute("DROP TRIGGER mulle_events_no_UPDATE")
    connection.execute("UPDATE mulle_events SET line = replace(CAST(line AS TEXT), '민지', '영희') WHERE seq = 1")
    connection.commit()
    connection.close()

    with pytest.raises(CheckError, match="event 1 was changed"):
        verify_chain(store.events())


def test_sqlite_survives_a_fork(tmp_path):
    """A store opened before a fork is usable on both sides."""
    store = SqliteStateStore(tmp_path / "state.db")
    store.append([draft(1)], expected_seq=None)
    child = os.fork()
    if child == 0:
        store.append([draft(2)], expected_seq=None)
        os._exit(0)
    os.waitpid(child, 0)
    store.append([draft(3)], expected_seq=None)

    assert 3 == verify_chain(store.events())[0]


def _not_a_database(path: Path) -> None:
    path.write_bytes(b"this is not SQLite" * 100)


def _newer(path: Path) -> None:
    SqliteStateStore(path).close()
    connection = sqlite3.connect(path)
    connection.execute("UPDATE mulle_alembic_version SET version_num = 'r9999'")
    connection.commit()
    connection.close()


def _folder(path: Path) -> None:
    path.mkdir()


@pytest.mark.parametrize(
    ("spoil", "code"),
    [
        pytest.param(_not_a_database, "state-damaged", id="some other file"),
        pytest.param(_newer, "state-newer", id="migrated by a newer Mulle"),
        pytest.param(_folder, "state-unwritable", id="a folder of that name"),
    ],
)
def test_sqlite_says_what_is_wrong_with_a_file(tmp_path, spoil, code):
    """An unusable file is an error with a fix, not a traceback."""
    path = tmp_path / "state.db"
    spoil(path)

    with pytest.raises(MulleError) as caught:
        SqliteStateStore(path)

    assert code == caught.value.code


def test_sqlite_gives_up_waiting_after_its_time(tmp_path):
    """A process that sits on the write lock makes writers unavailable, not wrong, and readers still read."""
    path = tmp_path / "state.db"
    store = SqliteStateStore(path, busy_s=0.2)
    store.append([draft(1)], expected_seq=None)
    blocker = sqlite3.connect(path, isolation_level=None)
    blocker.execute("BEGIN IMMEDIATE")
    start = time.monotonic()
    with pytest.raises(UnavailableError) as caught:
        store.append([draft(2)], expected_seq=None)
    waited = time.monotonic() - start
    seen = store.head()[0]
    blocker.execute("ROLLBACK")
    blocker.close()

    assert "state-busy" == caught.value.code
    assert 1 == seen
    assert waited < 5


def test_importing_nothing_of_the_store_is_needed_to_fold():
    """The fold and its values import neither SQLAlchemy nor Alembic nor MLflow."""
    code = "import sys, mulle.registry.decide; print([m for m in ('sqlalchemy', 'alembic', 'mlflow') if m in sys.modules])"

    assert "[]" == subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
