"""The event log in a SQLite file: WAL, writers one at a time, opened in milliseconds once it is migrated.

Every transaction that writes starts with `BEGIN IMMEDIATE`: a transaction that read first and wants to write later is
the one SQLite answers with "database is locked" at once, whatever the time-out. Making and migrating the file happens
under a file lock beside it, because changing the journal mode does not wait for other connections.
"""

import fcntl
import os
import shutil
import sqlite3
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from mulle.core.errors import CheckError, MulleError, SpecError, UnavailableError
from mulle.formats.events import GENESIS, Event, EventDraft, decode_event, encode_event, seal_drafts
from mulle.registry import state_tables as t
from mulle.registry.state import TABLES, Cell, TableName, TableRow, require_head

_PAGE = 1000
_TABLES: dict[TableName, sa.Table] = {"versions": t.versions, "deployments": t.deployments}
R = TypeVar("R")


class SqliteStateStore:
    """A `StateStore` on one SQLite file.

    Args:
        path: The database; made, with its folder, if it is not there.
        busy_s: How long a writer waits for the writers before it, in seconds.

    Raises:
        SpecError: the file or its folder cannot be written or is no database.
        CheckError: the database was migrated by a newer Mulle.
        UnavailableError: others held it for longer than `busy_s`.
    """

    def __init__(self, path: Path, *, busy_s: float = 30.0) -> None:
        self._path = path
        self._busy_s = busy_s
        # Connections are not kept: nothing is shared with a forked child, and opening one costs less than a commit.
        self._engine = sa.create_engine("sqlite://", creator=self._connect, poolclass=NullPool)
        with self._errors():
            if not path.exists() or not self._is_migrated():
                _migrate(path, self._connect, self._is_migrated)

    def append(self, drafts: Sequence[EventDraft], *, expected_seq: int | None) -> tuple[Event, ...]:
        """Return the drafts as events (see `StateStore`)."""

        def write(connection: sa.Connection) -> tuple[Event, ...]:
            seq, prev = _head(connection, self._where)
            require_head(seq, expected_seq)
            events = seal_drafts(drafts, seq=seq, prev=prev)
            if events:
                connection.execute(
                    t.events.insert(),
                    [
                        {
                            "seq": e.seq,
                            "time_ns": e.time_ns,
                            "actor": e.actor,
                            "kind": e.kind,
                            "subject": e.subject,
                            "line": encode_event(e),
                        }
                        for e in events
                    ],
                )
            return events

        return self._write(write)

    def events(self, after: int = 0, *, limit: int | None = None) -> Iterator[Event]:
        """Yield the events with `seq > after` (see `StateStore`); read in pages, no transaction stays open."""
        left = limit
        while left is None or left > 0:
            size = _PAGE if left is None else min(left, _PAGE)
            with self._errors(), self._engine.connect() as connection:
                query = sa.select(t.events.c.seq, t.events.c.line).where(t.events.c.seq > after).order_by(t.events.c.seq).limit(size)
                rows = connection.execute(query).all()
            for seq, line in rows:
                yield decode_event(line, where=f"{self._where}, event {seq}")
                after = seq
            if left is not None:
                left -= len(rows)
            if len(rows) < size:
                return

    def head(self) -> tuple[int, str]:
        """Return the last `seq` and hash."""
        with self._errors(), self._engine.connect() as connection:
            return _head(connection, self._where)

    def cursor(self, name: str) -> int:
        """Return how far the reader called `name` has come."""
        with self._errors(), self._engine.connect() as connection:
            return connection.execute(sa.select(t.cursors.c.seq).where(t.cursors.c.name == name)).scalar() or 0

    def advance_cursor(self, name: str, seq: int) -> None:
        """Remember that everything up to `seq` is done."""
        statement = insert(t.cursors).values(name=name, seq=seq)
        statement = statement.on_conflict_do_update(
            index_elements=[t.cursors.c.name],
            set_={"seq": sa.func.max(t.cursors.c.seq, statement.excluded.seq)},
        )
        self._write(lambda connection: connection.execute(statement))

    def reset_cursor(self, name: str) -> None:
        """Forget the cursor."""
        self._write(lambda connection: connection.execute(t.cursors.delete().where(t.cursors.c.name == name)))

    def save_tables(self, tables: Mapping[TableName, Sequence[TableRow]], *, seq: int) -> None:
        """Replace the projection tables unless they are newer."""

        def write(connection: sa.Connection) -> None:
            shown = connection.execute(sa.select(t.cursors.c.seq).where(t.cursors.c.name == _TABLES_CURSOR)).scalar() or 0
            if shown > seq:
                return
            _clear_tables(connection)
            for name, table in _TABLES.items():
                if rows := [dict(row) for row in tables.get(name, ())]:
                    connection.execute(table.insert(), rows)
            connection.execute(t.cursors.insert().values(name=_TABLES_CURSOR, seq=seq))

        self._write(write)

    def tables(self) -> dict[TableName, list[dict[str, Cell]]]:
        """Return the projection tables."""
        with self._errors(), self._engine.connect() as connection:
            return {
                name: [
                    dict(row)
                    for row in connection.execute(sa.select(table).order_by(*(table.c[key] for key in TABLES[name][:2]))).mappings().all()
                ]
                for name, table in _TABLES.items()
            }

    def drop_tables(self) -> None:
        """Empty the projection tables."""
        self._write(_clear_tables)

    def close(self) -> None:
        """Give back the engine."""
        self._engine.dispose()

    @property
    def _where(self) -> str:
        return str(self._path)

    def _connect(self) -> sqlite3.Connection:
        if not self._path.exists() or os.access(self._path.parent, os.W_OK):
            try:
                return self._open(self._path)
            except sqlite3.OperationalError as error:
                # A full disk has no room for the files SQLite keeps beside a database even to read it.
                if not self._path.exists() or not _is_about_the_disk(str(error)):
                    raise
        return self._open(_read_only_address(self._path))

    def _open(self, address: Path | str) -> sqlite3.Connection:
        connection = sqlite3.connect(
            address, timeout=self._busy_s, isolation_level=None, check_same_thread=False, uri=isinstance(address, str)
        )
        try:
            connection.execute("PRAGMA synchronous=FULL")
            connection.execute("SELECT 1 FROM sqlite_master").fetchone()
        except BaseException:
            connection.close()
            raise
        return connection

    def _is_migrated(self) -> bool:
        connection = self._connect()
        try:
            if connection.execute("SELECT 1 FROM sqlite_master WHERE name = ?", (t.VERSION_TABLE,)).fetchone() is None:
                return False
            row = connection.execute(f"SELECT version_num FROM {t.VERSION_TABLE}").fetchone()  # noqa: S608 - a constant of ours
        finally:
            connection.close()
        if row is not None and row[0] > t.HEAD:
            raise CheckError(
                "state-newer",
                f"the state database is at migration {row[0]!r}; this Mulle knows {t.HEAD!r}",
                fix="upgrade Mulle: the database was migrated by a newer one",
                where=self._where,
            )
        return row is not None and row[0] == t.HEAD

    def _write(self, work: Callable[[sa.Connection], R]) -> R:
        with self._errors(), self._engine.connect() as connection:
            connection.exec_driver_sql("BEGIN IMMEDIATE")
            try:
                result = work(connection)
            except BaseException:
                connection.exec_driver_sql("ROLLBACK")
                raise
            connection.exec_driver_sql("COMMIT")
            return result

    @contextmanager
    def _errors(self) -> Generator[None]:
        try:
            yield
        except MulleError:
            raise
        except (DBAPIError, sqlite3.Error) as error:
            raise _explain(getattr(error, "orig", None) or error, self._path, self._busy_s) from error
        except OSError as error:
            raise SpecError(
                "state-unwritable",
                f"the state database cannot be opened: {error.strerror or error}",
                fix="check the permissions of the project's folder and the space on the disk",
                where=str(self._path),
            ) from error


_TABLES_CURSOR = "tables:shown"
_LITTLE_BYTES = 1 << 20


def _is_about_the_disk(text: str) -> bool:
    return "I/O" in text or "is full" in text


def _read_only_address(path: Path) -> str:
    """Return how a database is opened in a folder that cannot be written: in WAL mode SQLite wants to make files beside it.

    Without a log beside it nobody is writing, and the file is all there is; with one, it is read together with its log.
    """
    log = path.with_name(f"{path.name}-wal")
    alone = not log.exists() or log.stat().st_size == 0
    return f"{path.absolute().as_uri()}?mode=ro{'&immutable=1' if alone else ''}"


def _head(connection: sa.Connection, where: str) -> tuple[int, str]:
    row = connection.execute(sa.select(t.events.c.line).order_by(t.events.c.seq.desc()).limit(1)).first()
    if row is None:
        return 0, GENESIS
    event = decode_event(row[0], where=where)
    return event.seq, event.hash


def _clear_tables(connection: sa.Connection) -> None:
    for table in _TABLES.values():
        # Projections may be thrown away altogether: a table somebody dropped is made again.
        table.create(connection, checkfirst=True)
        connection.execute(table.delete())
    connection.execute(t.cursors.delete().where(t.cursors.c.name == _TABLES_CURSOR))


def _migrate(path: Path, connect: Callable[[], sqlite3.Connection], is_migrated: Callable[[], bool]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = os.open(path.with_name(f"{path.name}.lock"), os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if path.exists() and is_migrated():
            return
        from alembic import command
        from alembic.config import Config

        config = Config()
        folder = Path(__file__).with_name("migrations")
        config.set_main_option("script_location", str(folder).replace("%", "%%"))
        config.set_main_option("path_separator", "os")
        first = connect()
        first.execute("PRAGMA journal_mode=WAL")
        first.close()
        engine = sa.create_engine("sqlite://", creator=connect, poolclass=NullPool)
        with engine.connect() as connection:
            connection.exec_driver_sql("BEGIN IMMEDIATE")
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
            if connection.connection.driver_connection is not None and _in_transaction(connection.connection.driver_connection):
                connection.exec_driver_sql("COMMIT")
        engine.dispose()
    finally:
        os.close(lock)


def _in_transaction(connection: Any) -> bool:
    return bool(connection.in_transaction)


def _explain(error: BaseException, path: Path, busy_s: float) -> MulleError:
    text = str(error)
    where = str(path)
    if "locked" in text or "busy" in text:
        return UnavailableError(
            "state-busy",
            f"other processes kept the state database busy for {busy_s:g} s",
            fix="try again; if it stays so, look for a process that hangs with the file open",
            where=where,
        )
    if "not a database" in text or "malformed" in text or "no such table" in text:
        return CheckError(
            "state-damaged",
            f"the state database cannot be read: {text}",
            fix="restore it from a backup; the bundles and the MLflow runs are not touched by this",
            where=where,
        )
    if "append-only" in text:
        return CheckError("state-append-only", "the event log refuses to be changed", fix="append an event instead", where=where)
    if (_is_about_the_disk(text) or "readonly" in text) and shutil.disk_usage(path.parent).free < _LITTLE_BYTES:
        return UnavailableError(
            "disk-full",
            f"the disk is full: the state database cannot be written ({text})",
            fix="free some space (`mulle gc` says what Mulle can give back), then run the same command again",
            where=where,
        )
    return SpecError(
        "state-unwritable",
        f"the state database cannot be used: {text}",
        fix="check the permissions of the project's folder and the space on the disk",
        where=where,
    )
