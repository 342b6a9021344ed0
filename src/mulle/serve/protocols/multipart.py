"""Uploads into encoded pictures, and the answers to them: `multipart/form-data`, or a picture as the body itself.

The body is in memory and bounded before it comes here. It is walked once from front to back; a part's name is compared and
its file name is read over: nothing of a request reaches a path. Strict where lenience has let two readers of one body see
two forms: no text before the first boundary, no folded headers, no encodings, an end that is there.
"""

import json
import re
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mulle.core.errors import SpecError
from mulle.formats.bundle import Manifest
from mulle.formats.rows import nearest, shown
from mulle.serve.protocols.codec_json import choose_labels

FIELDS = ("file", "image", "files", "images")
MAX_PICTURES = 64
MAX_HEADER_BYTES = 4096
ALL_CLASSES, TOP_CLASSES = 20, 5
_BOUNDARY = re.compile(r"[0-9A-Za-z'()+_,\-./:=? ]{0,69}[0-9A-Za-z'()+_,\-./:=?]")
_PARAMETER = re.compile(r"""[ \t]*;[ \t]*([!#$%&'*+.^_`|~0-9A-Za-z-]+)[ \t]*=[ \t]*("(?:[^"\\]|\\.)*"|[^";\s]*)""", re.DOTALL)
_PLAIN_ENCODINGS = frozenset({"binary", "8bit", "7bit"})


class Answered(Protocol):
    """What a job whose pictures were scored knows."""

    @property
    def served(self) -> Any:
        """The revision."""
        ...

    @property
    def scores(self) -> NDArray[np.float32]:
        """Shape (n, k)."""
        ...


class PictureForms:
    """Reads uploads into pictures and spells their answers.

    Args:
        max_pictures: Of one request.
    """

    def __init__(self, *, max_pictures: int = MAX_PICTURES) -> None:
        self._max_pictures = max_pictures

    def read(self, body: bytes, content_type: str, *, max_rows: int) -> list[bytes]:
        """Return the encoded pictures of a body, at least one; they are not looked into.

        Args:
            body: The whole body.
            content_type: The header, with its parameters.
            max_rows: Rows of one request; the lower of this and `max_pictures` counts.

        Raises:
            SpecError: `form-malformed`, `form-field`, `form-empty`, `rows-too-many`.
        """
        media, _, _ = content_type.partition(";")
        if media.strip().lower() != "multipart/form-data":
            if not body:
                raise _empty("the body is empty")
            return [body]
        return parse_form(body, content_type, max_pictures=min(max_rows, self._max_pictures))

    def render(self, job: Answered, ids: Sequence[str], took_ms: float) -> str:
        """Return the body of the answer, ASCII only."""
        served = job.served
        answer = {
            "predictions": render_image_answer(served.manifest, job.scores, took_ms),
            "prediction_ids": list(ids),
            "model": served.source.model,
            "model_version": served.source.model_version,
            "revision": served.number,
        }
        return json.dumps(answer, separators=(",", ":"))


def parse_form(body: bytes, content_type: str, *, max_pictures: int = MAX_PICTURES) -> list[bytes]:
    """Return the content of every file of a `multipart/form-data` body, in order; takes time linear in the body.

    Raises:
        SpecError: `form-malformed`; `form-field`: a field that is no picture; `form-empty`: no file, or an empty one;
            `rows-too-many`: more than `max_pictures`.
    """
    delimiter = b"\r\n--" + _boundary(content_type)
    if not body.startswith(delimiter[2:]):
        raise _malformed("the body does not begin with the boundary")
    at, n_bytes = len(delimiter) - 2, len(body)
    files: list[bytes] = []
    while not body.startswith(b"--", at):
        at = _line_end(body, at)
        end = body.find(b"\r\n\r\n", at, min(n_bytes, at + MAX_HEADER_BYTES))
        if end < 0:
            raise _malformed(f"the header of part {len(files)} does not end within {MAX_HEADER_BYTES:,} bytes")
        _require_file(body[at:end], len(files))
        start = end + 4
        # The content may be empty: then the boundary's own line break is the header's last.
        at = body.find(delimiter, start - 2)
        if at < 0:
            raise _malformed("the last boundary is missing: the body was cut off")
        if at <= start:
            raise _empty(f"part {len(files)} is an empty file")
        if len(files) == max_pictures:
            raise SpecError(
                "rows-too-many", f"the form has more than {max_pictures:,} files", fix="send fewer pictures at a time", where="body"
            )
        files.append(body[start:at])
        at += len(delimiter)
    if not files:
        raise _empty("the form has no file")
    return files


def render_image_answer(manifest: Manifest, scores: NDArray[np.float32], took_ms: float) -> list[dict[str, Any]]:
    """Return one object per picture.

    `class` is chosen as for rows, `confidence` is its probability, `probabilities` names every class where there are at
    most 20, else the five most probable, and `processing_time_ms` is what the whole request took, the same for all.
    """
    classes = manifest.classes
    place = {name: i for i, name in enumerate(classes)}
    answers: list[dict[str, Any]] = []
    for label, row in zip(choose_labels(manifest, scores), scores, strict=True):
        few = len(classes) <= ALL_CLASSES
        named = range(len(classes)) if few else np.argsort(-row, kind="stable")[:TOP_CLASSES].tolist()
        # float32 printed shortest: 0.8, not 0.800000011920929.
        answers.append(
            {
                "class": label,
                "confidence": float(str(row[place[label]])),
                "probabilities": {classes[i]: float(str(row[i])) for i in named},
                "processing_time_ms": round(took_ms, 3),
            }
        )
    return answers


def _boundary(content_type: str) -> bytes:
    """Return the boundary a content type names, without the dashes."""
    found = [value for name, value in _parameters(content_type, content_type.find(";")) if name == "boundary"]
    if len(found) != 1 or _BOUNDARY.fullmatch(found[0]) is None:
        raise _malformed(f"the content type names {'no usable' if len(found) < 2 else 'more than one'} boundary")  # noqa: PLR2004 - one is right
    return found[0].encode("ascii")


def _parameters(text: str, at: int) -> list[tuple[str, str]]:
    """Return the `; name=value` pairs of a header from `at` on."""
    found: list[tuple[str, str]] = []
    while 0 <= at < len(text) and text[at:].strip(" \t;"):
        match = _PARAMETER.match(text, at)
        if match is None:
            raise _malformed(f"a header's parameters cannot be read: {shown(text[at : at + 60])}")
        value = match[2]
        if value.startswith('"'):
            value = re.sub(r"\\(.)", r"\1", value[1:-1], flags=re.DOTALL)
        found.append((match[1].lower(), value))
        at = match.end()
    return found


def _line_end(body: bytes, at: int) -> int:
    """Return where the line after a boundary begins; spaces and tabs may stand behind a boundary."""
    end = body.find(b"\r\n", at, at + 80)
    if end < 0 or body[at:end].strip(b" \t"):
        raise _malformed("a boundary is not alone on its line")
    # The blank line of a part without headers begins with this line's end.
    return end + 2 if not body.startswith(b"\r\n", end + 2) else end


def _require_file(block: bytes, part: int) -> None:
    """Return if a part's header says that it is a file of ours, as it is."""
    name: str | None = None
    for line in block.decode("latin-1").split("\r\n"):
        key, colon, value = line.partition(":")
        if not line:
            continue
        if not colon or key != key.strip() or "\n" in line or "\r" in line or "\x00" in line:
            raise _malformed(f"a header of part {part} cannot be read: {shown(line)}")
        lowered = key.lower()
        if lowered == "content-transfer-encoding" and value.strip().lower() not in _PLAIN_ENCODINGS:
            raise _malformed(f"part {part} is encoded as {shown(value.strip())}: send the bytes as they are")
        if lowered != "content-disposition":
            continue
        kind, _, _ = value.partition(";")
        names = [found for parameter, found in _parameters(value, value.find(";")) if parameter == "name"]
        if kind.strip().lower() != "form-data" or len(names) != 1 or name is not None:
            raise _malformed(f"part {part} is not named once")
        name = names[0]
    if name is None:
        raise _malformed(f"part {part} is not named")
    if name not in FIELDS:
        like = nearest(name, FIELDS)
        raise SpecError(
            "form-field",
            f"the form has a field {shown(name)}, which is no picture",
            fix=f"did you mean {like!r}?" if like else "send pictures in the field 'file': curl -F file=@picture.jpg …/predict",
            where=f"part {part}",
        )


def _malformed(what: str) -> SpecError:
    return SpecError("form-malformed", what, fix="send a whole multipart/form-data body: curl -F file=@picture.jpg …/predict", where="body")


def _empty(what: str) -> SpecError:
    return SpecError("form-empty", what, fix="send at least one picture: curl -F file=@picture.jpg …/predict", where="body")
