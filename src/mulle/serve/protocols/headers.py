"""What headers of a request mean, checked: for every route alike."""

from collections.abc import Mapping

from mulle.core.errors import SpecError
from mulle.formats.feedback_log import require_prediction_id
from mulle.serve.http.messages import JSON

MAX_HEADER_VALUE = 256
TIMEOUT_HEADER = "mulle-timeout-ms"
_MAX_TIMEOUT_MS = 3_600_000
_NS_PER_MS = 1_000_000


def bounded_header(headers: Mapping[str, str], name: str) -> str | None:
    """Return a header's value, or None where it was not sent.

    Raises:
        SpecError: `header-invalid`: it is too long.
    """
    value = headers.get(name)
    if value is not None and len(value) > MAX_HEADER_VALUE:
        raise SpecError("header-invalid", f"{name} has {len(value):,} characters", fix=f"send at most {MAX_HEADER_VALUE}", where=name)
    return value


def timeout_ns(headers: Mapping[str, str]) -> int:
    """Return how long the client will wait, nanoseconds; 0: it did not say.

    Raises:
        SpecError: `header-invalid`.
    """
    value = headers.get(TIMEOUT_HEADER)
    if value is None:
        return 0
    if not (value.isascii() and value.isdigit() and len(value) <= len(str(_MAX_TIMEOUT_MS)) and 0 < int(value) <= _MAX_TIMEOUT_MS):
        raise SpecError(
            "header-invalid",
            f"{TIMEOUT_HEADER} is {value[:40]!r}",
            fix=f"send whole milliseconds, 1 to {_MAX_TIMEOUT_MS:,}",
            where=TIMEOUT_HEADER,
        )
    return int(value) * _NS_PER_MS


def header_ids(stem: str, n_rows: int) -> list[str]:
    """Return the ids of a request's rows from its `mulle-prediction-id`: the id itself for one row, else `-0`, `-1` … behind it.

    Raises:
        SpecError: `prediction-id-invalid`.
    """
    where = "mulle-prediction-id"
    stem = require_prediction_id(stem, where=where)
    return [stem] if n_rows == 1 else [require_prediction_id(f"{stem}-{i}", where=where) for i in range(n_rows)]


def require_json(headers: Mapping[str, str]) -> None:
    """Return if the body says it is JSON in UTF-8, uncompressed; a body that says nothing is taken as that.

    Raises:
        SpecError: `body-media-type`.
    """
    kind = headers.get("content-type", "")
    media, _, parameters = kind.partition(";")
    media = media.strip().lower()
    charset = parameters.lower().replace(" ", "").replace('"', "")
    wrong = not (media in {"", JSON} or (media.startswith("application/") and media.endswith("+json")))
    wrong |= "charset=" in charset and "charset=utf-8" not in charset
    encoding = headers.get("content-encoding", "identity").strip().lower()
    if wrong or encoding != "identity":
        raise SpecError(
            "body-media-type",
            f"the body is {kind[:80]!r}" + ("" if encoding == "identity" else f", encoded as {encoding[:20]!r}"),
            fix="send uncompressed JSON with the header content-type: application/json",
            where="content-type",
        )
