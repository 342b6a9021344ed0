"""`mulle serve` in a process of its own, and load on it from another one."""

import json
import os
import subprocess
import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mulle.formats import telemetry
from mulle.serve.loadtest.processes import measure
from mulle.serve.loadtest.requests import Body, render_request
from mulle.serve.loadtest.result import Load, Result
from support.http_client import RawClient

ROW: dict[str, Any] = {"tenure": 1, "monthly": 70, "계약": "월별"}
MULLE = [sys.executable, "-c", "import sys; from mulle.apps.cli.main import main; sys.exit(main())"]


@dataclass
class LiveServer:
    """A server that listens."""

    process: "subprocess.Popen[bytes]"
    host: str
    port: int
    state: Path
    output: Path

    @property
    def pid(self) -> int:
        """Of the server."""
        return self.process.pid

    @property
    def rss_mb(self) -> float:
        """Resident memory."""
        pages = int(Path(f"/proc/{self.pid}/statm").read_text(encoding="ascii").split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e6

    @property
    def n_files(self) -> int:
        """Open descriptors."""
        return len(list(Path(f"/proc/{self.pid}/fd").iterdir()))

    def client(self, timeout_s: float = 10.0) -> RawClient:
        """Return a new connection."""
        return RawClient(self.host, self.port, timeout_s)

    def health(self) -> Any:
        """Return what /health says."""
        with self.client() as client:
            return client.request("GET", "/health").json

    def metric(self, name: str) -> float:
        """Return the sum of a metric over its labels; 0 while it was never counted, LookupError where there is none such."""
        if name not in vars(telemetry).values():
            raise LookupError(name)
        with self.client() as client:
            lines = client.request("GET", "/metrics").body.decode().splitlines()
        found = [line for line in lines if line.startswith((f"{name} ", f"{name}{{"))]
        return sum(float(line.rpartition(" ")[2]) for line in found)

    def log(self) -> str:
        """Return what it wrote to its standard error."""
        return self.output.read_text(encoding="utf-8")


@contextmanager
def live_server(
    project: Path, *arguments: str, bundle: Path | None = None, settings: str = "", preexec: Any = None
) -> Generator[LiveServer]:
    """Start `mulle serve` on a folder, or on the project's specs with `settings` as its [serving], and end it with the block."""
    project.mkdir(parents=True, exist_ok=True)
    command = [*MULLE, "serve", "--port", "0", "--json", "-p", str(project), *arguments]
    if bundle is not None:
        command += ["--bundle", str(bundle), "--deployment", "churn"]
    if settings or bundle is None:
        head = '[project]\nname = "churn"\ncode = "project:project"\n'
        (project / "mulle.toml").write_text(f"{head}\n{settings}", encoding="utf-8")
        (project / "project.py").write_text("", encoding="utf-8")
    output = project / "server.log"
    with output.open("wb") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, preexec_fn=preexec)  # noqa: PLW1509 - the test starts no threads before
    try:
        text = b""
        assert process.stdout is not None
        while not text.endswith(b"}\n"):
            line = process.stdout.readline()
            assert line, output.read_text(encoding="utf-8")
            text += line
        told = json.loads(text)
        yield LiveServer(process, told["host"], told["port"], project / ".mulle", output)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def predict_request(server: LiveServer, rows: Sequence[Any] = (ROW,), **headers: str) -> bytes:
    """Return a whole request for predictions."""
    body = Body(json.dumps(list(rows), ensure_ascii=False).encode())
    return render_request(
        "/predict", body, headers=[(k.replace("_", "-"), v) for k, v in headers.items()], host=f"{server.host}:{server.port}"
    )


def loaded(server: LiveServer, **changes: Any) -> Result:
    """Return what came back from a load of single-row requests, asked from a process of its own."""
    given = {"requests": (predict_request(server),), "warmup_s": 0.3} | changes
    return measure(Load(host=server.host, port=server.port, **given)).result
