"""Which target answers a path: from a method and a path to what reads the body and spells the answer. No sockets, no graphs."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TypeAlias
from urllib.parse import unquote

import msgspec

from mulle.core.errors import MulleError, UnavailableError
from mulle.formats import telemetry as names
from mulle.formats.feedback_log import FeedbackItem
from mulle.serve.http.cors import NO_CORS, CorsPolicy, preflight
from mulle.serve.http.heads import Head
from mulle.serve.http.messages import Request, Response, Target, problem, problem_of
from mulle.serve.http.plain import Plain
from mulle.serve.plane.dataplane import DataPlane
from mulle.serve.plane.deployment import Deployment, Serving
from mulle.serve.protocols.codec_json import parse_feedback
from mulle.serve.protocols.gate import Gate
from mulle.serve.protocols.headers import require_json
from mulle.serve.protocols.invocations import invocations
from mulle.serve.protocols.oip_rest import OipRoutes, as_oip
from mulle.serve.protocols.openapi import CONTENT_POLICY, Api, render_docs, render_openapi
from mulle.serve.protocols.predict import DEFAULT_MAX_ROWS, Completer, Observer, Pictures, PredictTarget
from mulle.serve.state import ServerState
from mulle.serve.telemetry.metrics import CONTENT_TYPE

LOG = logging.getLogger("mulle.serve")
_PREFIX = "/deployments/"
_MAX_TARGETS = 1_000
_Handler: TypeAlias = "Callable[[Request], Response | Awaitable[Response]]"


class Routes:
    """The targets of every path.

    Args:
        plane: Answers predictions, takes feedback.
        state: What `/health` and readiness say.
        gate: Decides who may ask.
        oip: The Open Inference Protocol's paths.
        max_rows: Rows (or feedback items) per request.
        cors: Which web pages may ask.
        pictures: Reads image uploads; None: pictures are refused.
        completer: Completes rows from an online store; None: requests carry everything.
        observer: Is told of every prediction answered.
    """

    def __init__(
        self,
        plane: DataPlane,
        state: ServerState,
        gate: Gate,
        oip: OipRoutes,
        *,
        max_rows: int = DEFAULT_MAX_ROWS,
        cors: CorsPolicy = NO_CORS,
        pictures: Pictures | None = None,
        completer: Completer | None = None,
        observer: Observer | None = None,
    ) -> None:
        self._plane = plane
        self._state = state
        self._gate = gate
        self._oip = oip
        self._max_rows = max_rows
        self._cors = cors
        self._pictures = pictures
        self._completer = completer
        self._observer = observer
        self._feedback_locks: dict[str, asyncio.Lock] = {}
        self._preflight = Plain(self._answer_preflight)
        self._known: dict[tuple[str, str], Target] = {}
        known = gate.admit_anybody_known
        self._fixed: dict[str, dict[str, Target]] = {
            "/health": {"GET": Plain(self._health)},
            "/metrics": {"GET": Plain(self._metrics, admit=gate.admit_metrics)},
            "/openapi.json": {"GET": Plain(self._openapi, admit=known)},
            "/docs": {"GET": Plain(self._docs, admit=known)},
            "/": {"GET": Plain(self._home)},
            **self._of_deployment(""),
        }

    def __call__(self, method: str, path: str) -> Target:
        """Return what answers a method and path; an error is a target too. Never raises."""
        found = self._known.get((method, path))
        if found is None:
            found = self._find(method, path)
            if len(self._known) < _MAX_TARGETS:
                self._known[method, path] = found
        return found

    def _find(self, method: str, path: str) -> Target:
        if method == "OPTIONS" and self._cors.origins:
            return self._preflight
        wanted = "GET" if method == "HEAD" else method
        methods = self._fixed.get(path)
        if methods is None and path.startswith(_PREFIX):
            methods = self._in_deployment(path)
        if methods is not None:
            target = methods.get(wanted)
            if target is not None:
                return target
            allowed = ", ".join([*methods, "HEAD"] if "GET" in methods else methods)
            return _refusal(
                405,
                "method-not-allowed",
                f"{path[:100]} does not take {method[:20]}",
                f"use {allowed}",
                path,
                {"allow": allowed},
            )
        handler = self._oip.match(path, method)
        if handler is not None:
            return self._guarded(handler, path)
        return _refusal(404, "route-unknown", f"there is no {path[:100]!r} here", "see /docs", path)

    def _in_deployment(self, path: str) -> dict[str, Target] | None:
        name, _, rest = path.removeprefix(_PREFIX).partition("/")
        try:
            # Once, and only to look the name up among those that are served.
            name = unquote(name, errors="strict")
        except UnicodeDecodeError:
            return None
        return self._of_deployment(name).get(f"/{rest}") if name else None

    def _of_deployment(self, name: str) -> dict[str, dict[str, Target]]:
        admit = self._gate.admits(lambda _: name)
        predict = PredictTarget(
            self._plane,
            self._gate,
            name,
            max_rows=self._max_rows,
            pictures=self._pictures,
            completer=self._completer,
            observer=self._observer,
        )
        return {
            "/predict": {"POST": predict},
            "/invocations": {"POST": Plain(lambda request: self._invocations(name, request), admit=admit, early=self._early(name))},
            "/feedback": {"POST": Plain(lambda request: self._feedback(name, request), admit=admit, early=admit)},
        }

    def _guarded(self, handler: _Handler, path: str) -> Target:
        parts = path.split("/")
        if parts[1:3] == ["v2", "health"]:
            return Plain(handler)
        if parts[1:3] == ["v2", "models"] and len(parts) > 3:  # noqa: PLR2004 - /v2/models/NAME
            name = unquote(parts[3], errors="replace")
            admit = self._gate.admits(lambda _: name)
            return Plain(handler, admit=_spoken(admit), early=_spoken(self._early(name)), takes_views=True)
        return Plain(handler, admit=_spoken(self._gate.admit_anybody_known))

    def _early(self, name: str) -> Callable[[Head], Response | None]:
        """Return the check of a large body before it is read: who asks, and whether there is room."""

        def check(head: Head) -> Response | None:
            refusal = self._gate.admit_anybody_known(head)
            if refusal is not None:
                return refusal
            try:
                served = self._plane.pick(name)
            except MulleError:
                return None
            error = self._plane.refusal(served, max(head.n_body, 0), self._plane.monotonic_ns())
            return None if error is None else problem_of(error)

        return check

    def _answer_preflight(self, request: Request) -> Response:
        answer = preflight(self._cors, request)
        return answer or problem(405, "method-not-allowed", "this is no question of a browser", fix="use GET or POST")

    async def _invocations(self, name: str, request: Request) -> Response:
        return await invocations(self._plane, request, max_rows=self._max_rows, deployment=name, completer=self._completer)

    async def _feedback(self, name: str, request: Request) -> Response:
        plane = self._plane
        home: Deployment | None = None
        try:
            home = plane.deployment(name)
            require_json(request.headers)
            parsed = parse_feedback(request.body, classes=home.serving.classes, max_items=self._max_rows)
            now_ns = plane.now_ns()
            items = [msgspec.structs.replace(item, time_ns=now_ns, known=home.knows(item.prediction_id)) for item in parsed]
            # Shielded: a client that leaves must not let the next one in while the disk is still being written.
            n_unknown = await asyncio.shield(self._append_feedback(home, items))
            for known, n in (("true", len(items) - n_unknown), ("false", n_unknown)):
                plane.registry.counter(names.FEEDBACK, deployment=home.name, known=known).add(n)
            response = Response(200, msgspec.json.encode({"accepted": len(items), "unknown": n_unknown}))
        except MulleError as error:
            if isinstance(error, UnavailableError):
                LOG.warning("feedback could not be kept: %s", error)
            response = problem_of(error)
        except Exception:
            LOG.exception("feedback failed")
            response = problem(
                500, "internal", "the server failed on this request", fix="ask the operator: the server's log has the reason"
            )
        if home is not None:
            home.count("/feedback", 0, response.status)
        return response

    async def _append_feedback(self, home: Deployment, items: Sequence[FeedbackItem]) -> int:
        """Return how many items are about unknown ids, after the disk has them: in a thread, one at a time."""
        async with self._feedback_locks.setdefault(home.name, asyncio.Lock()):
            return await asyncio.get_running_loop().run_in_executor(None, self._plane.accept_feedback, home, items)

    def _health(self, request: Request) -> Response:
        status = 200 if self._state.ready else 503
        if self._gate.wants_keys and self._gate.is_stranger(request.headers):
            return Response(status, msgspec.json.encode({"status": self._state.status}))
        return Response(status, msgspec.json.encode(self._state.to_dict(d.serving for d in self._plane.deployments.values())))

    def _metrics(self, request: Request) -> Response:
        del request
        return Response(200, self._plane.registry.render().encode(), CONTENT_TYPE)

    def _openapi(self, request: Request) -> Response:
        del request
        return Response(200, render_openapi(self._servings(), self._state.examples, self._api()))

    def _docs(self, request: Request) -> Response:
        del request
        page = render_docs(self._servings(), self._state.examples, keys=self._gate.wants_keys)
        return Response(
            200, page, "text/html; charset=utf-8", {"content-security-policy": CONTENT_POLICY, "x-content-type-options": "nosniff"}
        )

    def _servings(self) -> list[Serving]:
        return [deployment.serving for deployment in self._plane.deployments.values()]

    def _api(self) -> Api:
        return Api(keys=self._gate.wants_keys, max_rows=self._max_rows)

    def _home(self, request: Request) -> Response:
        del request
        return Response(307, b"", "text/plain", {"location": "/docs"})


def _spoken(check: Callable[[Head], Response | None]) -> Callable[[Head], Response | None]:
    """Return a check whose refusals the Open Inference Protocol's clients can read."""

    def checked(head: Head) -> Response | None:
        found = check(head)
        return None if found is None else as_oip(found)

    return checked


def _refusal(status: int, code: str, what: str, fix: str, path: str, headers: Mapping[str, str] | None = None) -> Target:
    response = problem(status, code, what, fix=fix, where=path[:100], headers=headers)
    return Plain(lambda _: response)
