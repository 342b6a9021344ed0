"""Who is asked: an address that may be loaded, and the example its server shows."""

import ipaddress
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from mulle.core.errors import SpecError, UnavailableError

_TIMEOUT_S = 5.0
_MAX_DOCUMENT = 16 << 20
_OK = 200


@dataclass(frozen=True, slots=True)
class Target:
    """An address.

    Attributes:
        host: Name or address.
        port: TCP port.
        path: Path and query; empty where none was given.
    """

    host: str
    port: int
    path: str = ""

    @property
    def authority(self) -> str:
        """Host and port as the `host` header says them."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_url(text: str) -> Target:
    """Return the target of `http://host:port/path`; the scheme may be left out.

    Raises:
        SpecError: no address, or https: what terminates TLS would be measured, not the server.
    """
    full = text if "://" in text else f"http://{text}"
    try:
        parts = urlsplit(full)
        port = parts.port
    except ValueError as error:
        raise _bad_url(text) from error
    if parts.scheme == "https":
        raise SpecError(
            "loadtest-url",
            "the generator speaks plain HTTP",
            fix="load the server behind its TLS proxy: http://host:port",
            where=text[:200],
        )
    if parts.scheme != "http" or not parts.hostname or parts.username is not None or port == 0:
        raise _bad_url(text)
    path = parts.path if parts.path != "/" else ""
    return Target(parts.hostname, 80 if port is None else port, path + (f"?{parts.query}" if parts.query else ""))


def is_loopback(host: str) -> bool:
    """Return whether every address of `host` is this machine's own loopback.

    Raises:
        UnavailableError: the name has no address.
    """
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise UnavailableError(
            "loadtest-unreachable", f"the name {host[:200]!r} has no address", fix="check the host in the URL"
        ) from error
    return all(ipaddress.ip_address(str(entry[4][0]).partition("%")[0]).is_loopback for entry in found)


def require_may_load(target: Target, *, allowed: bool) -> bool:
    """Return whether the target is this machine; another one only when somebody said that it may be loaded.

    Raises:
        SpecError: it is another machine, and nobody did.
    """
    local = is_loopback(target.host)
    if not local and not allowed:
        raise SpecError(
            "loadtest-remote",
            f"{target.host!r} is another machine: a load test can take it down, and everybody it serves",
            fix="load a server of your own on this machine, or say --i-may-load-this-host",
        )
    return local


def fetch_document(target: Target, path: str, headers: Sequence[tuple[str, str]]) -> bytes:
    """Return what the server answers to GET `path`.

    Raises:
        UnavailableError: nobody listens, or the answer is no 200; the status is named.
    """
    import http.client

    connection = http.client.HTTPConnection(target.host, target.port, timeout=_TIMEOUT_S)
    try:
        connection.request("GET", path, headers=dict(headers))
        answer = connection.getresponse()
        body = answer.read(_MAX_DOCUMENT)
    except (OSError, http.client.HTTPException) as error:
        raise UnavailableError(
            "loadtest-unreachable",
            f"nobody answers at {target.authority}: {type(error).__name__}",
            fix="start the server first: mulle serve",
        ) from error
    finally:
        connection.close()
    if answer.status != _OK:
        raise UnavailableError(
            "loadtest-no-example",
            f"{path} was answered with status {answer.status}",
            fix="say what to send: --bundle DIR, --input rows.jsonl, or --body FILE; an API key comes with --api-key-env NAME",
            where=target.authority,
        )
    return body


def _bad_url(text: str) -> SpecError:
    return SpecError("loadtest-url", f"{text[:200]!r} is no address of a server", fix="mulle loadtest http://127.0.0.1:8080")
