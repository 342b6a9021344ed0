"""Targets around plain handlers: a request in, a response out, now or later."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from mulle.serve.http.connection import Connection
from mulle.serve.http.heads import Head
from mulle.serve.http.messages import Handler, Request, Response, problem

LOG = logging.getLogger("mulle.serve")


class Exchange:
    """The slot of a request that a plain handler answers."""

    __slots__ = ("_connection", "_head", "cancelled", "data", "keep", "task")

    def __init__(self, connection: Connection, head: Head) -> None:
        self._connection = connection
        self._head = head
        self.keep = head.keep
        self.data: bytes | None = None
        self.cancelled = False
        self.task: asyncio.Task[None] | None = None

    def cancel(self) -> None:
        """Take note that the client has gone: what works for it ends, and leaves its batch."""
        self.cancelled = True
        if self.task is not None:
            self.task.cancel()

    def answer(self, response: Response) -> None:
        """Send `response` when its turn has come."""
        head = self._head
        self._connection.respond(self, response, extra=head.extra, head_only=head.method == "HEAD")


class Plain:
    """A target around a handler that gives a response, or something to await for it.

    Handlers of one connection begin a few per turn of the loop, so that nobody's pipeline keeps the others waiting.

    Args:
        handler: Gives the answer.
        admit: Returns why a request is refused, or None; asked once for each request.
        early: The same, before a large body is read; asked besides.
        takes_views: Whether `handler` takes a view of a large body instead of bytes.
    """

    def __init__(
        self,
        handler: Handler,
        *,
        admit: Callable[[Head], Response | None] | None = None,
        early: Callable[[Head], Response | None] | None = None,
        takes_views: bool = False,
    ) -> None:
        self.takes_views = takes_views
        self._handler = handler
        self._admit = admit
        self._early = early
        self._tasks: set[asyncio.Task[None]] = set()

    def refuse_early(self, head: Head) -> Response | None:
        """Return why a request with a large body is refused before that is read, or None."""
        return None if self._early is None else self._early(head)

    def begin(self, connection: Connection, head: Head, body: bytes) -> None:
        """Answer, now or later."""
        exchange = Exchange(connection, head)
        connection.slots.append(exchange)
        connection.enqueue(lambda: self._work(exchange, head, body))

    def _work(self, exchange: Exchange, head: Head, body: bytes) -> None:
        if exchange.cancelled:
            return
        refusal = None if self._admit is None else self._admit(head)
        if refusal is not None:
            exchange.answer(refusal)
            return
        try:
            answer = self._handler(Request(head.method, head.path, head.query, head.headers, body))
        except Exception:
            LOG.exception("a request to %s failed", head.path)
            answer = _internal()
        if isinstance(answer, Response):
            exchange.answer(answer)
            return
        exchange.task = task = asyncio.ensure_future(self._await(answer, exchange, head))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _await(self, answer: Awaitable[Response], exchange: Exchange, head: Head) -> None:
        try:
            response = await answer
        except Exception:
            LOG.exception("a request to %s failed", head.path)
            response = _internal()
        exchange.answer(response)


def _internal() -> Response:
    return problem(500, "internal", "the server failed on this request", fix="ask the operator: the server's log has the reason")
