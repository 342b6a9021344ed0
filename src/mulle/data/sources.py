"""Where tables come from: Parquet, CSV, SQL, S3. One line in `@project.source`.

Relative paths start at the project's folder. Every read leaves a freshness token (`data/freshness.py`), so that the next
run knows whether it must read again. Credentials are given by reference (`data/secrets.py`).
"""

import difflib
import io
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import polars as pl

from mulle.core.errors import SpecError
from mulle.data.csv_text import ColumnKind, CsvOptions, as_options, parse_csv, require_table_bytes
from mulle.data.freshness import Freshness, file_freshness, record_read, traced_reads
from mulle.data.place import current_folder, project_folder
from mulle.data.s3 import get_object, require_references
from mulle.data.secrets import require_no_password
from mulle.data.sql import answer_token, fetch_table

__all__ = ["project_folder", "read_csv", "read_parquet", "read_s3", "read_sql", "traced_reads"]

_log = logging.getLogger("mulle.data")
_MAGIC = b"PAR1"
_SMALLEST_PARQUET = 12
MAX_OBJECT_BYTES = 8 << 30


def read_parquet(path: str | Path) -> pl.DataFrame:
    """Return the table in a Parquet file.

    Args:
        path: The file; relative to the project's folder.

    Raises:
        SpecError: missing (the nearest name is told), empty, a web page, truncated, or not Parquet.
    """
    full = _require_file(path)
    freshness = file_freshness(full)
    shown = str(path)
    with full.open("rb") as file:
        head = file.read(4096)
        file.seek(max(0, full.stat().st_size - 4))
        tail = file.read(4)
    require_table_bytes(head, "a Parquet file", where=shown)
    _require_parquet(head, tail, full.stat().st_size, shown)
    try:
        frame = pl.read_parquet(full, glob=False)
    except (pl.exceptions.PolarsError, OSError, ValueError) as error:
        raise _unreadable_parquet(error, shown) from error
    record_read(freshness)
    return frame


def read_csv(
    path: str | Path,
    *,
    separator: str = ",",
    encoding: str = "utf-8",
    null_values: Sequence[str] | str = (),
    types: Mapping[str, ColumnKind] | None = None,
    decimal_comma: bool = False,
) -> pl.DataFrame:
    """Return the table in a CSV file whose first line names the columns.

    A column gets the one type all of its values have. Blank values are missing in columns of numbers, dates and booleans
    (and that is said); empty values are missing everywhere. Codes with leading zeros stay text.

    Args:
        path: The file; relative to the project's folder.
        separator: One character.
        encoding: For example `cp949`; `utf-8` with or without a byte order mark.
        null_values: Spellings that mean missing, in every column: `["n/a", "-"]`.
        types: Column to `number`, `boolean`, `datetime` or `text`, where the guess is not wanted.
        decimal_comma: Whether 1,5 is one and a half.

    Raises:
        SpecError: missing, empty, a web page, another encoding, a broken header or row, mixed types in a column.
    """
    full = _require_file(path)
    shown = str(path)
    options = as_options(
        separator=separator, encoding=encoding, null_values=null_values, types=types, decimal_comma=decimal_comma, where=shown
    )
    freshness = file_freshness(full)
    frame, notes = parse_csv(_read_bytes(full), options, where=shown)
    _tell(freshness, notes)
    return frame


def read_sql(query: str, uri: str, *, freshness: str | None = None) -> pl.DataFrame:
    """Return the rows of a query.

    Args:
        query: A reading query; give it an ORDER BY, because the order of rows is part of a dataset's digest.
        uri: `sqlite:///data/shop.db`, `postgresql://app:${env://DB_PASSWORD}@db/shop`, or as a whole `env://DATABASE_URL`.
        freshness: A cheap query whose answer changes when the data does: `SELECT max(updated_at), count(*) FROM orders`.
            Without it the source is read on every run.

    Raises:
        SpecError: a password in plain text, a refused query or login, no such database, mixed types in a column.
        UnavailableError: the database does not answer.
    """
    require_no_password(uri, "the URI of read_sql")
    # The token first: rows written between the two queries make the next run read again, not miss them.
    token = None if freshness is None else answer_token(fetch_table(freshness, uri).rows())
    frame = fetch_table(query, uri)
    record_read(Freshness("sql", uri, token, {} if freshness is None else {"freshness": freshness}))
    return frame


def read_s3(
    uri: str,
    *,
    endpoint_url: str | None = None,
    region: str | None = None,
    access_key: str | None = None,
    secret_key: str | None = None,
    csv: CsvOptions | None = None,
    max_bytes: int = MAX_OBJECT_BYTES,
) -> pl.DataFrame:
    """Return the table in one S3 object: CSV if its name ends in `.csv` or `csv` options are given, else Parquet.

    Args:
        uri: `s3://bucket/path/customers.parquet`.
        endpoint_url: Of an S3-compatible store; by default AWS.
        region: By default what boto3 finds.
        access_key: A reference such as `env://S3_KEY`; by default what boto3 finds (environment, profile, role).
        secret_key: Likewise.
        csv: How to read a CSV object.
        max_bytes: A larger object is refused before it is read.

    Raises:
        SpecError: no such object, refused, too large, credentials in plain text, or unreadable as `read_parquet`/`read_csv` say.
        UnavailableError: the store does not answer.
    """
    given = {"endpoint_url": endpoint_url, "region": region, "access_key": access_key, "secret_key": secret_key}
    options = {name: value for name, value in given.items() if value is not None}
    require_references(options)
    if endpoint_url is not None:
        require_no_password(endpoint_url, "endpoint_url")
    data, token = get_object(uri, options, max_bytes=max_bytes)
    freshness = Freshness("s3", uri, token, options)
    if csv is not None or uri.lower().endswith(".csv"):
        frame, notes = parse_csv(data, csv or CsvOptions(), where=uri)
        _tell(freshness, notes)
        return frame
    require_table_bytes(data, "a Parquet object", where=uri)
    _require_parquet(data[:4], data[-4:], len(data), uri)
    try:
        frame = pl.read_parquet(io.BytesIO(data))
    except (pl.exceptions.PolarsError, OSError, ValueError) as error:
        raise _unreadable_parquet(error, uri) from error
    record_read(freshness)
    return frame


def _tell(freshness: Freshness, notes: tuple[str, ...]) -> None:
    record_read(freshness, notes)
    for text in notes:
        _log.info("%s", text)


def _require_file(path: str | Path) -> Path:
    full = current_folder() / path
    if full.is_file():
        return full
    if full.is_dir():
        raise SpecError(
            "source-missing", f"{str(path)!r} is a folder", fix="name one file; join several with polars in the source", where=str(path)
        )
    folder = full.parent
    if not folder.is_dir():
        raise SpecError(
            "source-missing",
            f"there is no folder {str(Path(path).parent)!r} in the project",
            fix="paths start at the project's folder: check the spelling",
            where=str(path),
        )
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_file())
    nearest = difflib.get_close_matches(full.name, names, n=1, cutoff=0.5) or names[:1]
    fix = f"did you mean {str(Path(path).parent / nearest[0])!r}?" if nearest else "the folder is empty: put the file there"
    raise SpecError("source-missing", f"there is no file {str(path)!r}", fix=fix, where=str(path))


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise SpecError(
            "source-unreadable", f"{path.name!r} cannot be read: {error.strerror}", fix="check its permissions", where=str(path)
        ) from error


def _require_parquet(head: bytes, tail: bytes, size: int, where: str) -> None:
    if not head.startswith(_MAGIC):
        raise SpecError(
            "parquet-unreadable",
            f"this is not a Parquet file: it starts with {head[:4]!r}",
            fix="if it is a CSV: mulle.read_csv(…)",
            where=where,
        )
    if size < _SMALLEST_PARQUET or tail != _MAGIC:
        raise SpecError(
            "parquet-truncated",
            f"the Parquet file is cut off after {size:,} bytes: its end mark is missing",
            fix="copy or download it again",
            where=where,
        )


def _unreadable_parquet(error: Exception, where: str) -> SpecError:
    return SpecError(
        "parquet-unreadable",
        f"the Parquet file cannot be read: {' '.join(str(error).split())[:200]}",
        fix="write or download it again; it may be damaged",
        where=where,
    )
