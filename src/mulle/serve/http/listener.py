"""All connections of one worker: their limits, clocks and end."""

import asyncio
import email.utils
import time
from collections.abc import Callable
from typing import NamedTuple, cast

import httptools

from mulle.serve.http.checks import Limits, RawHead
from mulle.serve.http.connection import Connection
from mulle.serve.http.heads import HeadCache
from mulle.serve.http.messages import Target

_MAX_PLACES = 1_000
_MAX_HOSTS = 64


class Place(NamedTuple):
    """Where a request line leads."""

    path: str
    query: str
    target: Target


class HttpServer:
    """All connections of one worker.

    Args:
        route: Gives the target of a method and path; never raises.
        limits: See `Limits`.
        allowed_hosts: Names the Host and Origin headers may carry, against DNS rebinding; None: any.
        cors: Gives the header lines an answer to this Origin carries, or None where the origin is not allowed.

    Attributes:
        is_full: Says whether connections that were already heard should wait; None: they never do.
    """

    def __init__(
        self,
        route: Callable[[str, str], Target],
        *,
        limits: Limits,
        allowed_hosts: frozenset[str] | None,
        cors: Callable[[str], str | None] | None = None,
    ) -> None:
        self.route = route
        self.limits = limits
        self.allowed_hosts = allowed_hosts
        self.cors = cors
        self.is_full: Callable[[], bool] | None = None
        self.draining = False
        self.heads = HeadCache()
        self.names: dict[bytes, str] = {}
        self.places: dict[tuple[str, bytes], Place] = {}
        self.plain_hosts: set[str] = set()
        self.connections: set[Connection] = set()
        self.empty = asyncio.Event()
        self.n_bytes_in = 0
        self.n_bytes_out = 0
        self.n_accepted = 0
        self.date = ""
        self.idle_deadline = 0.0
        self._date_s: int = 0
        self.tick(asyncio.get_running_loop().time())

    def __call__(self) -> Connection:
        """Return the protocol of a new connection."""
        return Connection(self)

    def find_place(self, method: str, url: bytes) -> Place:
        """Return what a checked request line means; what was asked before is looked up without this."""
        parts = httptools.parse_url(url)
        path = (cast("bytes | None", parts.path) or b"/").decode("latin-1")
        query = (cast("bytes | None", parts.query) or b"").decode("latin-1")
        place = Place(path, query, self.route(method, path))
        if len(self.places) < _MAX_PLACES:
            self.places[method, url] = place
        return place

    def learn_host(self, head: RawHead) -> None:
        """Remember the Host header of a head that passed every check."""
        hosts = head.all("host")
        if len(hosts) == 1 and len(self.plain_hosts) < _MAX_HOSTS:
            self.plain_hosts.add(hosts[0])

    @property
    def n_in_flight(self) -> int:
        """Requests received and not yet answered."""
        return sum(len(connection.slots) for connection in self.connections)

    def tick(self, now: float) -> None:
        """Set the clocks that only need to be right to a quarter of a second."""
        self.idle_deadline = now + self.limits.idle_timeout_s
        seconds = int(time.time())
        if seconds != self._date_s:
            self._date_s, self.date = seconds, email.utils.formatdate(seconds, usegmt=True)

    def sweep(self, now: float) -> None:
        """End the connections whose time is over; call it a few times a second."""
        self.tick(now)
        for connection in list(self.connections):
            connection.expire(now)

    def drain(self) -> None:
        """From now on every answer is the last of its connection."""
        self.draining = True
        if not self.connections:
            self.empty.set()

    def close_idle(self) -> int:
        """Close the connections that ask nothing, and return their number."""
        return sum(connection.close_if_idle() for connection in list(self.connections))

    def forget(self, connection: Connection) -> None:
        """Take note of a connection that has ended; `empty` is set when the last one has, while draining."""
        self.connections.discard(connection)
        if self.draining and not self.connections:
            self.empty.set()

    def abort(self) -> None:
        """Cut every connection."""
        for connection in list(self.connections):
            connection.abort()
