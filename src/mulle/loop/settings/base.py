"""What every table of `mulle.toml` shares: the base class, and the types of values that need more than a range."""

import re
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

Scalar = bool | int | float | str
Share = Annotated[float, Field(ge=0.0, le=1.0)]

_DURATION = re.compile(r"(\d+)\s*(s|m|h|d)")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_PASSWORD = re.compile(r"^[\w+.\-]+://[^/@\s:]*:(\$\{[^}]*\}|[^/@\s]+)@")
_EMBEDDED = re.compile(r"^\$\{(env|file)://[^}]+\}$")
_CRON_FIELDS = 5


def duration_s(text: str) -> int:
    """Return the length of a duration such as `30s`, `15m`, `6h` or `2d`, in seconds; ValueError when it is none."""
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is no duration: write a whole number and s, m, h or d, such as '6h'")
    return int(match.group(1)) * _SECONDS[match.group(2)]


def _duration(text: str) -> str:
    duration_s(text)
    return text


def _no_plain_secret(text: str) -> str:
    match = _PASSWORD.match(text)
    if match is not None and _EMBEDDED.match(match.group(1)) is None:
        raise ValueError(
            "a password stands in the file: write ${env://NAME} in its place, or put the whole address elsewhere and write 'env://NAME' or 'file://path'"
        )
    return text


def _secret_reference(text: str) -> str:
    if not text.startswith(("env://", "file://")):
        raise ValueError("secrets are given by reference only: write 'env://NAME' or 'file://path'")
    return text


def _cron(text: str) -> str:
    fields = text.split()
    if len(fields) != _CRON_FIELDS or not all(re.fullmatch(r"[\d*/,\-]+", field) for field in fields):
        raise ValueError(f"{text!r} is no schedule: write five cron fields, such as '0 2 * * *'")
    return text


def _public_key(text: str) -> str:
    if re.fullmatch(r"(ed25519:)?[0-9a-f]{64}", text) is None:
        raise ValueError("this is no public key: write 'ed25519:' and 64 hexadecimal digits (`mulle doctor` shows yours)")
    return text


def _margin(value: Any) -> Any:
    """Accept `true` as a table of defaults; `false` is the key left out."""
    return {} if value is True else None if value is False else value


Duration = Annotated[str, AfterValidator(_duration)]
Address = Annotated[str, Field(min_length=1), AfterValidator(_no_plain_secret)]
SecretReference = Annotated[str, AfterValidator(_secret_reference)]
Schedule = Annotated[str, AfterValidator(_cron)]
PublicKey = Annotated[str, AfterValidator(_public_key)]
TrueIsDefaults = BeforeValidator(_margin)
"""Accepts `true` as a table of defaults."""


class Table(BaseModel):
    """One table of `mulle.toml`: frozen, and nothing in it that is not named here."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, hide_input_in_errors=True, protected_namespaces=(), defer_build=True
    )
