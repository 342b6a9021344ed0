# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false, reportMissingTypeStubs=false
"""Encoded segments in an S3-compatible store. boto3 is imported when it is needed."""

import base64
import hashlib
from contextlib import closing
from pathlib import Path
from typing import Any

from mulle.core.errors import CheckError, MulleError, SpecError, UnavailableError
from mulle.serve.journal.sink import Stored, require_same

_CONNECT_S = 5
_READ_S = 30
_CHUNK_BYTES = 1 << 20
_DIGEST = "mulle-sha256"
_REFUSED = (400, 401, 403)
_EXISTS = (409, 412)
_NO_CONDITIONS = (501, 405)


class S3Sink:
    """A prefix of a bucket.

    The store is asked to take the object only if there is none (`If-None-Match: *`), and to compare its MD5 on arrival;
    afterwards size and checksum are read back. A store without conditional writes is asked for the object first.

    Args:
        bucket: Its name.
        prefix: Before every name; may be empty.
        endpoint: URL of a store that is not AWS.
        region: By default what boto3 finds.

    Raises:
        SpecError: `missing-extra`, or `log-sink-url` where endpoint or region make no sense.
    """

    def __init__(self, bucket: str, prefix: str, *, endpoint: str | None = None, region: str | None = None) -> None:
        self._bucket, self._prefix, self._endpoint = bucket, prefix, endpoint
        try:
            from boto3.session import Session
            from botocore.config import Config
        except ImportError as error:
            raise SpecError("missing-extra", "shipping the log to S3 needs boto3", fix='pip install "mulle[s3]"') from error
        # Tries are counted and spread by whoever calls; checksums beyond MD5 are unknown to many stores.
        options: dict[str, Any] = {"connect_timeout": _CONNECT_S, "read_timeout": _READ_S, "retries": {"total_max_attempts": 1}}
        when_required = {"request_checksum_calculation": "when_required", "response_checksum_validation": "when_required"}
        try:
            config = Config(**options, **when_required)
        except TypeError:  # before boto3 1.36 there was nothing to turn off
            config = Config(**options)
        try:
            # A session of its own: the shared one would keep credentials it once found.
            self._client: Any = Session().client(
                "s3", endpoint_url=endpoint, region_name=region or _default_region(endpoint), config=config
            )
        except ValueError as error:
            raise SpecError(
                "log-sink-url", "S3 cannot be asked: endpoint or region is invalid", fix="check the sink's URL", where=self.describe()
            ) from error

    def put(self, name: str, path: Path, sha256: str) -> None:
        """Upload once, as the port says."""
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != sha256:
            raise self._differs(name, "the file here", "it changed since it was measured")
        md5 = hashlib.md5(content, usedforsecurity=False)
        request: dict[str, Any] = {
            "Bucket": self._bucket,
            "Key": self._key(name),
            "Body": content,
            "ContentMD5": base64.b64encode(md5.digest()).decode(),
            "ContentType": "application/octet-stream",
            "Metadata": {_DIGEST: sha256},
        }
        self._send(request, name, sha256)
        there = self._read_back(name, md5.hexdigest(), sha256)
        if there != Stored(len(content), sha256):
            raise self._differs(name, "there", "nothing" if there is None else f"{there.n_bytes:,} bytes")

    def exists(self, name: str) -> Stored | None:
        """Return size and digest of the object, read in full: the digest is of its bytes, not of what somebody noted."""
        try:
            answer = self._client.get_object(Bucket=self._bucket, Key=self._key(name))
            digest, n_bytes = hashlib.sha256(), 0
            with closing(answer["Body"]) as body:
                while chunk := body.read(_CHUNK_BYTES):
                    digest.update(chunk)
                    n_bytes += len(chunk)
        except _failures() as error:
            if _code(error)[1] == 404 and _code(error)[0] != "NoSuchBucket":  # noqa: PLR2004 - HTTP: not found
                return None
            raise self._translate(error) from None
        return Stored(n_bytes, digest.hexdigest())

    def describe(self) -> str:
        """Return bucket, prefix and endpoint."""
        return f"s3://{self._bucket}/{self._prefix}" + (f" at {self._endpoint}" if self._endpoint else "")

    def _differs(self, name: str, label: str, text: str) -> CheckError:
        return CheckError(
            "log-sink-verify",
            f"{name!r} does not read back as the segment that was to be kept",
            fix="nothing was deleted here; look at the object, remove it there, and it is sent again",
            where=self.describe(),
            facts={label: text},
        )

    def _key(self, name: str) -> str:
        return f"{self._prefix}/{name}" if self._prefix else name

    def _send(self, request: dict[str, Any], name: str, sha256: str) -> None:
        """Put the object if there is none; one that is there must be the same."""
        # A try that was cut off may have arrived: whatever is there is compared before anything is sent.
        there = self._head(name)
        if there is None:
            try:
                self._client.put_object(**request, IfNoneMatch="*")
            except _failures() as error:
                if _code(error)[1] in _NO_CONDITIONS:
                    self._put_plain(request)
                    return
                if _code(error)[1] not in _EXISTS:
                    raise self._translate(error) from None
            else:
                return
        found = self.exists(name)
        if found is not None:
            require_same(name, found, sha256, self.describe())

    def _put_plain(self, request: dict[str, Any]) -> None:
        try:
            self._client.put_object(**request)
        except _failures() as error:
            raise self._translate(error) from None

    def _head(self, name: str) -> dict[str, Any] | None:
        try:
            return self._client.head_object(Bucket=self._bucket, Key=self._key(name))
        except _failures() as error:
            if _code(error)[1] == 404:  # noqa: PLR2004 - HTTP: not found
                return None
            raise self._translate(error) from None

    def _read_back(self, name: str, md5: str, sha256: str) -> Stored | None:
        answer = self._head(name)
        if answer is None:
            return None
        # The store's own MD5 of what it holds, where it gives one, saves reading everything again.
        if str(answer.get("ETag", "")).strip('"') == md5:
            return Stored(int(answer["ContentLength"]), sha256)
        return self.exists(name)

    def _translate(self, error: Exception) -> MulleError:
        """Return Mulle's error for one of boto's: only its code is shown, messages may quote requests."""
        code, status = _code(error)
        shown = code or type(error).__name__
        if (
            status in _REFUSED
            or code == "NoSuchBucket"
            or shown in {"NoCredentialsError", "PartialCredentialsError", "TokenRetrievalError"}
        ):
            return SpecError(
                "log-sink-refused",
                f"{self.describe()} refuses the log: {shown}",
                fix="check the bucket and AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY (or the role): it must list, get and put objects",
                where=self.describe(),
            )
        return UnavailableError(
            "log-sink-unavailable",
            f"{self.describe()} does not answer: {shown}{f' ({status})' if status else ''}",
            fix="check the network and the endpoint; the segments wait here and are sent again",
            where=self.describe(),
        )


def _default_region(endpoint: str | None) -> str | None:
    # Stores that are not AWS take any region, and boto3 insists on one.
    import os

    return None if endpoint is None else os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"


def _failures() -> tuple[type[Exception], ...]:
    from botocore.exceptions import BotoCoreError, ClientError

    return (BotoCoreError, ClientError, OSError)


def _code(error: Exception) -> tuple[str, int]:
    """Return the store's code and the HTTP status; empty and 0 where nobody answered."""
    response = getattr(error, "response", None) or {}
    return str(response.get("Error", {}).get("Code", ""))[:60], int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
