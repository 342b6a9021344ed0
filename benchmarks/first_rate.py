"""The same sealed model behind `mulle serve` and the peers: cold start, memory, and a first honest rate."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from load import ask_once, drive, free_port, request_bytes, tree, tree_cpu_s, tree_memory_mib
from measure import BIN, HERE, Context, SkippedError, Values, column, headline, quiet_environment, report, table, take_turns
from venvs import peer_bin

START_TIMEOUT_S = 60.0
CONNECTIONS = (1, 16)
TOUCH_S = 0.02


@dataclass(frozen=True, slots=True)
class Contestant:
    """One server: how it is started on a port, and a request it understands."""

    command: Callable[[int], Sequence[Any]]
    request: bytes
    env: dict[str, str]


class Server:
    """A started server that has answered its first prediction."""

    def __init__(self, contestant: Contestant, folder: Path) -> None:
        self.port = free_port()
        self.log = folder / f"server-{self.port}.log"
        began = time.perf_counter()
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [str(part) for part in contestant.command(self.port)],
                cwd=folder,
                stdout=log,
                stderr=log,
                env=quiet_environment(contestant.env),
                start_new_session=True,
            )
        status = None
        while status != 200:
            if self.process.poll() is not None or time.perf_counter() - began > START_TIMEOUT_S:
                said = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
                self.stop()
                raise SkippedError(f"it did not answer a prediction (last status {status}): {' '.join(said)[-200:]}")
            status = ask_once(self.port, contestant.request)
            if status != 200:
                time.sleep(TOUCH_S)
        self.cold_start_s = time.perf_counter() - began
        self.start_cpu_s = tree_cpu_s(self.process.pid)

    def stop(self) -> None:
        """End it and everything it started."""
        everyone = tree(self.process.pid)
        self.process.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):  # what is left is killed below
            self.process.wait(10)
        for pid in everyone:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self.process.wait()


def contestants_of(project: Path) -> dict[str, Contestant]:
    """Return the servers, each with the same row of the same model."""
    (bundle,) = (project / ".mulle" / "bundles").iterdir()
    row = json.loads((bundle / "golden.json").read_text(encoding="utf-8"))["rows"][0]
    columns = json.loads((bundle / "bundle.json").read_text(encoding="utf-8"))["columns"]
    row = {one["name"]: row.get(one["name"]) for one in columns}
    home = {"BUNDLE": str(bundle), "BENTOML_HOME": str(project / ".bentoml")}
    mlmodel = next((project / ".mulle" / "mlflow" / "artifacts").rglob("MLmodel"), None)
    own = [str(HERE / "peers")]

    def predict(body: Any, path: str = "/predict") -> bytes:
        return request_bytes(path, json.dumps(body, ensure_ascii=False).encode("utf-8"))

    def mlflow(port: int) -> list[Any]:
        if mlmodel is None:
            raise SkippedError("the run left no MLflow model")
        return [BIN / "mlflow", "models", "serve", "-m", mlmodel.parent, "--env-manager", "local", "-h", "127.0.0.1", "-p", port, "-w", 1]

    def bento(port: int) -> list[Any]:
        return [peer_bin("bentoml") / "bentoml", "serve", "bento_service:Churn", "--working-dir", *own, "--port", port]

    return {
        "mulle serve": Contestant(lambda port: [BIN / "mulle", "serve", "--project", project, "--port", port], predict([row]), {}),
        "tutorial FastAPI app": Contestant(
            lambda port: [BIN / "uvicorn", "tutorial_app:app", "--app-dir", *own, "--port", port, "--no-access-log"], predict([row]), home
        ),
        "mlflow models serve": Contestant(
            mlflow, predict({"dataframe_records": [row]}, "/invocations"), {"PATH": f"{BIN}:{os.environ['PATH']}"}
        ),
        "bentoml serve": Contestant(bento, predict({"rows": [row]}), home),
    }


def measure_serving(context: Context) -> dict[str, Any]:
    """Return cold start, memory and rates, every server started anew in each round."""
    contestants = contestants_of(context.project())
    home = context.fresh("serving")
    seconds = 1.0 if context.quick else 3.0

    def once(contestant: Contestant) -> Values:
        server = Server(contestant, home)
        try:
            values = {
                "cold_start_s": server.cold_start_s,
                "start_cpu_s": server.start_cpu_s,
                "memory_mib": tree_memory_mib(server.process.pid),
            }
            drive(server.port, contestant.request, connections=4, seconds=0.5, pid=server.process.pid)
            for n in CONNECTIONS:
                found = drive(server.port, contestant.request, connections=n, seconds=seconds, pid=server.process.pid)
                if found.pop("failed"):
                    raise SkippedError(f"it failed requests at {n} connections")
                values |= {f"{key}_{n}": value for key, value in found.items()}
            return {**values, "memory_after_mib": tree_memory_mib(server.process.pid)}
        finally:
            server.stop()

    turns = take_turns({name: (lambda one=one: once(one)) for name, one in contestants.items()}, rounds=context.rounds(2), warm_up=False)
    start = table(
        "From the start of the process to the first answered prediction",
        [
            column("cold_start_s", "cold start", "s"),
            column("start_cpu_s", "CPU", "s"),
            column("memory_mib", "memory", "MiB"),
            column("memory_after_mib", "memory after the load", "MiB"),
        ],
        turns.rows,
        ratio="cold_start_s",
        headlines=[
            headline("`mulle serve`: start to first prediction", "mulle serve", "cold_start_s", below=1.0),
            headline("`mulle serve`: memory", "mulle serve", "memory_mib"),
        ],
    )
    loads = [
        table(
            f"{n} connection{'s' if n > 1 else ''}, one row per request",
            [
                column(f"rate_{n}", "requests/s", "rate"),
                column(f"cpu_us_{n}", "CPU per request", "µs"),
                column(f"p50_ms_{n}", "p50", "ms"),
                column(f"p99_ms_{n}", "p99", "ms"),
            ],
            turns.rows,
            ratio=f"rate_{n}",
            headlines=[headline(f"requests/s, one worker, {n} connections", "mulle serve", f"rate_{n}")] if n > 1 else [],
        )
        for n in CONNECTIONS
    ]
    notes = [
        (
            "The sealed churn model (19 raw columns, strings among them), one worker each; the load generator shares the two cores. "
            "Memory is PSS over the whole process tree."
        ),
        (
            "`mulle serve` verifies the bundle and replays its golden requests before it listens, and appends each prediction to a log "
            "before it answers it; "
            "MLflow checks the columns against a signature, and the loader its digest; the app and the service do neither. "
            "**The engine room is not tuned yet**: these are first figures, not the limit."
        ),
    ]
    return report("Serving: cold start, memory, a first rate", [start, *loads], skipped=turns.skipped, notes=notes)
