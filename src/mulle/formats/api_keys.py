"""API keys as they are kept: a document of hashes, read by every worker, changed under a lock.

    .mulle/keys.json                 mode 0600; written aside and renamed, so that no reader sees a part

A key is `mk_<id>_<secret>`: 12 hexadecimal digits that name it, 64 that prove it. What is stored is the SHA-256 of the whole
text. A slow hash (argon2, scrypt) protects secrets that people choose; against 256 random bits there is nothing to guess,
and its cost would be paid by the server for every key somebody makes up.
"""

import contextlib
import fcntl
import hashlib
import os
import re
import secrets
import stat
import time
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from mulle.core.errors import CheckError, ConflictError, SpecError, UnavailableError
from mulle.core.names import require_name
from mulle.formats.envelope import decode_document, read_limited

FORMAT = "mulle.api-keys"
VERSION = 1
FILE_NAME = "keys.json"
ALL = "*"
BARE_ID = "0" * 12
"""The id of a key that was given as plain text and has none of its own."""
MAX_KEYS = 4096
MAX_DOCUMENT_BYTES = 4 << 20
MAX_KEY_CHARACTERS = 256
MIN_BARE_CHARACTERS = 32
MAX_RATE_PER_S = 1e6
_ID_BYTES, _SECRET_BYTES = 6, 32
_LOCK_TIMEOUT_S = 10.0
_LOCK_POLL_S = 0.02
_KEY = re.compile(r"mk_([0-9a-f]{12})_([0-9a-f]{64})")


class ApiKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is kept of one key.

    Attributes:
        id: 12 hexadecimal digits, part of the key itself; not secret.
        name: For people; unique.
        sha256: Of the whole key, in hexadecimal.
        created_ns: When it was made, nanoseconds since 1970-01-01 UTC.
        deployments: Which deployments it may ask; `*` is all of them, nothing is none.
        metrics: Whether it may read `/metrics`.
        rate_per_s: Requests per second in the long run; None: unlimited.
        burst: Requests that may come at once; None: as many as one second brings.
        expires_ns: From when on it is refused; None: never.
    """

    id: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{12}$")]
    name: Annotated[str, msgspec.Meta(min_length=1, max_length=63)]
    sha256: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}$")]
    created_ns: int
    deployments: tuple[str, ...] = (ALL,)
    metrics: bool = False
    rate_per_s: Annotated[float, msgspec.Meta(gt=0, le=MAX_RATE_PER_S)] | None = None
    burst: Annotated[int, msgspec.Meta(ge=1, le=int(MAX_RATE_PER_S))] | None = None
    expires_ns: int | None = None


class KeyDocument(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """All keys of one server."""

    format: Literal["mulle.api-keys"] = FORMAT
    version: Literal[1] = VERSION
    keys: tuple[ApiKey, ...] = ()


class KeySource(msgspec.Struct, frozen=True, kw_only=True):
    """Where keys come from: a file that is watched, or a text that was resolved at the start. Exactly one is set.

    Attributes:
        path: A key document, or a file with one key as plain text.
        text: The same, as text; never show it.
    """

    path: str | None = None
    text: str | None = None


def make_key(
    name: str,
    *,
    now_ns: int,
    deployments: Sequence[str] = (ALL,),
    metrics: bool = False,
    rate_per_s: float | None = None,
    burst: int | None = None,
    expires_ns: int | None = None,
) -> tuple[ApiKey, str]:
    """Return what is kept of a new key, and the key itself, which is kept nowhere.

    Args:
        name: For people: letters and digits of any script.
        now_ns: When it is made.
        deployments: Names, or `*` alone.
        metrics: Whether it may read `/metrics`.
        rate_per_s: In (0, 1e6]; None: unlimited.
        burst: In [1, 1e6]; wants a rate.
        expires_ns: Later than now; None: never.

    Raises:
        SpecError: a name, rate, burst or time that cannot be.
    """
    require_name(name, "a key")
    for deployment in deployments:
        if deployment != ALL:
            require_name(deployment, "a deployment")
    if ALL in deployments and len(deployments) > 1:
        raise SpecError("key-options", "'*' already names every deployment", fix="name deployments, or '*' alone", where="--deployment")
    if rate_per_s is not None and not 0 < rate_per_s <= MAX_RATE_PER_S:
        raise SpecError("key-options", f"the rate is {rate_per_s!r} per second", fix="give a number above 0, up to 1000000", where="--rate")
    if burst is not None and (rate_per_s is None or not 1 <= burst <= MAX_RATE_PER_S):
        what = "a burst without a rate limits nothing" if rate_per_s is None else f"the burst is {burst!r} requests"
        raise SpecError("key-options", what, fix="give --rate, and a burst from 1 to 1000000", where="--burst")
    if expires_ns is not None and expires_ns <= now_ns:
        raise SpecError("key-options", "the key would have expired already", fix="give a later time", where="--expires")
    key_id = secrets.token_hex(_ID_BYTES)
    text = f"mk_{key_id}_{secrets.token_hex(_SECRET_BYTES)}"
    kept = ApiKey(
        id=key_id,
        name=name,
        sha256=hash_key(text).hex(),
        created_ns=now_ns,
        deployments=tuple(dict.fromkeys(deployments)),
        metrics=metrics,
        rate_per_s=rate_per_s,
        burst=burst,
        expires_ns=expires_ns,
    )
    return kept, text


def hash_key(text: str) -> bytes:
    """Return the 32 bytes that are kept of a key."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


def id_of(text: str) -> str:
    """Return the id a key names: 12 characters, hexadecimal or whatever was sent; `BARE_ID` where the shape is another."""
    return text[3:15] if len(text) > 16 and text.startswith("mk_") and text[15] == "_" else BARE_ID  # noqa: PLR2004 - the shape


def read_keys(path: Path) -> tuple[ApiKey, ...]:
    """Return the keys of a document, or the one key of a file that holds it as plain text.

    Raises:
        SpecError: the file is missing, too large, or other users may write it.
        CheckError: it is neither, or two keys have one id or name.
    """
    data = read_limited(path, max_bytes=MAX_DOCUMENT_BYTES)
    # Reading hashes helps nobody; adding one would let its author in.
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o022:
        raise SpecError(
            "keys-writable",
            f"the key file {path.name!r} has mode {mode:o}: other users may write keys into it",
            fix=f"chmod 600 {path}",
            where=str(path),
        )
    return parse_keys(data, where=str(path))


def parse_keys(data: bytes, *, where: str) -> tuple[ApiKey, ...]:
    """Return the keys in a document, or the one key that `data` is as plain text.

    Args:
        data: UTF-8; JSON when it begins with a brace.
        where: The file or reference, for the error; the text itself is never shown.

    Raises:
        CheckError: not a key document, another version, too many keys, or two with one id or name.
        SpecError: a plain key that is too short to be random, too long, or has characters no header can carry.
    """
    if not data.lstrip().startswith(b"{"):
        return (_bare_key(data, where),)
    document = decode_document(data, KeyDocument, name=FORMAT, version=VERSION, where=where)
    ids, names = {key.id for key in document.keys}, {key.name for key in document.keys}
    if len(document.keys) > MAX_KEYS or min(len(ids), len(names)) < len(document.keys):
        n = len(document.keys)
        what = f"there are {n:,} keys; the limit is {MAX_KEYS:,}" if n > MAX_KEYS else "two keys have the same id or name"
        raise CheckError("keys-ambiguous", what, fix="change the document with `mulle keys`, not by hand", where=where)
    return document.keys


def add_key(path: Path, key: ApiKey) -> None:
    """Put a key into the document at `path`, which is made (mode 0600) if there is none.

    Raises:
        ConflictError: a key has that name already, or another process holds the lock for too long.
        CheckError, SpecError: the document cannot be read; it is left as it is.
        UnavailableError: it cannot be written.
    """
    with _locked(path):
        keys = _kept(path)
        if any(other.name == key.name for other in keys):
            raise ConflictError(
                "key-exists",
                f"there is a key called {key.name!r} already",
                fix=f"choose another name, or `mulle keys revoke {key.name}` first",
                where=str(path),
            )
        if len(keys) >= MAX_KEYS:
            raise SpecError("keys-too-many", f"there are {len(keys):,} keys already", fix="revoke some: mulle keys list", where=str(path))
        _write(path, (*keys, key))


def revoke_key(path: Path, name_or_id: str) -> ApiKey:
    """Take a key out of the document at `path` and return what was kept of it.

    Raises:
        SpecError: there is no such key.
        ConflictError, CheckError, UnavailableError: as `add_key`.
    """
    with _locked(path):
        keys = _kept(path)
        # A name goes before an id: names are what people type.
        found = next((key for key in keys if key.name == name_or_id), None) or next((key for key in keys if key.id == name_or_id), None)
        if found is None:
            raise SpecError("key-unknown-name", f"there is no key called {name_or_id[:80]!r}", fix="mulle keys list", where=str(path))
        _write(path, tuple(key for key in keys if key.id != found.id))
    return found


def list_keys(path: Path) -> tuple[ApiKey, ...]:
    """Return the keys of the document at `path`, oldest first; none where there is no file.

    Raises:
        CheckError, SpecError: the document cannot be read.
    """
    return _kept(path)


def _kept(path: Path) -> tuple[ApiKey, ...]:
    if not path.exists():
        return ()
    keys = read_keys(path)
    if any(key.name == _BARE_NAME and key.created_ns == 0 for key in keys):
        raise SpecError(
            "keys-elsewhere",
            f"{path.name!r} holds one key as plain text, and no document to add keys to",
            fix="move it away, or point [env.…] api_key at another file",
            where=str(path),
        )
    return keys


_BARE_NAME = "api_key"


def _bare_key(data: bytes, where: str) -> ApiKey:
    text = data.decode("latin-1").strip()
    if not MIN_BARE_CHARACTERS <= len(text) <= MAX_KEY_CHARACTERS or not all("!" <= c <= "~" for c in text):
        raise SpecError(
            "key-weak",
            f"the key has {len(text)} characters, or some that no header can carry; nothing but its length keeps it from being guessed",
            fix=f"take {MIN_BARE_CHARACTERS} to {MAX_KEY_CHARACTERS} random characters: openssl rand -hex 32",
            where=where,
        )
    match = _KEY.fullmatch(text)
    key_id = match.group(1) if match else BARE_ID if id_of(text) == BARE_ID else id_of(text)
    if re.fullmatch(r"[0-9a-f]{12}", key_id) is None:
        raise SpecError(
            "key-weak", "the key begins like one of Mulle's, and is none", fix="take the whole key, or another text", where=where
        )
    return ApiKey(id=key_id, name=_BARE_NAME, sha256=hash_key(text).hex(), created_ns=0)


@contextlib.contextmanager
def _locked(path: Path) -> Generator[None]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path.with_name(f".{path.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise _unwritable(path, error) from error
    try:
        deadline = time.monotonic() + _LOCK_TIMEOUT_S
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise ConflictError(
                        "keys-locked", "another process is changing the keys", fix="wait for it and try again", where=str(path)
                    ) from None
                time.sleep(_LOCK_POLL_S)
        yield
    finally:
        os.close(descriptor)


def _write(path: Path, keys: tuple[ApiKey, ...]) -> None:
    data = msgspec.json.format(msgspec.json.encode(KeyDocument(keys=keys)), indent=1) + b"\n"
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            draft.replace(path)
        except BaseException:
            draft.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise _unwritable(path, error) from error


def _unwritable(path: Path, error: OSError) -> UnavailableError:
    return UnavailableError(
        "keys-unwritable",
        f"the key file {path.name!r} cannot be written: {error.strerror}",
        fix="make its folder writable for this user, or name another file with --file",
        where=str(path),
    )
