"""How the log's sink is named, and which one that is.

A sink is named by a URL: `file:///var/lib/mulle`, a path, or `s3://bucket/prefix?endpoint=https://s3.example.com&region=eu`.
Credentials never stand in it: they come from the environment, as every S3 tool finds them.
"""

from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlsplit

from mulle.core.errors import SpecError
from mulle.serve.journal.sink import Sink
from mulle.serve.journal.sink_folder import FolderSink
from mulle.serve.journal.sink_s3 import S3Sink

_OPTIONS = frozenset({"endpoint", "region"})


def open_sink(url: str) -> Sink:
    """Return the sink a URL names; nothing is asked of it yet.

    Raises:
        SpecError: `log-sink-url`: not such a URL; `log-sink-secret`: credentials stand in it; `missing-extra`: boto3 is not here.
    """
    parts = urlsplit(url)
    if parts.scheme not in {"", "file", "s3"}:
        raise _bad_url("it begins with neither s3:// nor file://")
    if "@" in parts.netloc:
        raise _secret()
    if parts.scheme == "s3":
        options = dict(parse_qsl(parts.query, keep_blank_values=True))
        if not set(options) <= _OPTIONS:
            # Values are not shown: somebody may have put a key there.
            raise _secret() if any("key" in name.lower() or "secret" in name.lower() for name in options) else _bad_url("an unknown option")
        endpoint = urlsplit(options.get("endpoint", ""))
        if "@" in endpoint.netloc:
            raise _secret()
        if not parts.netloc or (options.get("endpoint") and endpoint.scheme not in {"http", "https"}):
            raise _bad_url("the bucket or the endpoint is missing")
        return S3Sink(parts.netloc, unquote(parts.path).strip("/"), endpoint=options.get("endpoint"), region=options.get("region"))
    path = Path(unquote(parts.path) if parts.scheme else url)
    if (parts.scheme and parts.netloc not in {"", "localhost"}) or not path.is_absolute():
        raise _bad_url("a folder is given by its absolute path")
    return FolderSink(path)


def _bad_url(why: str) -> SpecError:
    return SpecError(
        "log-sink-url",
        f"the log's sink is not understood: {why}",
        fix="write s3://bucket/prefix?endpoint=https://…&region=…, file:///folder or an absolute path",
        where="sink",
    )


def _secret() -> SpecError:
    return SpecError(
        "log-sink-secret",
        "credentials stand in the URL of the log's sink",
        fix="take them out, change them, and set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or use a role",
        where="sink",
    )
