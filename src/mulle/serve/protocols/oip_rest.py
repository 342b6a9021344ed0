"""The Open Inference Protocol over HTTP: paths, bodies, statuses.

The protocol wants errors as `{"error": "text"}`, and its clients break on anything else there; code, what, fix and where
stand beside it, as everywhere in Mulle.
"""

import asyncio
import logging
import time
import zlib
from collections.abc import Mapping
from functools import partial
from typing import Any, cast
from urllib.parse import unquote

import msgspec

from mulle.core.errors import MulleError, SpecError
from mulle.formats import telemetry as names
from mulle.serve.http.messages import JSON, Handler, Request, Response, problem, problem_of, status_of
from mulle.serve.protocols.headers import bounded_header, timeout_ns
from mulle.serve.protocols.oip import InferRequest, InferResponse
from mulle.serve.protocols.oip_json import HEADER_LENGTH, BodyDecoder, encode_infer
from mulle.serve.protocols.oip_service import EXTENSIONS, PLATFORM, SERVER, OipService, error_text, server_version

LOG = logging.getLogger("mulle.serve")
INFER_ROUTE = "/v2/models/{model}/infer"
_BINARY = "application/octet-stream"
_STATUS = {"oip-encoding": 415, "body-too-large": 413}
_SERVER_FAULT = 500
_INFLATE = {"gzip": 16 + zlib.MAX_WBITS, "x-gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}


class OipRoutes:
    """The protocol's paths, all of them under `/v2`.

    Args:
        service: Answers.
        max_body_bytes: What a compressed body may be inflated to.
    """

    def __init__(self, service: OipService, *, max_body_bytes: int) -> None:
        self._service = service
        self._max_body_bytes = max_body_bytes
        self._decode = BodyDecoder()

    def match(self, path: str, method: str) -> "Handler | None":
        """Return what answers a path, or None where it is none of the protocol's; cheap, and the same for the same arguments.

        Args:
            path: As it came, percent-encoded.
            method: Upper-case; GET also answers HEAD.
        """
        if path != "/v2" and not path.startswith("/v2/"):
            return None
        found = self._find(path)
        if found is None:
            return partial(_refuse, 404, "route-unknown", f"there is no {path[:100]!r} here", "see /docs, or GET /v2")
        wanted, handler = found
        if method != wanted and not (method == "HEAD" and wanted == "GET"):
            what = f"{path[:100]} does not take {method[:20]}"
            return partial(_refuse, 405, "method-not-allowed", what, f"use {wanted}", headers={"allow": wanted})
        return handler

    def _find(self, path: str) -> "tuple[str, Handler] | None":
        match path.strip("/").split("/")[1:]:
            case []:
                return "GET", self._server
            case ["health", "live"]:
                return "GET", _live
            case ["health", "ready"]:
                return "GET", self._ready
            case ["models", name, *rest] if name:
                version = ""
                if len(rest) > 1 and rest[0] == "versions" and rest[1]:
                    version, rest = rest[1], rest[2:]
                try:
                    # Once, and only to look the name up among those that are served.
                    model, version = unquote(name, errors="strict"), unquote(version, errors="strict")
                except UnicodeDecodeError:
                    return None
                return self._model(model, version, rest)
            case _:
                return None

    def _model(self, model: str, version: str, rest: list[str]) -> "tuple[str, Handler] | None":
        match rest:
            case []:
                return "GET", partial(self._describe, model, version)
            case ["ready"]:
                return "GET", partial(self._model_ready, model, version)
            case ["infer"]:
                return "POST", partial(self._infer, model, version)
            case _:
                return None

    def _server(self, request: Request) -> Response:
        del request
        return _json({"name": SERVER, "version": server_version(), "extensions": EXTENSIONS})

    def _ready(self, request: Request) -> Response:
        del request
        ready = self._service.ready
        return _json({"ready": ready}, 200 if ready else 503)

    def _model_ready(self, model: str, version: str, request: Request) -> Response:
        del request
        try:
            self._service.describe(model, version)
        except MulleError as error:
            return oip_problem_of(error)
        return _json({"name": model, "ready": self._service.ready}, 200 if self._service.ready else 503)

    def _describe(self, model: str, version: str, request: Request) -> Response:
        del request
        try:
            info = self._service.describe(model, version)
        except MulleError as error:
            return oip_problem_of(error)
        return _json(
            {
                "name": info.name,
                "versions": info.versions,
                "platform": PLATFORM,
                "inputs": [tensor.to_dict() for tensor in info.inputs],
                "outputs": [tensor.to_dict() for tensor in info.outputs],
            }
        )

    async def _infer(self, model: str, version: str, request: Request) -> Response:
        asked: InferRequest | None = None
        answer: InferResponse | None = None
        try:
            headers = request.headers
            body = request.body
            if "content-encoding" in headers:
                body = await self._inflate(body, headers["content-encoding"])
            asked = self._decode(body, headers.get(HEADER_LENGTH), model=model, version=version)
            patience = timeout_ns(headers)
            answer = await self._service.infer(
                asked,
                deadline_ns=patience and time.monotonic_ns() + patience,
                unit=bounded_header(headers, names.UNIT_HEADER),
                pinned=headers.get(names.REVISION_HEADER),
                prediction_id=headers.get(names.PREDICTION_ID_HEADER),
            )
            response = _answer(asked, answer)
        except MulleError as error:
            response = oip_problem_of(error)
            if response.status == _SERVER_FAULT:
                LOG.warning("an inference failed: %s", error)
        except Exception:
            LOG.exception("an inference failed")
            response = _refuse(500, "internal", "the server failed on this request", "ask the operator: the server's log has the reason")
        self._service.count(model, answer, INFER_ROUTE, response.status)
        return response

    async def _inflate(self, body: bytes, encoding: str) -> bytes:
        encoding = encoding.strip().lower()
        if encoding == "identity":
            return body
        window = _INFLATE.get(encoding)
        if window is None:
            raise SpecError(
                "oip-encoding",
                f"the body is encoded as {encoding[:40]!r}",
                fix="send it as it is, or as gzip or deflate",
                where="content-encoding",
            )
        # In a thread: a small body can take long to inflate, and the decoder lets go of the interpreter.
        return await asyncio.get_running_loop().run_in_executor(None, inflate, body, window, self._max_body_bytes)


def deployment_of(path: str) -> str | None:
    """Return the deployment a path of the protocol is about, or None: for checks that come before the handler."""
    parts = path.split("/", 4)
    if len(parts) < 4 or parts[1:3] != ["v2", "models"]:  # noqa: PLR2004 - the place of the name
        return None
    return unquote(parts[3], errors="replace")


def inflate(body: bytes, window: int, max_bytes: int) -> bytes:
    """Return a compressed body as it was; not one byte more than the limit is ever made of it.

    Args:
        body: Compressed.
        window: As zlib wants it: it tells the formats apart.
        max_bytes: The limit.

    Raises:
        SpecError: `body-too-large`, `oip-encoding`: not that format, cut off, or followed by something.
    """
    decoder = zlib.decompressobj(window)
    try:
        data = decoder.decompress(body, max_bytes + 1)
    except zlib.error as error:
        raise _bad_encoding(str(error)) from error
    if len(data) > max_bytes:
        raise SpecError(
            "body-too-large",
            f"the body inflates to more than {max_bytes:,} bytes",
            fix="send fewer rows at a time",
            where="content-encoding",
        )
    if not decoder.eof or decoder.unused_data:
        raise _bad_encoding("it is cut off" if not decoder.eof else "something follows it")
    return data


def oip_problem_of(error: MulleError) -> Response:
    """Return the answer for an error in the protocol's shape."""
    status = _STATUS.get(error.code) or (400 if isinstance(error, SpecError) and error.code.startswith("oip-") else status_of(error))
    hidden = status == _SERVER_FAULT
    plain = problem_of(error)
    return _shaped(status, error_text(error, hide=hidden), plain)


def as_oip(response: Response) -> Response:
    """Return an error answer of the transport in the protocol's shape; anything else as it is."""
    try:
        found = cast("dict[str, Any]", msgspec.json.decode(response.body))["error"]
        sentence = f"[{found['code']}] {found['what']}; {found['fix']}"
    except (msgspec.DecodeError, KeyError, TypeError):
        return response
    return _shaped(response.status, sentence, response)


def _answer(asked: InferRequest, answer: InferResponse) -> Response:
    body, n_json = encode_infer(answer, asked.outputs, all_binary=asked.parameters.get("binary_data_output") is True)
    headers = {names.REVISION_HEADER: answer.version, names.PREDICTION_ID_HEADER: str(answer.parameters["mulle_prediction_id"])}
    if n_json is None:
        return Response(200, body, JSON, headers)
    headers[HEADER_LENGTH] = str(n_json)
    return Response(200, body, _BINARY, headers)


def _shaped(status: int, sentence: str, plain: Response) -> Response:
    beside = cast("dict[str, Any]", msgspec.json.decode(plain.body))["error"]
    return Response(status, msgspec.json.encode({**beside, "error": sentence}), JSON, plain.headers)


def _refuse(
    status: int, code: str, what: str, fix: str, request: Request | None = None, *, headers: Mapping[str, str] | None = None
) -> Response:
    del request
    return _shaped(status, f"[{code}] {what}; {fix}", problem(status, code, what, fix=fix, headers=headers))


def _live(request: Request) -> Response:
    del request
    return _json({"live": True})


def _json(content: object, status: int = 200) -> Response:
    return Response(status, msgspec.json.encode(content))


def _bad_encoding(what: str) -> SpecError:
    return SpecError(
        "oip-encoding",
        f"the body is not what content-encoding says: {what[:80]}",
        fix="send it as it is, or compress it whole",
        where="content-encoding",
    )
