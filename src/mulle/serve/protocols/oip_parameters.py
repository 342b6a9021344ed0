"""What parameters of the Open Inference Protocol mean here, whichever transport brought them.

| on               | parameter                                                | meaning                                              |
|------------------|----------------------------------------------------------|------------------------------------------------------|
| request          | `timeout`                                                | microseconds the client waits: a deadline            |
| request          | `mulle_prediction_id`                                    | the client's own id of the prediction                |
| request          | `mulle_unit`                                             | who asks: the same unit stays on the same revision   |
| request          | `binary_data_output`                                     | all outputs behind the JSON                          |
| input            | `binary_data_size`                                       | so many bytes of it stand behind the JSON            |
| requested output | `binary_data`, `classification`                          | behind the JSON or in it; the best so many classes   |
| refused          | `sequence_id`, `shared_memory_region` …                  | ignoring them would give another answer than asked   |

Other parameters are ignored, as the protocol allows.
"""

from collections.abc import Mapping
from typing import Any

from mulle.core.errors import SpecError
from mulle.formats.feedback_log import require_prediction_id
from mulle.formats.rows import shown
from mulle.serve.protocols.headers import header_ids
from mulle.serve.protocols.oip import RequestedOutput

PREDICTION_ID = "mulle_prediction_id"
UNIT = "mulle_unit"
REVISION = "mulle_revision"
TIMEOUT = "timeout"
MAX_UNIT_CHARACTERS = 256
_MAX_TIMEOUT_US = 86_400_000_000
_MAX_CLASSES = 1_000


def requested_output(name: str, parameters: Mapping[str, Any]) -> RequestedOutput:
    """Return what is asked of one output.

    Raises:
        SpecError: `oip-parameter`, `oip-unsupported`.
    """
    require_no_shared_memory(parameters, name)
    binary = parameters.get("binary_data")
    best = parameters.get("classification", 0)
    if not isinstance(binary, bool | None):
        raise _bad("binary_data", binary, "send true or false")
    if isinstance(best, bool) or not isinstance(best, int) or not 0 <= best <= _MAX_CLASSES:
        raise _bad("classification", best, f"send how many classes to answer, up to {_MAX_CLASSES:,}")
    return RequestedOutput(name, binary, best)


def require_no_shared_memory(parameters: Mapping[str, Any], name: str) -> None:
    """Raise if a tensor lives in shared memory.

    Raises:
        SpecError: `oip-unsupported`.
    """
    if parameters and "shared_memory_region" in parameters:
        raise SpecError(
            "oip-unsupported",
            f"{shown(name)} is said to be in shared memory, which this server does not read",
            fix="send the tensor itself, as binary data",
            where=shown(name),
        )


def timeout_ns(parameters: Mapping[str, Any]) -> int:
    """Return how long the client waits, in nanoseconds; 0: for ever.

    Raises:
        SpecError: `oip-parameter`.
    """
    value = parameters.get(TIMEOUT, 0)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= _MAX_TIMEOUT_US:
        raise _bad(TIMEOUT, value, "send microseconds as a whole number, up to a day")
    return value * 1000


def unit_of(parameters: Mapping[str, Any]) -> str | None:
    """Return who asks, or None.

    Raises:
        SpecError: `oip-parameter`.
    """
    value = parameters.get(UNIT)
    if value is not None and (not isinstance(value, str) or len(value) > MAX_UNIT_CHARACTERS):
        raise _bad(UNIT, value, f"send text of at most {MAX_UNIT_CHARACTERS} characters")
    return value


def ids_of(parameters: Mapping[str, Any], n_rows: int, *, header: str | None = None) -> list[str] | None:
    """Return the client's own ids, one per row, or None; for more than one row `-0`, `-1` … are added.

    Raises:
        SpecError: `prediction-id-invalid`.
    """
    stem = parameters.get(PREDICTION_ID, header)
    if stem is None:
        return None
    return header_ids(require_prediction_id(stem, where=PREDICTION_ID), n_rows)


def require_plain(parameters: Mapping[str, Any]) -> None:
    """Raise if a request belongs to a sequence: a stateless answer would be another than the one asked for.

    Raises:
        SpecError: `oip-unsupported`.
    """
    if parameters.get("sequence_id"):
        raise SpecError(
            "oip-unsupported",
            "the request belongs to a sequence, and models here keep no state between requests",
            fix="leave sequence_id out",
            where="parameters",
        )


def _bad(name: str, value: object, fix: str) -> SpecError:
    return SpecError("oip-parameter", f"the parameter {name!r} is {shown(value)}", fix=fix, where=f"parameters, {name!r}")
