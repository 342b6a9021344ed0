"""From a key somebody shows to who that is: the ring of known keys, reloaded while the server runs.

`KeyRing.check` finds an entry by the key's id and compares hashes in constant time; an id nobody has is compared with a hash
nobody knows, so that both cases do the same work. What it returns may be remembered for as long as `generation` stays what
it is: a change of the document and the end of a key's time both raise it.
"""

import hmac
import logging
import secrets
from dataclasses import dataclass
from pathlib import Path

from mulle.core.errors import MulleError, SpecError
from mulle.formats.api_keys import ALL, MAX_KEY_CHARACTERS, ApiKey, KeySource, hash_key, id_of, parse_keys, read_keys
from mulle.serve.access.rates import Limiter, RateTable

LOG = logging.getLogger("mulle.serve")
POLL_S = 0.5
"""How often to call `KeyRing.poll`: a revoked key must stop within a second."""


@dataclass(frozen=True, slots=True)
class Principal:
    """Who asks.

    Attributes:
        id: The key's id; empty for whoever asks a server that wants no keys.
        name: The key's name.
        deployments: What it may ask; None: everything.
        metrics: Whether it may read `/metrics`.
        expires_ns: From when on it is refused; 0: never.
        limiter: Its rate limit; None: unlimited.
    """

    id: str
    name: str
    deployments: frozenset[str] | None = None
    metrics: bool = True
    expires_ns: int = 0
    limiter: Limiter | None = None


ANYBODY = Principal("", "anybody")
"""Who asks a server that wants no keys."""


class KeyRing:
    """The keys one worker knows.

    Args:
        source: Where they come from.
        required: Refuse to start without any; the server can be reached from other machines.
        rates: Where the workers of this server count requests.
        now_ns: Nanoseconds since 1970-01-01 UTC.

    Attributes:
        generation: Rises whenever an answer of `check` may have changed.
        wanted: Whether a request needs a key: always when `required`, else from the first key document on. A document that
            goes away again does not open the server: then nobody is let in.
        error: Why the newest document is not used, while the last good one still is; None when all is well.

    Raises:
        SpecError, CheckError: the document cannot be read, or keys are required and there are none.
    """

    def __init__(self, source: KeySource, *, required: bool, rates: RateTable, now_ns: int) -> None:
        self.generation = 0
        self.error: MulleError | None = None
        self._source = source
        self._path = None if source.path is None else Path(source.path)
        self._rates = rates
        self._stamp: tuple[int, ...] | None = None
        self._entries: dict[str, tuple[bytes, Principal]] = {}
        self._next_expiry_ns = 0
        self._nobody = secrets.token_bytes(32)
        if self._path is None:
            self._take(parse_keys((source.text or "").encode(), where="[env.…] api_key"), now_ns)
        elif (stamp := _stamp_of(self._path)) is not None:
            self._take(read_keys(self._path), now_ns)
            self._stamp = stamp
        if required and not self._entries:
            raise SpecError(
                "keys-missing",
                "other machines can reach this server, and there is no API key yet",
                fix="mulle keys create NAME, then start again; or --host 127.0.0.1",
                where=source.path or "[env.…] api_key",
            )
        self.wanted = required or self._path is None or self._stamp is not None

    def __len__(self) -> int:
        return len(self._entries)

    def check(self, key: str) -> Principal | None:
        """Return whose key this is, expired ones included; None when it is nobody's.

        Args:
            key: As it was sent; more than 256 characters are not even hashed.
        """
        shown = key if len(key) <= MAX_KEY_CHARACTERS else ""
        digest, principal = self._entries.get(id_of(shown), (self._nobody, None))
        return principal if hmac.compare_digest(hash_key(shown), digest) else None

    def poll(self, now_ns: int) -> bool:
        """Take over a changed document, and note whose time has ended; return whether anything changed. Never raises.

        Call it every `POLL_S` seconds; it costs one `stat`. A document that cannot be read changes nothing but `error`. One
        that is gone lets nobody in: whoever removes it means that.

        Args:
            now_ns: Nanoseconds since 1970-01-01 UTC.
        """
        before = self.generation
        if 0 < self._next_expiry_ns <= now_ns:
            self._rise(now_ns)
        if self._path is not None and (stamp := _stamp_of(self._path)) != self._stamp:
            self._stamp = stamp
            self._reload(self._path, now_ns, gone=stamp is None)
        return self.generation != before

    def _reload(self, path: Path, now_ns: int, *, gone: bool) -> None:
        try:
            keys = () if gone else read_keys(path)
        except (MulleError, OSError) as error:
            self.error = error if isinstance(error, MulleError) else None
            LOG.error("the API keys were not reloaded, the last good ones are used: %s", error)  # noqa: TRY400 - one line, no traceback
            return
        self.error = None
        self.wanted = True
        self._take(keys, now_ns)
        LOG.info("API keys reloaded: %d", len(keys))

    def _take(self, keys: tuple[ApiKey, ...], now_ns: int) -> None:
        self._entries = {key.id: (bytes.fromhex(key.sha256), self._principal(key)) for key in keys}
        self._rise(now_ns)

    def _rise(self, now_ns: int) -> None:
        self.generation += 1
        times = (principal.expires_ns for _, principal in self._entries.values())
        self._next_expiry_ns = min((time for time in times if time > now_ns), default=0)

    def _principal(self, key: ApiKey) -> Principal:
        return Principal(
            key.id,
            key.name,
            deployments=None if ALL in key.deployments else frozenset(key.deployments),
            metrics=key.metrics or ALL in key.deployments,
            expires_ns=key.expires_ns or 0,
            limiter=None if key.rate_per_s is None else self._rates.limiter(key.id, key.rate_per_s, key.burst),
        )


def _stamp_of(path: Path) -> tuple[int, ...] | None:
    """Return what changes when a file is replaced or written; None where there is none.

    A file that cannot be looked at (a folder without permission) is not the same as none: reading it will say why.
    """
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    except OSError:
        return ()
    return (found.st_ino, found.st_mtime_ns, found.st_size, found.st_mode)
