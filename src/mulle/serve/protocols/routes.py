"""What each path does: from a request to an answer, through codec and data plane. It knows no sockets and no graphs."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TypeAlias

import msgspec

from mulle.core.errors import MulleError, SpecError, UnavailableError
from mulle.formats import telemetry as names
from mulle.serve.http.messages import JSON, Request, Response, problem, problem_of
from mulle.serve.plane.dataplane import DataPlane, Served
from mulle.serve.protocols.codec_json import encode_body, parse_feedback, parse_predict, render_predictions
from mulle.serve.protocols.openapi import CONTENT_POLICY, render_docs, render_openapi
from mulle.serve.state import ServerState
from mulle.serve.telemetry import metrics as metrics_text

LOG = logging.getLogger("mulle.serve")
DEFAULT_MAX_ROWS = 10_000
MAX_HEADER_VALUE = 256
_Route: TypeAlias = "Callable[[Request], Response | Awaitable[Response]]"


class Routes:
    """The handler of every request.

    Args:
        plane: Answers predictions, takes feedback.
        state: What `/health` and readiness say.
        max_rows: Rows (or feedback items) per request.
    """

    def __init__(self, plane: DataPlane, state: ServerState, *, max_rows: int = DEFAULT_MAX_ROWS) -> None:
        self._plane = plane
        self._state = state
        self._max_rows = max_rows
        self._feedback_lock = asyncio.Lock()
        self._routes: dict[str, dict[str, _Route]] = {
            "/predict": {"POST": self._predict},
            "/feedback": {"POST": self._feedback},
            "/health": {"GET": self._health},
            "/v2/health/live": {"GET": self._live},
            "/v2/health/ready": {"GET": self._ready},
            "/metrics": {"GET": self._metrics},
            "/openapi.json": {"GET": self._openapi},
            "/docs": {"GET": self._docs},
            "/": {"GET": self._home},
        }

    def __call__(self, request: Request) -> Response | Awaitable[Response]:
        """Return the answer, or something to await for it; never raises for what a caller sent."""
        methods = self._routes.get(request.path)
        if methods is None:
            return problem(404, "route-unknown", f"there is no {request.path[:100]!r} here", fix="see /docs", where=request.path[:100])
        route = methods.get("GET" if request.method == "HEAD" else request.method)
        if route is None:
            allowed = ", ".join([*methods, "HEAD"] if "GET" in methods else methods)
            return problem(
                405,
                "method-not-allowed",
                f"{request.path} does not take {request.method[:20]}",
                fix=f"use {allowed}",
                where=request.path,
                headers={"allow": allowed},
            )
        try:
            return route(request)
        except Exception:
            LOG.exception("a request to %s failed", request.path)
            return problem(500, "internal", "the server failed on this request", fix="ask the operator: the server's log has the reason")

    def _predict(self, request: Request) -> Response:
        plane = self._plane
        started_ns = plane.monotonic_ns()
        served: Served | None = None
        unlogged = False
        try:
            _require_json(request)
            body = parse_predict(request.body, max_rows=self._max_rows)
            served = plane.choose(pinned=request.headers.get(names.REVISION_HEADER), unit=_bounded_header(request, names.UNIT_HEADER))
            encoded = encode_body(body, served.manifest, header_id=request.headers.get(names.PREDICTION_ID_HEADER))
            answer = plane.predict(served, encoded.arrays, started_ns=started_ns, ids=encoded.ids, entity=encoded.entity)
            content = {
                "predictions": render_predictions(served.manifest, answer.scores),
                "prediction_ids": answer.ids,
                "model": served.source.model,
                "model_version": served.source.model_version,
                "revision": served.number,
            }
            response = Response(200, msgspec.json.encode(content), JSON, _prediction_headers(served, answer.ids[0]))
        except MulleError as error:
            unlogged = isinstance(error, UnavailableError)
            response = problem_of(error, None if served is None else _prediction_headers(served, None))
            if response.status == 500:  # noqa: PLR2004 - the status itself
                LOG.warning("a prediction failed: %s", error)
        except Exception:
            LOG.exception("a prediction failed")
            response = problem(
                500, "internal", "the server failed on this request", fix="ask the operator: the server's log has the reason"
            )
        plane.count("/predict", response.status, served=served, seconds=(plane.monotonic_ns() - started_ns) / 1e9, unlogged=unlogged)
        return response

    async def _feedback(self, request: Request) -> Response:
        plane = self._plane
        try:
            _require_json(request)
            parsed = parse_feedback(request.body, classes=plane.serving.classes, max_items=self._max_rows)
            now_ns = plane.now_ns()
            items = [msgspec.structs.replace(item, time_ns=now_ns, known=plane.knows(item.prediction_id)) for item in parsed]
            # The sync to disk takes milliseconds: in a thread, one at a time, while predictions go on.
            async with self._feedback_lock:
                n_unknown = await asyncio.get_running_loop().run_in_executor(None, plane.accept_feedback, items)
            deployment = plane.serving.deployment
            plane.metrics.add(names.FEEDBACK, len(items) - n_unknown, deployment=deployment, known="true")
            plane.metrics.add(names.FEEDBACK, n_unknown, deployment=deployment, known="false")
            response = Response(200, msgspec.json.encode({"accepted": len(items), "unknown": n_unknown}))
        except MulleError as error:
            response = problem_of(error)
        except Exception:
            LOG.exception("feedback failed")
            response = problem(
                500, "internal", "the server failed on this request", fix="ask the operator: the server's log has the reason"
            )
        plane.count("/feedback", response.status, served=None, seconds=0.0)
        return response

    def _health(self, request: Request) -> Response:
        del request
        return Response(200 if self._state.ready else 503, msgspec.json.encode(self._state.to_dict(self._plane.serving)))

    def _live(self, request: Request) -> Response:
        del request
        return Response(200, b'{"live":true}')

    def _ready(self, request: Request) -> Response:
        del request
        return Response(200, b'{"ready":true}') if self._state.ready else Response(503, b'{"ready":false}')

    def _metrics(self, request: Request) -> Response:
        del request
        return Response(200, self._plane.metrics.render().encode(), metrics_text.CONTENT_TYPE)

    def _openapi(self, request: Request) -> Response:
        del request
        return Response(200, render_openapi(self._plane.serving, self._state.example))

    def _docs(self, request: Request) -> Response:
        del request
        page = render_docs(self._plane.serving, self._state.example)
        return Response(
            200, page, "text/html; charset=utf-8", {"content-security-policy": CONTENT_POLICY, "x-content-type-options": "nosniff"}
        )

    def _home(self, request: Request) -> Response:
        del request
        return Response(307, b"", "text/plain", {"location": "/docs"})


def _prediction_headers(served: Served, prediction_id: str | None) -> dict[str, str]:
    headers = {names.REVISION_HEADER: str(served.number)}
    if prediction_id is not None:
        headers[names.PREDICTION_ID_HEADER] = prediction_id
    return headers


def _require_json(request: Request) -> None:
    kind = request.headers.get("content-type", "")
    media, _, parameters = kind.partition(";")
    media = media.strip().lower()
    charset = parameters.lower().replace(" ", "").replace('"', "")
    wrong = not (media in {"", JSON} or (media.startswith("application/") and media.endswith("+json")))
    wrong |= "charset=" in charset and "charset=utf-8" not in charset
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if wrong or encoding != "identity":
        raise SpecError(
            "body-media-type",
            f"the body is {kind[:80]!r}" + ("" if encoding == "identity" else f", encoded as {encoding[:20]!r}"),
            fix="send uncompressed JSON with the header content-type: application/json",
            where="content-type",
        )


def _bounded_header(request: Request, name: str) -> str | None:
    value = request.headers.get(name)
    if value is not None and len(value) > MAX_HEADER_VALUE:
        raise SpecError("header-invalid", f"{name} has {len(value):,} characters", fix=f"send at most {MAX_HEADER_VALUE}", where=name)
    return value
