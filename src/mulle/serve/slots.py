"""The listening sockets of N workers on one port: made before any worker starts, kept open until the last one has ended.

A connection that was accepted by the kernel waits in the queue of one socket. As long as somebody holds that socket open the
queue lives, whoever dies: the next worker of the slot takes it over. On Linux each slot has a socket of its own
(`SO_REUSEPORT`), and the kernel spreads connections over them; elsewhere all slots share one.
"""

import contextlib
import socket
import sys
from collections.abc import Sequence

from mulle.core.errors import SpecError, UnavailableError

BACKLOG = 1024


def open_slots(host: str, port: int, n: int, *, one_each: bool | None = None) -> tuple[socket.socket, ...]:
    """Return n listening, non-blocking sockets on one address; where slots share one socket, the same object n times.

    Args:
        host: A name or an address.
        port: 0 takes a free one.
        n: Slots, at least 1.
        one_each: Whether each slot has its own; None: where the kernel spreads connections (Linux).

    Raises:
        SpecError: `serve-address`.
        UnavailableError: `serve-port`: something listens there already, another server with `SO_REUSEPORT` included.
    """
    own = sys.platform == "linux" if one_each is None else one_each
    try:
        family, kind, proto, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except (OSError, OverflowError, UnicodeError) as error:
        raise SpecError(
            "serve-address", f"cannot listen on {host!r} port {port}: {error}", fix="check --host and --port", where="--host"
        ) from error
    opened: list[socket.socket] = []
    try:
        for number in range(n if own else 1):
            listener = socket.socket(family, kind, proto)
            opened.append(listener)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if number > 0:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                address = (address[0], opened[0].getsockname()[1], *address[2:])
            listener.bind(address)
            if own and number == 0:
                # The first one takes the port for itself: with the option set it would join a server that is there already,
                # and take half of its connections. Set afterwards, it lets the others in.
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            listener.listen(BACKLOG)
            listener.setblocking(False)
    except OSError as error:
        close_slots(opened)
        raise UnavailableError(
            "serve-port",
            f"cannot listen on {host} port {port}: {error.strerror}",
            fix=f"stop what listens there, or use --port {port + 1}",
            where="--port",
        ) from error
    return tuple(opened) if own else tuple(opened * n)


def reserve_port(host: str, port: int) -> socket.socket:
    """Return a bound socket that does not listen: it keeps a port for sockets with `SO_REUSEPORT` that workers open themselves (gRPC).

    Args:
        host: A name or an address.
        port: 0 takes a free one, for all workers the same.

    Raises:
        SpecError, UnavailableError: as `open_slots`.
    """
    # Listening for a moment, and alone, is how one is told of somebody who listens there already.
    probe = open_slots(host, port, 1, one_each=False)[0]
    address = probe.getsockname()
    reserved = socket.socket(probe.family, socket.SOCK_STREAM)
    probe.close()
    reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    reserved.bind(address)
    return reserved


def close_slots(slots: Sequence[socket.socket]) -> None:
    """Close every socket; those that workers hold go on."""
    for listener in slots:
        listener.close()


def accept_rest(listener: socket.socket) -> list[socket.socket]:
    """Return every connection that waits in a queue, at once: what is closed with connections in it resets them.

    To be called by a worker that ends, directly before it closes its server; each connection then goes to
    `loop.connect_accepted_socket`.
    """
    waiting: list[socket.socket] = []
    with contextlib.suppress(OSError):  # no more, or the socket is closed already
        while True:
            connection, _ = listener.accept()
            connection.setblocking(False)
            waiting.append(connection)
    return waiting
