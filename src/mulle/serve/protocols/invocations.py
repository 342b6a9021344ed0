"""`/invocations`: what MLflow's scoring server understands, answered as it would answer for the same model.

    {"dataframe_split": {"columns": ["tenure", …], "data": [[1, …], …]}}      without columns: in the model's own order
    {"dataframe_records": [{"tenure": 1, …}, …]}
    {"instances": [{"tenure": 1, …}, …]}      or a matrix, or for a model of one column a list of values
    {"inputs": {"tenure": [1, …], …}}         or a matrix, or a list of objects
    text/csv with a header

The answer is `{"predictions": [{"No": 0.2, "Yes": 0.8}, …]}`, of a regression `[{"prediction": 3.5}, …]`: the rows of the
table that Mulle's own model answers inside MLflow. Columns the model does not have, `params` and other keys beside the rows
are ignored, as MLflow ignores them. Two things are stricter than there, where MLflow guesses: a number in quotes is refused,
and so is a number where a date belongs (pandas would read nanoseconds, Spark milliseconds, everybody else seconds).
"""

import csv
import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import msgspec
import numpy as np
from numpy.typing import NDArray

from mulle.core.errors import MulleError, SpecError
from mulle.core.schema import ColumnType
from mulle.formats import telemetry as names
from mulle.formats.bundle import ColumnInfo, Manifest
from mulle.formats.rows import shown
from mulle.serve.http.messages import JSON, Request, Response, problem_of
from mulle.serve.plane.dataplane import DataPlane
from mulle.serve.plane.jobs import ARRAYS, CallbackJob
from mulle.serve.plane.served import Served
from mulle.serve.protocols.codec_json import ID_KEY, Body, Encoded, encode_body, parse_json
from mulle.serve.protocols.headers import bounded_header, timeout_ns
from mulle.serve.protocols.predict import Completer

CSV = "text/csv"
ROUTE = "/invocations"
FORMS = ("dataframe_split", "dataframe_records", "instances", "inputs")
_SCALARS = (str, int, float, bool, type(None))
_SPLIT_KEYS = frozenset({"columns", "data", "index"})
_MAX_SHOWN = 5
_BAD_REQUEST, _UNPROCESSABLE = 400, 422
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?")
_NO_VALUE = frozenset({"", "NA", "N/A", "NaN", "nan", "null", "None", "<NA>"})
_BOOLEANS = {"true": True, "false": False, "1": 1, "0": 0, "1.0": 1, "0.0": 0}
# Python's own encoder, and so MLflow's client, writes NaN for a missing number. Strings are matched to step over them; the
# possessive quantifiers and the end of the body as an end of a string keep it linear whatever is sent.
_NAN = re.compile(rb'"(?:[^"\\]|\\.)*+(?:"|\\?\Z)|NaN', re.DOTALL)


@dataclass(frozen=True, slots=True)
class _Table:
    """Rows by position, and the names of their columns; None: the model's own, in their order."""

    names: Sequence[str] | None
    rows: list[list[Any]]


async def invocations(
    plane: DataPlane,
    request: Request,
    *,
    max_rows: int,
    deployment: str = "",
    deadline_ns: int = 0,
    completer: Completer | None = None,
) -> Response:
    """Return the answer to a request; whatever is wrong with it is an answer too.

    Args:
        plane: Answers.
        request: As it came.
        max_rows: Rows per request.
        deployment: Its name; empty for the first.
        deadline_ns: Monotonic moment from which nobody wants the answer, besides what the request says itself; 0: none.
        completer: Fills in what the request leaves to the feature store; None: nothing.
    """
    started_ns = plane.monotonic_ns()
    headers = request.headers
    served: Served | None = None
    job: CallbackJob | None = None
    try:
        patience_ns = timeout_ns(headers)
        if patience_ns:
            deadline_ns = min(deadline_ns or started_ns + patience_ns, started_ns + patience_ns)
        served = plane.pick(deployment, pinned=headers.get(names.REVISION_HEADER), unit=bounded_header(headers, names.UNIT_HEADER))
        if headers.get("content-encoding", "identity").strip().lower() != "identity":
            raise _media_type_refused(f"encoded as {headers['content-encoding'][:20]!r}", "send it uncompressed")
        manifest = served.manifest
        body = read_invocations(request.body, headers.get("content-type", ""), manifest, max_rows=max_rows)
        if completer is not None and completer.lacks(body, served):
            body = await completer.complete(body, served, deadline_ns)
        encoded = encode_body(body, manifest, header_id=headers.get(names.PREDICTION_ID_HEADER))
        job = CallbackJob(
            served,
            ARRAYS,
            encoded.arrays,
            len(body),
            started_ns,
            key=ARRAYS,
            n_bytes=len(request.body),
            deadline_ns=deadline_ns,
            ids=encoded.ids,
            entity=encoded.entity,
        )
        await plane.answer(job)
        if job.error is not None:
            raise job.error
        told = {names.PREDICTION_ID_HEADER: job.prediction_ids()[0], names.REVISION_HEADER: str(served.number)}
        response = Response(200, render_invocations(manifest, job.scores), JSON, told)
    except MulleError as error:
        if served is not None and job is None:
            served.home.count_failed(error, served.number, plane.now_ns())
        response = _refusal(error, None if served is None else {names.REVISION_HEADER: str(served.number)})
    if served is not None:
        served.home.count(ROUTE, served.number, response.status)
    return response


def parse_invocations(body: bytes, content_type: str, manifest: Manifest, *, max_rows: int, header_id: str | None = None) -> Encoded:
    """Return what a body of `/invocations` asks a model, as the graph takes it; pure.

    Args:
        body: As it came.
        content_type: The header; empty: JSON.
        manifest: Of the revision that answers.
        max_rows: Rows per request.
        header_id: The `mulle-prediction-id` header, see `encode_body`.

    Raises:
        SpecError: see `read_invocations` and `encode_body`.
    """
    return encode_body(read_invocations(body, content_type, manifest, max_rows=max_rows), manifest, header_id=header_id)


def read_invocations(body: bytes, content_type: str, manifest: Manifest, *, max_rows: int) -> Body:
    """Return the rows of a body: by name what the model may take, or a matrix in the model's own order; pure.

    Raises:
        SpecError: `body-media-type`, `body-invalid`, `body-too-deep`, `invocations-form`, `invocations-kind`, `body-shape`, `rows-empty`,
            `rows-too-many`, `rows-duplicate-column`, `rows-wrong-length`, `rows-bad-datetime`.
    """
    if manifest.kind != "columns":
        raise SpecError(
            "invocations-kind",
            f"{manifest.model!r} takes {'pictures' if manifest.kind == 'image' else 'tensors'}, and /invocations carries rows of columns",
            fix="send a picture to /predict" if manifest.kind == "image" else "use /v2/models (Open Inference Protocol)",
            where="body",
        )
    columns = manifest.columns
    if _media_type(content_type) == CSV:
        asked: _Table | list[dict[str, Any]] = _read_csv(body, columns, max_rows)
    else:
        asked = _read_json(body, columns, max_rows)
    rows = asked.rows if isinstance(asked, _Table) else asked
    if not rows:
        raise SpecError("rows-empty", "the request holds no rows", fix="send at least one row", where="body")
    if len(rows) > max_rows:
        raise _too_many(f"{len(rows):,} rows", max_rows)
    dates = [(i, column.name) for i, column in enumerate(columns) if column.type is ColumnType.DATETIME]
    if isinstance(asked, _Table) and asked.names is None:
        for place, name in dates:
            _require_dates(name, [row[place] if place < len(row) else None for row in asked.rows])
        return Body(None, asked.rows, None)
    taken = {column.name for column in columns} | {ID_KEY}
    if manifest.entity:
        taken.add(manifest.entity)
    named = _by_name(asked, taken)
    for _, name in dates:
        _require_dates(name, [row.get(name) for row in named])
    return Body(named, None, None)


def render_invocations(manifest: Manifest, scores: NDArray[np.float32]) -> bytes:
    """Return the body of an answer: one object per row, class name to probability, or `prediction` to the number.

    The numbers are the float32 of the graph written as doubles, digit for digit what MLflow writes.
    """
    keys = manifest.classes or ("prediction",)
    rows = cast("list[list[float]]", scores.astype(np.float64).tolist())
    return msgspec.json.encode({"predictions": [dict(zip(keys, row, strict=True)) for row in rows]})


def _media_type(content_type: str) -> str:
    media, *parameters = (part.strip() for part in content_type.split(";"))
    media = media.lower()
    pairs = [(name.strip().lower(), value.strip().strip('"').lower()) for name, _, value in (p.partition("=") for p in parameters if p)]
    wrong = [name for name, value in pairs if name != "charset" or value not in {"utf-8", "utf8"}]
    if media not in {"", JSON, CSV} or wrong:
        hint = ", without parameters: the form is told by the key in the body since MLflow 2" if "format" in wrong else ""
        raise _media_type_refused(repr(content_type[:80]), f"send {JSON} or {CSV} in UTF-8{hint}")
    return media or JSON


# ---- JSON


def _read_json(body: bytes, columns: Sequence[ColumnInfo], max_rows: int) -> "_Table | list[dict[str, Any]]":
    parsed = _parse(body)
    if not isinstance(parsed, dict):
        raise _form(f"the body is {shown(parsed)}")
    mapping = cast("dict[str, Any]", parsed)
    given = [form for form in FORMS if form in mapping]
    if len(given) != 1:
        keys = ", ".join(shown(key, 30) for key in list(mapping)[:_MAX_SHOWN])
        raise _form(f"the body holds {' and '.join(given)} at once" if given else f"the body holds {keys or 'no key'}")
    form = given[0]
    value = mapping[form]
    _require_few(value, form, max_rows)
    return _READERS[form](value, columns)


def _require_few(value: Any, form: str, max_rows: int) -> None:
    """Return unless there are too many rows, before any of them is looked at: millions would take their time."""
    lists: list[Any] = [value]
    if isinstance(value, dict):
        mapping = cast("dict[str, Any]", value)
        lists = [mapping.get("data")] if form == "dataframe_split" else list(mapping.values())
    n_rows = max((len(cast("list[Any]", rows)) for rows in lists if isinstance(rows, list)), default=0)
    if n_rows > max_rows:
        raise _too_many(f"{n_rows:,} rows", max_rows)


def _parse(body: bytes) -> Any:
    try:
        return parse_json(body)
    except SpecError:
        if b"NaN" not in body:
            raise
    return parse_json(_NAN.sub(lambda found: b"null" if found[0] == b"NaN" else found[0], body))


def _read_split(value: Any, columns: Sequence[ColumnInfo]) -> _Table:
    del columns
    if not isinstance(value, dict):
        raise _shape(f"'dataframe_split' is {shown(value)}", 'send {"dataframe_split": {"columns": […], "data": [[…], …]}}')
    mapping = cast("dict[str, Any]", value)
    stranger = next((key for key in mapping if key not in _SPLIT_KEYS), None)
    if stranger is not None or "data" not in mapping:
        what = "lacks 'data'" if stranger is None else f"holds {shown(stranger)}"
        raise _shape(f"'dataframe_split' {what}", "send columns, data and, if you like, index")
    rows = _matrix(mapping["data"], "data")
    index = mapping.get("index")
    if index is not None and (not isinstance(index, list) or len(cast("list[Any]", index)) != len(rows)):
        raise _shape("'index' does not fit the rows", "leave it out: it says nothing to the model")
    return _Table(_names(mapping.get("columns")), rows)


def _read_records(value: Any, columns: Sequence[ColumnInfo]) -> list[dict[str, Any]]:
    del columns
    if not isinstance(value, list):
        raise _shape(f"'dataframe_records' is {shown(value)}", 'send {"dataframe_records": [{"column": value, …}, …]}')
    return _records(cast("list[Any]", value), "dataframe_records")


def _read_instances(value: Any, columns: Sequence[ColumnInfo]) -> "_Table | list[dict[str, Any]]":
    if not isinstance(value, list):
        raise _shape(f"'instances' is {shown(value)}", "send a list with one object or list per row")
    return _rows_or_matrix(cast("list[Any]", value), columns, "instances")


def _read_inputs(value: Any, columns: Sequence[ColumnInfo]) -> "_Table | list[dict[str, Any]]":
    if isinstance(value, list):
        return _rows_or_matrix(cast("list[Any]", value), columns, "inputs")
    if not isinstance(value, dict):
        raise _shape(f"'inputs' is {shown(value)}", 'send {"inputs": {"column": [value, …], …}}')
    mapping = cast("dict[str, Any]", value)
    lists = [_column(name, values) for name, values in mapping.items()]
    n_rows = len(lists[0]) if lists else 0
    for name, values in zip(mapping, lists, strict=True):
        if len(values) != n_rows:
            raise _shape(
                f"{shown(name)} holds {len(values):,} values, and {shown(next(iter(mapping)))} {n_rows:,}", "send columns of one length"
            )
    return _Table(list(mapping), [list(row) for row in zip(*lists, strict=True)])


_READERS: dict[str, Callable[[Any, Sequence[ColumnInfo]], "_Table | list[dict[str, Any]]"]] = {
    "dataframe_split": _read_split,
    "dataframe_records": _read_records,
    "instances": _read_instances,
    "inputs": _read_inputs,
}


def _rows_or_matrix(entries: list[Any], columns: Sequence[ColumnInfo], form: str) -> "_Table | list[dict[str, Any]]":
    if entries and isinstance(entries[0], dict):
        return _records(entries, form)
    if len(columns) == 1 and entries and not isinstance(entries[0], list):
        # A model of one column takes a list of its values.
        return _Table(None, [[_scalar(value, f"{form!r}, row {i}")] for i, value in enumerate(entries)])
    return _Table(None, _matrix(entries, form))


def _records(entries: list[Any], form: str) -> list[dict[str, Any]]:
    for i, row in enumerate(entries):
        if not isinstance(row, dict):
            raise _shape(f"{form!r}, row {i} is {shown(row)}, not an object", "send one object per row")
        for name, value in cast("dict[str, Any]", row).items():
            _scalar(value, f"{form!r}, row {i}, column {shown(name)}")
    return cast("list[dict[str, Any]]", entries)


def _matrix(value: Any, what: str) -> list[list[Any]]:
    if not isinstance(value, list):
        raise _shape(f"{what!r} is {shown(cast('object', value))}", "send one list per row")
    entries = cast("list[Any]", value)
    for i, row in enumerate(entries):
        if not isinstance(row, list):
            raise _shape(f"{what!r}, row {i} is {shown(row)}, not a list", "send one list per row")
        for value_ in cast("list[Any]", row):
            _scalar(value_, f"{what!r}, row {i}")
    return cast("list[list[Any]]", entries)


def _column(name: str, value: Any) -> list[Any]:
    """Return a column: a list of values, of lists of one value (a tensor of shape (n, 1)), or one value for one row."""
    if not isinstance(value, list):
        return [_scalar(value, f"'inputs', column {shown(name)}")]
    column: list[Any] = []
    for entry in cast("list[Any]", value):
        one = cast("list[Any]", entry) if isinstance(entry, list) else [entry]
        column.append(_scalar(cast("object", one[0] if len(one) == 1 else one), f"'inputs', column {shown(name)}"))
    return column


def _scalar(value: Any, where: str) -> Any:
    if not isinstance(value, _SCALARS):
        raise _shape(f"{where} holds {shown(value)}", "send one number, text, true, false or null per column and row")
    return value


def _names(value: Any) -> list[str] | None:
    if value is None:
        return None
    if not isinstance(value, list) or not all(isinstance(name, str) for name in cast("list[Any]", value)):
        raise _shape(f"'columns' is {shown(cast('object', value))}", "send the names of the columns, in the order of the values")
    return cast("list[str]", value)


# ---- CSV


def _read_csv(body: bytes, columns: Sequence[ColumnInfo], max_rows: int) -> _Table:
    try:
        text = body.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SpecError(
            "body-invalid", f"the body is not UTF-8 at byte {error.start}", fix="send the CSV in UTF-8", where="body"
        ) from error
    types = {column.name: column.type for column in columns}
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    rows: list[list[Any]] = []
    try:
        header = next((line for line in reader if line), list[str]())
        kinds = [types.get(name) for name in header]
        for line in reader:
            if not line:
                continue
            if len(rows) == max_rows:
                raise _too_many(f"more than {max_rows:,} rows", max_rows)
            if len(line) != len(header):
                raise SpecError(
                    "rows-wrong-length",
                    f"line {reader.line_num} has {len(line):,} values for {len(header):,} columns",
                    fix='put text that holds a comma in quotes: "a, b"',
                    where=f"line {reader.line_num}",
                )
            rows.append([_cell(value, kind) for value, kind in zip(line, kinds, strict=True)])
    except csv.Error as error:
        raise SpecError(
            "body-invalid",
            f"the body is not valid CSV at line {reader.line_num}: {error}",
            fix="send what a spreadsheet or pandas' to_csv(index=False) writes",
            where=f"line {reader.line_num}",
        ) from error
    return _Table(header, rows)


def _cell(text: str, kind: ColumnType | None) -> Any:
    """Return what a cell stands for; what does not fit stays text, for the encoder to refuse with its row and column."""
    if kind is None or kind is ColumnType.TEXT:
        # Only nothing is missing here: "NA" may be Namibia.
        return text or None
    bare = text.strip()
    if bare in _NO_VALUE:
        return None
    if kind is ColumnType.BOOLEAN:
        return _BOOLEANS.get(bare.lower(), text)
    if kind is ColumnType.NUMBER and _NUMBER.fullmatch(bare):
        return float(bare)
    return bare


# ---- both


def _by_name(asked: "_Table | list[dict[str, Any]]", taken: set[str]) -> list[dict[str, Any]]:
    """Return rows by name, with what a model may take only."""
    if not isinstance(asked, _Table):
        return [row if row.keys() <= taken else {name: value for name, value in row.items() if name in taken} for row in asked]
    header = asked.names or ()
    places = [(name, i) for i, name in enumerate(header) if name in taken]
    if len(dict(places)) != len(places):
        twice = next(name for name, _ in places if list(header).count(name) > 1)
        raise SpecError("rows-duplicate-column", f"{shown(twice)} is there twice", fix="name each column once", where="columns")
    for i, row in enumerate(asked.rows):
        if len(row) != len(header):
            raise SpecError(
                "rows-wrong-length",
                f"row {i} has {len(row):,} values for {len(header):,} columns",
                fix="send one value per column, in the order of 'columns'",
                where=f"row {i}",
            )
    return [{name: row[i] for name, i in places} for row in asked.rows]


def _require_dates(name: str, values: Sequence[Any]) -> None:
    for i, value in enumerate(values):
        if value is not None and not isinstance(value, str):
            raise SpecError(
                "rows-bad-datetime",
                f"column {name!r}: {shown(value)} may be seconds, milliseconds or nanoseconds",
                fix="send ISO 8601, as 2026-11-20 or 2026-11-20T08:30:00+09:00",
                where=f"row {i}, column {name!r}",
            )


def _refusal(error: MulleError, headers: Mapping[str, str] | None) -> Response:
    """Return the answer for an error: MLflow's server says 400 where ours has the finer 422."""
    response = problem_of(error, headers)
    return replace(response, status=_BAD_REQUEST) if response.status == _UNPROCESSABLE else response


def _media_type_refused(what: str, fix: str) -> SpecError:
    return SpecError("body-media-type", f"the body is {what}", fix=fix, where="content-type")


def _form(what: str) -> SpecError:
    return SpecError("invocations-form", what, fix=f"send an object with exactly one of {', '.join(FORMS)}", where="body")


def _shape(what: str, fix: str) -> SpecError:
    return SpecError("body-shape", what, fix=fix, where="body")


def _too_many(what: str, max_rows: int) -> SpecError:
    return SpecError(
        "rows-too-many",
        f"{what}; the limit is {max_rows:,}",
        fix="send fewer at a time, or score a table with `mulle predict`",
        where="body",
    )
