"""Secrets by reference: `env://NAME` and `file://path`, resolved at the last moment and never shown.

A reference stands alone (`env://DATABASE_URL`) or inside a longer text (`postgresql://app:${env://DB_PASSWORD}@db/shop`),
where its value is percent-encoded, as URIs want it. What is written down (freshness, events, logs, errors) is always the
reference.
"""

import os
import re
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import quote, urlsplit

from mulle.core.errors import SpecError

MAX_SECRET_BYTES = 64 << 10
_REFERENCE = re.compile(r"(env|file)://(.+)", re.DOTALL)
_EMBEDDED = re.compile(r"\$\{((?:env|file)://[^}]+)\}")
_SHORTEST_SCRUBBED = 4


def is_reference(text: str) -> bool:
    """Return whether `text` as a whole is a reference to a secret."""
    return _REFERENCE.fullmatch(text) is not None


def resolve_secret(reference: str, *, root: Path | None = None) -> str:
    """Return the secret a reference points at.

    Args:
        reference: `env://NAME`, or `file://path`; a file's trailing line break is not part of the secret.
        root: The folder relative paths start from; by default the current one.

    Raises:
        SpecError: not a reference, an unset or empty variable, or an unreadable, empty, too large or non-UTF-8 file. The
            error shows the reference, never the value.
    """
    match = _REFERENCE.fullmatch(reference)
    if match is None:
        raise SpecError("secret-reference", "a secret is given as a value", fix="put it into the environment and write env://NAME")
    kind, name = match.groups()
    if kind == "env":
        value = os.environ.get(name)
        if not value:
            state = "is not set" if value is None else "is empty"
            raise SpecError(
                "secret-missing", f"the environment variable {name[:80]!r} {state}", fix=f"export {name[:80]}=…", where=reference[:200]
            )
        return value
    return _read_secret_file((root or Path.cwd()) / name, reference[:200])


def expand_secrets(text: str, *, root: Path | None = None) -> tuple[str, tuple[str, ...]]:
    """Return `text` with every reference replaced, and the secrets that went in (for `scrub`).

    A text that is one reference becomes its value as it is; inside a longer text values are percent-encoded.

    Raises:
        SpecError: as `resolve_secret`.
    """
    if is_reference(text):
        value = resolve_secret(text, root=root)
        return value, tuple(part for part in (value, _password_of(value)) if part)
    secrets: list[str] = []

    def replace(match: re.Match[str]) -> str:
        value = resolve_secret(match.group(1), root=root)
        encoded = quote(value, safe="")
        secrets.extend({value, encoded})
        return encoded

    return _EMBEDDED.sub(replace, text), tuple(secrets)


def require_no_password(uri: str, what: str) -> None:
    """Return if `uri` has no literal password in it.

    Raises:
        SpecError: it has; the error does not show it.
    """
    if is_reference(uri) or not (password := _password_of(_EMBEDDED.sub("", uri))):
        return
    shown = uri.replace(password, "…")
    raise SpecError(
        "secret-literal",
        f"{what} carries its password in plain text: {shown[:200]!r}",
        fix=f"export DB_PASSWORD=… and write {uri.replace(password, '${env://DB_PASSWORD}')[:200]!r}",
    )


def scrub(text: str, secrets: Iterable[str], *, limit: int = 300) -> str:
    """Return `text` in one line of at most `limit` characters, with every secret replaced by `…`."""
    for secret in sorted(secrets, key=len, reverse=True):
        if len(secret) >= _SHORTEST_SCRUBBED:
            text = text.replace(secret, "…")
    line = " ".join(text.split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


def _password_of(uri: str) -> str | None:
    try:
        return urlsplit(uri).password
    except ValueError:
        return None


def _read_secret_file(path: Path, reference: str) -> str:
    problem = None
    try:
        with path.open("rb") as file:
            data = file.read(MAX_SECRET_BYTES + 1)
        if len(data) > MAX_SECRET_BYTES:
            problem = f"has more than {MAX_SECRET_BYTES:,} bytes"
        elif not data.strip():
            problem = "is empty"
        else:
            return data.decode("utf-8").rstrip("\r\n")
    except OSError as error:
        problem = f"cannot be read: {error.strerror}"
    except UnicodeDecodeError:
        problem = "is not UTF-8"
    raise SpecError(
        "secret-missing", f"the secret file {path.name[:80]!r} {problem}", fix="write the secret into that file, mode 0600", where=reference
    )
