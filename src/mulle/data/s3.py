# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false, reportMissingTypeStubs=false
"""One S3 object: its bytes with a token, or the token alone by a HEAD. boto3 is imported when it is needed."""

from collections.abc import Mapping
from contextlib import closing
from typing import Any
from urllib.parse import urlsplit

from mulle.core.errors import SpecError, UnavailableError
from mulle.data.place import current_folder
from mulle.data.secrets import expand_secrets, is_reference, scrub

_TIMEOUT_S = 10
_CLIENT_OPTIONS = ("endpoint_url", "region", "access_key", "secret_key")


def split_uri(uri: str) -> tuple[str, str]:
    """Return bucket and key of `s3://bucket/key`.

    Raises:
        SpecError: not such a URI.
    """
    parts = urlsplit(uri)
    key = uri.partition("://")[2].partition("/")[2]
    if parts.scheme != "s3" or not parts.netloc or "@" in parts.netloc or not key:
        raise SpecError("s3-uri", f"{scrub(uri, ())!r} is not an S3 object", fix="write s3://bucket/path/customers.parquet")
    return parts.netloc, key


def get_object(uri: str, options: Mapping[str, str], *, max_bytes: int) -> tuple[bytes, str | None]:
    """Return an object's bytes and its token.

    Raises:
        SpecError: no such object, refused credentials, larger than `max_bytes`, boto3 not installed.
        UnavailableError: the store does not answer.
    """
    bucket, key = split_uri(uri)
    client, secrets = _client(options)
    try:
        answer = client.get_object(Bucket=bucket, Key=key)
        with closing(answer["Body"]) as body:
            size = int(answer["ContentLength"])
            if size > max_bytes:
                raise SpecError(
                    "source-too-large",
                    f"{uri!r} has {size:,} bytes; the limit is {max_bytes:,}",
                    fix="read a part of it in the source, or raise max_bytes",
                    where=uri,
                )
            return body.read(), _token(answer)
    except _failures() as error:
        raise _translate(error, uri, options, secrets) from None
    finally:
        client.close()


def head_token(uri: str, options: Mapping[str, str]) -> str | None:
    """Return the object's token as it is now, by one HEAD.

    Raises:
        SpecError: as `get_object`.
        UnavailableError: the store does not answer.
    """
    bucket, key = split_uri(uri)
    client, secrets = _client(options)
    try:
        return _token(client.head_object(Bucket=bucket, Key=key))
    except _failures() as error:
        raise _translate(error, uri, options, secrets) from None
    finally:
        client.close()


def _token(answer: Mapping[str, Any]) -> str | None:
    version, etag = answer.get("VersionId"), answer.get("ETag")
    if version and version != "null":
        return f"version:{version}"
    return f"etag:{str(etag).strip(chr(34))}" if etag else None


def _client(options: Mapping[str, str]) -> tuple[Any, tuple[str, ...]]:
    try:
        import boto3
        from botocore.config import Config
    except ImportError as error:
        raise SpecError("missing-extra", "reading from S3 needs boto3", fix='pip install "mulle[s3]"') from error
    values: dict[str, str] = {}
    secrets: list[str] = []
    for name in _CLIENT_OPTIONS:
        if name in options:
            values[name], found = expand_secrets(options[name], root=current_folder())
            secrets.extend(found)
    config = Config(connect_timeout=_TIMEOUT_S, read_timeout=6 * _TIMEOUT_S, retries={"max_attempts": 3, "mode": "standard"})
    try:
        client = boto3.client(
            "s3",
            endpoint_url=values.get("endpoint_url"),
            region_name=values.get("region"),
            aws_access_key_id=values.get("access_key"),
            aws_secret_access_key=values.get("secret_key"),
            config=config,
        )
    except ValueError as error:
        raise SpecError("s3-refused", f"S3 cannot be asked: {scrub(str(error), secrets)}", fix="check endpoint_url and region") from None
    return client, tuple(secrets)


def require_references(options: Mapping[str, str]) -> None:
    """Return if credentials are given by reference.

    Raises:
        SpecError: a key stands there as a value.
    """
    for name in ("access_key", "secret_key"):
        if name in options and not is_reference(options[name]):
            raise SpecError(
                "secret-literal", f"{name} is given as a value", fix=f'put it into the environment and write {name}="env://NAME"'
            )


def _failures() -> tuple[type[Exception], ...]:
    from botocore.exceptions import BotoCoreError, ClientError

    return (BotoCoreError, ClientError, OSError)


def _translate(error: Exception, uri: str, options: Mapping[str, str], secrets: tuple[str, ...]) -> SpecError | UnavailableError:
    """Return Mulle's error for one of boto's: missing, refused, or not answering."""
    response = getattr(error, "response", None) or {}
    code = str(response.get("Error", {}).get("Code", ""))
    status = int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    text = scrub(str(error), secrets)
    kind = type(error).__name__
    if code in ("NoSuchKey", "NoSuchBucket", "404", "NotFound"):
        what = "bucket" if code == "NoSuchBucket" else "object"
        return SpecError("source-missing", f"there is no {what} at {uri!r}", fix="check the URI; list it with: aws s3 ls", where=uri)
    if status in (400, 401, 403) or kind in ("NoCredentialsError", "PartialCredentialsError"):
        return SpecError(
            "s3-refused",
            f"S3 refuses to show {uri!r}: {text}",
            fix='give access_key="env://…" and secret_key="env://…", or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY',
            where=uri,
        )
    place = options.get("endpoint_url", "AWS")
    return UnavailableError(
        "source-unavailable", f"S3 ({place}) does not answer: {text}", fix="check the network and endpoint_url, then retry", where=uri
    )
