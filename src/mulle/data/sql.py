# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false, reportMissingTypeStubs=false
"""A query's rows. SQLite through the standard library, opened read-only; every other database through connectorx.

The URI may hold references to secrets; what goes into errors is the URI as it was written.
"""

import hashlib
import json
import re
import socket
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote, urlsplit

from mulle.core.errors import SpecError, UnavailableError
from mulle.data.place import current_folder
from mulle.data.secrets import expand_secrets, scrub

if TYPE_CHECKING:
    import polars as pl

_READS = re.compile(r"\s*(?:--[^\n]*\n\s*)*(select|with|values|show|table)\b", re.IGNORECASE)
_DRIVER = re.compile(r"^(\w+)\+\w+://")
_UNREACHABLE = ("could not connect", "connection refused", "timed out", "no route", "name or service", "resolve", "error connecting")
# connectorx answers a refused login with a time-out of its own around the database's sentence
_REFUSED = ("authentication", "does not exist", "access denied", "permission denied", "unknown database", "login failed")
_PORTS = {"postgresql": 5432, "postgres": 5432, "mysql": 3306, "mssql": 1433, "oracle": 1521, "redshift": 5439, "clickhouse": 9000}
_CONNECT_S = 5
_SQLITE_BUSY = ("locked", "busy")


def fetch_table(query: str, uri: str) -> "pl.DataFrame":
    """Return the rows of `query`.

    Raises:
        SpecError: not a reading query, no such database or table, a refused login, mixed types in a column, no driver.
        UnavailableError: the database does not answer.
    """
    _require_reading(query)
    if uri.startswith("sqlite:"):
        return _fetch_sqlite(query, uri)
    full, secrets = expand_secrets(uri, root=current_folder())
    if full.startswith("sqlite:"):
        return _fetch_sqlite(query, full)
    return fetch_connectorx(query, full, shown=uri, secrets=secrets)


def freshness_token(uri: str, options: Mapping[str, str]) -> str | None:
    """Return the token of the source's freshness query as it answers now; None when there is none.

    Raises:
        SpecError: as `fetch_table`.
        UnavailableError: the database does not answer.
    """
    query = options.get("freshness")
    return None if query is None else answer_token(fetch_table(query, uri).rows())


def answer_token(answer: object) -> str:
    """Return the token of a freshness query's rows: SHA-256 over their JSON."""
    return hashlib.sha256(json.dumps(answer, default=str, ensure_ascii=False).encode("utf-8")).hexdigest()


def fetch_connectorx(query: str, uri: str, *, shown: str, secrets: tuple[str, ...]) -> "pl.DataFrame":
    """Return the rows of `query` through connectorx.

    Args:
        query: A reading query.
        uri: The URI with its secrets in place.
        shown: The URI as it was written, for errors.
        secrets: What must not appear in an error.

    Raises:
        SpecError: the query or the login is refused, or connectorx is not installed.
        UnavailableError: the database does not answer.
    """
    try:
        import connectorx
        import polars as pl
    except ImportError as error:
        raise SpecError("missing-extra", "reading from this database needs connectorx", fix='pip install "mulle[sql]"') from error
    plain = _DRIVER.sub(r"\1://", uri)
    _require_listener(plain, shown)
    try:
        return pl.DataFrame(pl.from_arrow(connectorx.read_sql(plain, query, return_type="arrow")))
    except (RuntimeError, ValueError, TypeError, OSError) as error:
        # connectorx has no error types of its own: the sentence tells a refusal from an outage
        text = scrub(str(error), (*secrets, plain, uri))
        said = text.lower()
        if any(sign in said for sign in _UNREACHABLE) and not any(sign in said for sign in _REFUSED):
            raise UnavailableError(
                "source-unavailable", f"the database does not answer: {text}", fix="check that it runs, then retry", where=shown
            ) from None
        fix = "check user, password and database; then run the query in the database's own client"
        raise SpecError("sql-refused", f"the database refuses the query: {text}", fix=fix, where=shown) from None


def _require_listener(uri: str, shown: str) -> None:
    """Return if somebody listens at the URI's host and port: connectorx itself tries for half a minute before it says so."""
    try:
        parts = urlsplit(uri)
        host, port = parts.hostname, parts.port or _PORTS.get(parts.scheme)
    except ValueError as error:
        raise SpecError(
            "sql-uri", "the database's URI cannot be read", fix="percent-encode special characters in it", where=shown
        ) from error
    if host is None or port is None:
        return
    try:
        socket.create_connection((host, port), timeout=_CONNECT_S).close()
    except OSError as error:
        text = f"nobody answers at {host}:{port}: {error.strerror or type(error).__name__}"
        raise UnavailableError("source-unavailable", text, fix="check host, port and network, then retry", where=shown) from None


def _require_reading(query: str) -> None:
    if _READS.match(query) is None:
        raise SpecError(
            "sql-query", f"{' '.join(query.split())[:80]!r} does not read: a source only reads", fix="start the query with SELECT or WITH"
        )


def _fetch_sqlite(query: str, uri: str) -> "pl.DataFrame":
    path = _sqlite_path(uri)
    if not path.is_file():
        raise SpecError("source-missing", f"there is no database file {path.name!r}", fix="check the path after sqlite:///", where=uri)
    try:
        with closing(sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True, timeout=30)) as connection:
            cursor = connection.execute(query)
            names = [str(column[0]) for column in cursor.description or ()]
            rows = cursor.fetchall()
    except sqlite3.Error as error:
        text = scrub(str(error), ())
        if any(sign in text for sign in _SQLITE_BUSY):
            raise UnavailableError(
                "source-unavailable", f"the database is busy: {text}", fix="try again when its writer is done", where=uri
            ) from None
        raise SpecError("sql-refused", f"SQLite refuses the query: {text}", fix="run the query in sqlite3 first", where=uri) from None
    return _table(names, rows, uri)


def _sqlite_path(uri: str) -> Path:
    """Return the file of `sqlite:///relative.db` or `sqlite:////absolute.db`; SQLAlchemy's spelling."""
    text = unquote(uri.partition("://")[2].partition("?")[0])
    if not uri.startswith("sqlite:///") or len(text) < 2:  # noqa: PLR2004 - a slash and a name
        raise SpecError(
            "sql-uri", f"{uri[:120]!r} names no database file", fix="write sqlite:///data/shop.db, or sqlite:////absolute/shop.db"
        )
    return current_folder() / text[1:]


def _table(names: list[str], rows: list[tuple[Any, ...]], uri: str) -> "pl.DataFrame":
    """Return rows as a table; SQLite lets one column hold several types, a table does not."""
    import polars as pl

    columns: list[pl.Series] = []
    seen: set[str] = set()
    for position, name in enumerate(names):
        if name in seen:
            raise SpecError(
                "column-name", f"the query returns the column {name[:80]!r} twice", fix="give one of them another name with AS", where=uri
            )
        seen.add(name)
        values = [row[position] for row in rows]
        kinds = {type(value) for value in values if value is not None}
        if kinds == {int, float}:
            values = [None if value is None else float(value) for value in values]
        elif len(kinds) > 1:
            odd = next(
                i
                for i, value in enumerate(values)
                if value is not None and type(value) is not type(next(v for v in values if v is not None))
            )
            raise SpecError(
                "column-mixed-types",
                f"the column {name[:80]!r} mixes {' and '.join(sorted(kind.__name__ for kind in kinds))}",
                fix=f"CAST({name} AS REAL) or CAST({name} AS TEXT) in the query",
                where=uri,
                facts={"first odd one": f"{str(values[odd])[:60]!r} in row {odd + 1:,}"},
            )
        columns.append(pl.Series(name, values, strict=True))
    return pl.DataFrame(columns)
