"""The peers: how each is started, and the requests each understands. What they do lies in `peers/`."""

import os
import sysconfig
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from measure import SkippedError
from venvs import peer_bin

from serving.fleet import Ask, Contestant, Ports
from serving.models import Workload, answers, features_body, multipart, oip_binary, oip_body, oip_proto, to_tensor
from serving.names import BENTO, ECHO, GRPC_BARE, KSERVE, LIT, MLFLOW, MLSERVER, RAY, TRITON, TUNED, TUTORIAL, TUTORIAL_ONE

PEERS = Path(__file__).resolve().parent / "peers"
CORES = os.cpu_count() or 1
RPC = "/inference.GRPCInferenceService/ModelInfer"
N_ASKS = 32
N_TENSORS = 4


def http_request(path: str, body: bytes, **headers: str) -> bytes:
    """Return a whole POST request; `_` in a header's name stands for `-`."""
    given = {"host": "127.0.0.1", "content_type": "application/json", **headers, "content_length": str(len(body))}
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in given.items())
    return f"POST {path} HTTP/1.1\r\n{lines}\r\n".encode("ascii") + body


class Asks:
    """The requests of one model, spelt as each server wants them.

    Args:
        work: The workload.
        model: T, S or I.
    """

    def __init__(self, work: Workload, model: str) -> None:
        self.work, self.model = work, model
        if model == "T":
            self.first = float(answers(work.graph("T"), work.rows[:1])[0, 0])
        else:
            self.tensors = [to_tensor(photo) for photo in work.photos[:N_TENSORS]]
            self.first = float(answers(work.graph(model), self.tensors[0]).max())

    def rows(self, path: str, body: Callable[[Any], bytes], n_rows: int = 1, **headers: str) -> Ask:
        """Return requests with `n_rows` rows of model T."""
        parts = [self.work.rows[i * n_rows : (i + 1) * n_rows] for i in range(N_ASKS)]
        return Ask(tuple(http_request(path, body(part), **headers) for part in parts), self.first, n_rows)

    def photos(self, path: str, field: str = "file", **headers: str) -> Ask:
        """Return uploads of the photographs as a form."""
        forms = [multipart(photo, field) for photo in self.work.photos]
        return Ask(tuple(http_request(path, body, **{**headers, "content_type": kind}) for body, kind in forms), self.first)

    def binary(self, path: str, **headers: str) -> Ask:
        """Return Open Inference requests with the photographs' tensors in binary."""
        made = [oip_binary("image", tensor) for tensor in self.tensors]
        kind = {"content_type": "application/octet-stream"}
        requests = (http_request(path, body, **kind, inference_header_content_length=str(n), **headers) for body, n in made)
        return Ask(tuple(requests), self.first)

    def calls(self, name: str, *headers: tuple[str, str]) -> Ask:
        """Return ModelInfer messages with one row each."""
        messages = tuple(oip_proto(name, "features", self.work.rows[i : i + 1]) for i in range(N_ASKS))
        return Ask(messages, self.first, rpc=RPC, headers=headers)


def peer_contestants(work: Workload, model: str, scratch: Path, kinds: Sequence[str]) -> list[Contestant]:
    """Return the peers that serve a model, each with those of `kinds` it can be asked."""
    asks = Asks(work, model)
    tabular = model == "T"
    base = {"BENCH_FOLDER": str(work.folder), "BENCH_MODEL": model, "PYTHONPATH": str(PEERS)}
    both = 1 if tabular else CORES
    found: list[Contestant] = []

    def add(
        name: str,
        key: str,
        venv: str,
        command: Callable[[Path, Ports], list[Any]],
        threads: int,
        told: str,
        own: dict[str, Ask],
        **more: Any,
    ) -> None:
        own = {kind: ask for kind, ask in own.items() if kind in kinds}
        if not own:
            return
        env = {**base, "BENCH_THREADS": str(threads), **more.pop("env", {})}
        found.append(
            Contestant(name=name, key=key, command=lambda ports: command(peer_bin(venv), ports), asks=own, env=env, configured=told, **more)
        )

    def rows_both(path: str, body: Callable[[Any], bytes]) -> dict[str, Ask]:
        return {"json": asks.rows(path, body), "rows32": asks.rows(path, body, 32)} if tabular else {}

    def uvicorn(app: str) -> Callable[[Path, Ports], list[Any]]:
        return lambda bin_, ports: [bin_ / "uvicorn", f"{app}:app", "--app-dir", PEERS, "--port", ports.http, "--no-access-log"]

    plain = rows_both("/predict", features_body)
    forms = {} if tabular else {"jpeg": asks.photos("/image")}
    add(
        TUTORIAL, "tutorial", "fastapi", uvicorn("tutorial_app"), 0,
        "uvicorn, one process; pydantic body, plain `def` (thread pool); pictures in `async def`; ONNX Runtime's default threads",
        {**plain, **forms},
    )  # fmt: skip
    add(
        TUTORIAL_ONE, "intra1", "fastapi", uvicorn("tutorial_app"), 1,
        "the tutorial app with one intra-op thread that does not spin", {**plain, **forms},
    )  # fmt: skip
    add(
        TUNED, "orjson", "fastapi", uvicorn("tuned_app"), 1,
        "no pydantic: orjson both ways, inference on the loop; pictures in the thread pool; one intra-op thread", {**plain, **forms},
    )  # fmt: skip
    add(
        BENTO, "bentoml", "bentoml",
        lambda bin_, ports: [
            bin_ / "bentoml", "serve", "bento_service:Bench", "--working-dir", PEERS, "--port", ports.http, "--host", "127.0.0.1",
        ],
        both, f"adaptive batching on (its own wait), one worker; {both} intra-op thread(s)",
        {**plain, **({} if tabular else {"jpeg": asks.photos("/image")})}, env={"BENTOML_HOME": str(scratch / "bento")},
    )  # fmt: skip
    add(
        LIT, "litserve", "litserve", lambda bin_, ports: [bin_ / "python", PEERS / "litserve_app.py", ports.http], both,
        f"batches of up to {64 if tabular else 16}, 1 ms wait, one worker, one API server; {both} intra-op thread(s)",
        {**plain, **({} if tabular else {"jpeg": asks.photos("/predict")})},
    )  # fmt: skip
    oip = rows_both(f"/v2/models/{model}/infer", oip_body)
    add(
        MLSERVER, "mlserver", "mlserver",
        lambda bin_, ports: [bin_ / "python", PEERS / "mlserver_model.py", ports.http, ports.grpc, scratch], both,
        "custom runtime, batches of up to 64, 1 ms wait, parallel_workers = 0 (in process); JSON tensors", oip,
    )  # fmt: skip
    binary = {} if tabular else {"tensor": asks.binary(f"/v2/models/{model}/infer")}
    add(
        KSERVE, "kserve", "kserve", lambda bin_, ports: [bin_ / "python", PEERS / "kserve_model.py", ports.http], both,
        f"custom model, one worker, access and latency logs off; no batching without its sidecar; {both} intra-op thread(s)",
        {**oip, **binary},
    )  # fmt: skip
    add(
        RAY, "ray", "ray", lambda bin_, ports: [bin_ / "python", PEERS / "ray_app.py", ports.http], both,
        f"one replica, `@serve.batch` up to {64 if tabular else 16}, 1 ms wait; its proxy and controller count; {both} intra-op thread(s)",
        {**plain, **({} if tabular else {"jpeg": asks.photos("/predict")})}, settle_s=2.0, env={"RAY_USAGE_STATS_ENABLED": "0"},
    )  # fmt: skip
    add(
        MLFLOW, "mlflow", "mlflow", lambda bin_, ports: [bin_ / "python", PEERS / "mlflow_model.py", ports.http, scratch], 1,
        "`mlflow models serve`, one worker, ONNX flavour with a tensor signature, one intra-op thread; no batching",
        rows_both("/invocations", lambda part: features_body(part, "inputs")),
    )  # fmt: skip
    add(
        TRITON, "triton", "triton",
        lambda bin_, ports: [bin_ / "python", PEERS / "triton_app.py", ports.http, ports.grpc, ports.metrics], both,
        f"Python backend around ONNX Runtime (its own ONNX backend is in no package), dynamic batching up to {64 if tabular else 16}, "
        f"100 µs queue delay; {both} intra-op thread(s)",
        {**oip, **binary, **({"grpc": asks.calls("T")} if tabular else {})},
        env={"LD_LIBRARY_PATH": str(sysconfig.get_config_var("LIBDIR") or "")},
    )  # fmt: skip
    return found


def bare_contestants(work: Workload, kinds: Sequence[str]) -> list[Contestant]:
    """Return the transports alone: an HTTP echo that decodes 30 numbers, and a gRPC handler that looks at nothing."""
    asks = Asks(work, "T")
    first = float(round(float(work.rows[0, 0]), 6))
    found: list[Contestant] = []
    if "json" in kinds:
        ask = asks.rows("/predict", features_body)
        echo = {"json": Ask(ask.requests, first)}
        command = _own_python("http")
        told = "asyncio protocol, httptools, uvloop, msgspec: decodes 30 floats, answers two; nothing else"
        found.append(Contestant(name=ECHO, key="bare", command=command, asks=echo, configured=told))
    if "grpc" in kinds:
        call = asks.calls("T")
        echo = {"grpc": Ask(call.requests, 0.0, rpc=RPC)}
        told = "generic grpc.aio handler that answers 200 constant bytes"
        found.append(Contestant(name=GRPC_BARE, key="bare", command=_own_python("grpc"), asks=echo, configured=told))
    return found


def _own_python(kind: str) -> Callable[[Ports], list[Any]]:
    def command(ports: Ports) -> list[Any]:
        import importlib.util
        import sys

        # The same grpcio as ours where it is installed, else Triton's.
        own = kind == "http" or importlib.util.find_spec("grpc") is not None
        python = Path(sys.executable) if own else peer_bin("triton") / "python"
        if not python.exists():
            raise SkippedError("no Python with grpcio here")
        return [python, PEERS / "echo_server.py", kind, ports.http if kind == "http" else ports.grpc]

    return command
