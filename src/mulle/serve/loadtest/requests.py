"""What is asked: whole HTTP requests made from a bundle's golden rows, a file, the recorded log, or bodies as they are."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import msgspec

from mulle.core.errors import SpecError, UnavailableError
from mulle.core.names import require_name
from mulle.core.schema import ColumnType
from mulle.formats.bundle import TensorType, read_manifest
from mulle.formats.envelope import read_limited
from mulle.formats.golden import read_golden
from mulle.formats.golden_tensors import GoldenCase, read_golden_tensors
from mulle.formats.prediction_log import LoggedColumn, read_predictions
from mulle.formats.rows import decode_value

JSON = "application/json"
MAX_FILE_BYTES = 256 << 20

Row = Mapping[str, Any]
Columns = tuple[LoggedColumn, ...]
Protocol = Literal["predict", "features", "oip"]

_HEADER_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_HEADER_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")
_PATH = re.compile(r"/[\x21-\x7e]*")
_OURS = frozenset({"content-length", "transfer-encoding", "connection", "expect"})
_HEADER_LENGTH = "inference-header-content-length"
_TENSOR_TYPES: dict[TensorType, str] = {
    "double": "FP64",
    "float": "FP32",
    "float16": "FP16",
    "int64": "INT64",
    "int32": "INT32",
    "int8": "INT8",
    "uint8": "UINT8",
    "bool": "BOOL",
    "string": "BYTES",
}
_DATATYPES = {ColumnType.NUMBER: "FP64", ColumnType.TEXT: "BYTES", ColumnType.BOOLEAN: "BOOL", ColumnType.DATETIME: "FP64"}


@dataclass(frozen=True, slots=True)
class Body:
    """What a request carries: its bytes, their type, and headers that belong to them."""

    data: bytes
    content_type: str = JSON
    headers: tuple[tuple[str, str], ...] = ()


def render_request(path: str, body: Body, *, headers: Sequence[tuple[str, str]], host: str) -> bytes:
    """Return a whole POST request.

    Args:
        path: Path and query.
        body: As it is.
        headers: Name and value of more headers; they win over the body's own.
        host: The `host` header: name or address, and port.

    Raises:
        SpecError: a header or the path would break out of its line, or is the generator's own to set.
    """
    if not _PATH.fullmatch(path):
        raise SpecError("loadtest-path", f"{path[:80]!r} is no path of a request", fix="write it as it stands in a URL: --path /predict")
    given: dict[str, str] = {"host": host, "content-type": body.content_type}
    for name, value in (*body.headers, *headers):
        lower = name.lower()
        if not _HEADER_NAME.fullmatch(name) or not _HEADER_VALUE.fullmatch(value):
            raise SpecError("loadtest-header", f"{name[:60]!r} is no header that can be sent", fix="--header 'name: value', in one line")
        if lower in _OURS:
            raise SpecError(
                "loadtest-header",
                f"{lower!r} is set by the generator itself",
                fix="leave it out: connections are kept, bodies have a length",
            )
        given[lower] = value
    lines = [f"POST {path} HTTP/1.1", *(f"{name}: {value}" for name, value in given.items()), f"content-length: {len(body.data)}", "", ""]
    return "\r\n".join(lines).encode("latin-1") + body.data


def row_bodies(rows: Sequence[Row], columns: Columns, *, n_rows: int, protocol: Protocol) -> list[Body]:
    """Return JSON bodies of `n_rows` rows each, which together hold every row at least once.

    Args:
        rows: At least one; they are repeated from the start where they do not come out even.
        columns: Names and types of the rows; needed by `features` and `oip`, which say rows by position and type.
        n_rows: Rows per request, >= 1.
        protocol: `predict` (rows by name), `features` (a matrix with its columns), or `oip` (one tensor per column).

    Raises:
        SpecError: no rows, or a text is missing where OIP has no word for it.
    """
    if not rows:
        raise SpecError("loadtest-rows", "there are no rows to send", fix="give a file with rows, or a bundle with golden requests")
    n_requests = -(-len(rows) // n_rows)
    spelt = {"predict": _spell_rows, "features": _spell_matrix, "oip": _spell_oip}[protocol]
    return [Body(spelt([rows[(i * n_rows + j) % len(rows)] for j in range(n_rows)], columns)) for i in range(n_requests)]


def golden_rows(bundle: Path) -> tuple[list[Row], Columns]:
    """Return the rows of the golden requests of the bundle in `bundle`, and its columns.

    Raises:
        SpecError: there is no bundle, or one whose requests are pictures or tensors.
        CheckError: it is damaged.
    """
    manifest = read_manifest(bundle)
    if manifest.kind != "columns":
        raise SpecError(
            "loadtest-no-rows",
            f"the bundle of {manifest.model!r} takes pictures or tensors, not rows",
            fix="leave out --rows and --protocol",
            where=str(bundle),
        )
    columns = tuple(LoggedColumn(c.name, c.type) for c in manifest.columns)
    return list(read_golden(bundle / manifest.golden_file).rows), columns


def golden_bodies(bundle: Path) -> list[Body]:
    """Return the golden pictures of the bundle in `bundle` as they were encoded, or its golden tensors as Open Inference Protocol.

    Raises:
        SpecError: there is no bundle, or nothing in it to ask.
        CheckError: it is damaged.
    """
    manifest = read_manifest(bundle)
    cases = read_golden_tensors(bundle / manifest.golden_file).cases
    bodies = [Body(case.image, _picture_type(case.image)) if case.image else _tensor_body(case) for case in cases]
    if not bodies:
        raise SpecError("loadtest-rows", "the bundle has no golden requests", fix="send a file of your own: --body FILE", where=str(bundle))
    return bodies


def example_rows(document: bytes) -> list[Row]:
    """Return the rows a server shows as the example of `/predict` in its own OpenAPI document.

    Args:
        document: What `/openapi.json` answered.

    Raises:
        SpecError: it shows none.
    """
    try:
        found: Any = msgspec.json.decode(document)
        rows: Any = found["paths"]["/predict"]["post"]["requestBody"]["content"][JSON]["example"]
    except (msgspec.DecodeError, KeyError, TypeError) as error:
        raise _no_example() from error
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in cast("list[Any]", rows)):
        raise _no_example()
    return cast("list[Row]", rows)


def file_rows(path: Path) -> list[Row]:
    """Return the rows of a file: JSON lines, a JSON array of objects, or `{"rows": […]}`.

    Raises:
        SpecError: unreadable, too large, or no objects; JSON lines are named by line.
    """
    data = read_limited(path, max_bytes=MAX_FILE_BYTES).strip()
    try:
        whole: Any = msgspec.json.decode(data)
    except msgspec.DecodeError:
        return _json_lines(data, path)
    if isinstance(whole, dict):
        mapping = cast("dict[str, Any]", whole)
        whole = mapping["rows"] if isinstance(mapping.get("rows"), list) else [mapping]
    found: list[Any] = cast("list[Any]", whole) if isinstance(whole, list) else [whole]
    for i, row in enumerate(found):
        if not isinstance(row, dict):
            raise _no_object(f"element {i}", path)
    return found


def logged_rows(root: Path, deployment: str, *, last: int) -> tuple[list[Row], Columns]:
    """Return the newest `last` rows the prediction log holds of the revision that answered last, and their columns.

    Args:
        root: The folder of logs, `.mulle/logs`.
        deployment: Whose log.
        last: How many rows to look at; those of earlier revisions are left out, since their columns may differ.

    Raises:
        SpecError: nothing was logged, what was logged holds no columns, or columns are redacted: a replay would not be what was asked.
    """
    table = read_predictions(root, require_name(deployment, "a deployment"), last=last)
    if not len(table):
        raise SpecError(
            "loadtest-log-empty",
            f"the prediction log of {deployment!r} holds no rows",
            fix="ask the server something first, or leave --replay out to send the golden requests",
            where=str(root / deployment),
        )
    index = int(table.source_index[-1])
    source = table.sources[index]
    if source.redacted:
        raise SpecError(
            "loadtest-redacted",
            f"the log keeps {', '.join(map(repr, source.redacted[:5]))} out: its rows are not what was asked",
            fix="send the golden requests (leave --replay out), or rows of your own: --input rows.jsonl",
            where=str(root / deployment),
        )
    if not source.columns:
        raise SpecError(
            "loadtest-no-rows",
            f"the log of {deployment!r} holds answers, but not the pictures or tensors they were given for",
            fix="send a body as it is: mulle loadtest --body picture.jpg --content-type image/jpeg",
            where=str(root / deployment),
        )
    rows = table.of_source(index)
    values = {column.name: [decode_value(value, column.type) for value in rows.columns[column.name]] for column in source.columns}
    return [dict(zip(values, row, strict=True)) for row in zip(*values.values(), strict=True)], source.columns


def body_file(path: Path, content_type: str) -> Body:
    """Return a file as it is.

    Raises:
        SpecError: unreadable or too large.
    """
    return Body(read_limited(path, max_bytes=MAX_FILE_BYTES), content_type)


def key_headers(value: str | None, name: str) -> list[tuple[str, str]]:
    """Return the header that carries an API key.

    Args:
        value: What the environment variable `name` holds.
        name: Of the variable, for the message.

    Raises:
        UnavailableError: the variable is not set.
        SpecError: what it holds fits no header; it is not repeated in the message.
    """
    if not value:
        raise UnavailableError("loadtest-key", f"the environment variable {name!r} is not set", fix=f"export {name}=mk_… in this shell")
    key = value.strip()
    if not re.fullmatch(r"[\x21-\x7e]+", key):
        raise SpecError("loadtest-key", f"the environment variable {name!r} does not hold an API key", fix="it is one word: mk_…")
    return [("authorization", f"Bearer {key}")]


def parse_header(text: str) -> tuple[str, str]:
    """Return name and value of `name: value`.

    Raises:
        SpecError: there is no colon.
    """
    name, colon, value = text.partition(":")
    if not colon or not name.strip():
        raise SpecError("loadtest-header", f"{text[:60]!r} is no header", fix="write it as it is sent: --header 'mulle-revision: 3'")
    return name.strip(), value.strip()


def _spell_rows(rows: Sequence[Row], columns: Columns) -> bytes:
    del columns
    return msgspec.json.encode(rows)


def _spell_matrix(rows: Sequence[Row], columns: Columns) -> bytes:
    names = [column.name for column in columns] or list(rows[0])
    return msgspec.json.encode({"columns": names, "features": [[row.get(name) for name in names] for row in rows]})


def _spell_oip(rows: Sequence[Row], columns: Columns) -> bytes:
    typed = columns or tuple(LoggedColumn(name, _type_of(row.get(name) for row in rows)) for name in rows[0])
    inputs: list[dict[str, Any]] = []
    for column in typed:
        data = [row.get(column.name) for row in rows]
        # A date may be written as text or as seconds.
        datatype = "BYTES" if any(isinstance(value, str) for value in data) else _DATATYPES[column.type]
        inputs.append({"name": column.name, "datatype": datatype, "shape": [len(rows), 1], "data": data})
    return msgspec.json.encode({"inputs": inputs})


def _picture_type(data: bytes) -> str:
    known = ((b"\xff\xd8", "image/jpeg"), (b"\x89PNG", "image/png"), (b"GIF8", "image/gif"), (b"BM", "image/bmp"))
    return next((name for magic, name in known if data.startswith(magic)), "image/webp" if data[8:12] == b"WEBP" else "image/*")


def _tensor_body(case: GoldenCase) -> Body:
    """Return one golden request as Open Inference Protocol: JSON, and behind it the tensors as they lie in memory."""
    inputs: list[dict[str, Any]] = []
    raw: list[bytes] = []
    for name, tensor in case.inputs.items():
        described: dict[str, Any] = {"name": name, "datatype": _TENSOR_TYPES[tensor.dtype], "shape": tensor.shape}
        if tensor.dtype == "string":
            described["data"] = tensor.texts
        else:
            described["parameters"] = {"binary_data_size": len(tensor.data)}
            raw.append(tensor.data)
        inputs.append(described)
    head = msgspec.json.encode({"inputs": inputs})
    return Body(b"".join([head, *raw]), "application/octet-stream", ((_HEADER_LENGTH, str(len(head))),))


def _type_of(values: Iterable[Any]) -> ColumnType:
    given = [value for value in values if value is not None]
    if given and all(isinstance(value, bool) for value in given):
        return ColumnType.BOOLEAN
    return ColumnType.NUMBER if all(isinstance(value, int | float) for value in given) else ColumnType.TEXT


def _json_lines(data: bytes, path: Path) -> list[Row]:
    rows: list[Row] = []
    for number, line in enumerate(data.splitlines(), 1):
        if not line.strip():
            continue
        try:
            row: Any = msgspec.json.decode(line)
        except msgspec.DecodeError as error:
            raise SpecError(
                "loadtest-rows",
                f"line {number} is not JSON: {error}",
                fix="one JSON object per line, or one array of objects",
                where=str(path),
            ) from error
        if not isinstance(row, dict):
            raise _no_object(f"line {number}", path)
        rows.append(cast("dict[str, Any]", row))
    return rows


def _no_example() -> SpecError:
    return SpecError(
        "loadtest-no-example",
        "the server shows no example of a request",
        fix="say what to send: --bundle DIR, --input rows.jsonl, or --body FILE with --content-type",
        where="/openapi.json",
    )


def _no_object(what: str, path: Path) -> SpecError:
    return SpecError("loadtest-rows", f"{what} is no object", fix='a row is an object: {"column": 1}', where=str(path))
