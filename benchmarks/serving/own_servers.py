"""Our own server in its variants. Options this version does not have are told as the reason why a variant is missing."""

import json
import subprocess
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
from load import tree
from measure import BIN, SkippedError, quiet_environment

from serving.fleet import Ask, Contestant, Ports, Server, exchange
from serving.models import MEAN, STD, Workload, features_body
from serving.names import DRAFT, FULL, MULLE, STOPS, TWO, UNIQUE
from serving.peer_servers import Asks, http_request

DEPLOYMENT = "bench"
N_UNIQUE = 40_000
DRAFT_TOLERANCE = 0.1


@cache
def options() -> str:
    """Return what `mulle serve --help` says."""
    done = subprocess.run([BIN / "mulle", "serve", "--help"], capture_output=True, text=True, env=quiet_environment(), check=False)
    return done.stdout


def require_option(name: str) -> str:
    """Return an option's name.

    Raises:
        SkippedError: this `mulle serve` does not have it.
    """
    if f"{name} " not in options() and f"{name}\n" not in options():
        raise SkippedError(f"this `mulle serve` has no {name}")
    return name


def run_mulle(*arguments: Any, cwd: Path) -> dict[str, Any]:
    """Return what a command answers with --json.

    Raises:
        SkippedError: it said no.
    """
    command = [str(BIN / "mulle"), *map(str, arguments), "--json"]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, env=quiet_environment(), check=False)
    if done.returncode:
        said = " ".join((done.stderr or done.stdout).split())
        raise SkippedError(f"`mulle {arguments[0]}` refused: {said[:200]}")
    return json.loads(done.stdout)


class Bundles:
    """Sealed bundles of the models, made by `mulle adopt` when they are needed.

    Args:
        work: The workload.
        folder: A scratch folder.
    """

    def __init__(self, work: Workload, folder: Path) -> None:
        self.work, self.folder = work, folder
        folder.mkdir(parents=True, exist_ok=True)
        self.made: dict[str, Path] = {}

    def get(self, model: str, name: str | None = None, *, draft: bool = False) -> Path:
        """Return the folder of a model's bundle.

        Raises:
            SkippedError: this version cannot seal it.
        """
        key = f"{model}-{name}-{draft}"
        if key not in self.made:
            arguments: list[Any] = [
                "adopt",
                self.work.graph(model),
                "--name",
                name or f"model-{model.lower()}",
                "--output",
                self.folder / "bundles",
            ]
            if model == "T":
                arguments += ["--sample", self.work.folder / "sample.csv"]
            else:
                mean, std = (":".join(map(str, values)) for values in (MEAN, STD))
                image = f"size=224x224,resize=exact,filter=bilinear,mean={mean},std={std},layout=NCHW" + (",draft=true" if draft else "")
                arguments += ["--image", image, "--sample", self.work.folder / "photos"]
            self.made[key] = (self.folder / run_mulle(*arguments, cwd=self.folder)["path"]).resolve()
        return self.made[key]


def own_contestants(work: Workload, model: str, scratch: Path, kinds: Sequence[str]) -> list[Contestant]:
    """Return our servers for a model."""
    bundles = Bundles(work, scratch / "own")
    asks = Asks(work, model)
    name = "bundle"

    def alone(ports: Ports, *more: Any, draft: bool = False) -> list[Any]:
        # A folder of its own for the log of each: several servers live at the same time.
        home = scratch / "own" / f"home-{ports.http}"
        home.mkdir(parents=True, exist_ok=True)
        bundle = bundles.get(model, draft=draft)
        return [BIN / "mulle", "serve", "--bundle", bundle, "--project", home, "--deployment", name, "--port", ports.http, *more]

    own: dict[str, Ask] = {}
    if model == "T":
        own = {"json": asks.rows("/predict", features_body), "rows32": asks.rows("/predict", features_body, 32)}
    else:
        own = {"jpeg": asks.photos("/predict"), "tensor": asks.binary(f"/v2/models/{name}/infer")}
    own = {kind: ask for kind, ask in own.items() if kind in kinds}
    found: list[Contestant] = []
    if own:
        told = "`mulle serve --bundle`, one process, defaults (metrics and prediction log are on)"
        found.append(Contestant(name=MULLE, key="mulle", command=alone, asks=own, configured=told))
    if model == "T" and "json" in kinds:
        found += [
            _everything_on(work, bundles, scratch / "full", asks, own),
            Contestant(
                name=UNIQUE,
                key="mulle",
                command=alone,
                asks={"json": _never_repeating(work, asks)},
                configured=f"the default server; each of {N_UNIQUE:,} requests has a header of its own",
            ),
            Contestant(
                name=TWO,
                key="mulle",
                command=lambda ports: alone(ports, require_option("--workers"), 2),
                asks={"json": own["json"]},
                prove=_two_answer,
                # Its supervisor replaces workers that do not answer: frozen ones.
                freezes=False,
                configured="`--workers 2`",
            ),
            Contestant(
                name=STOPS,
                key="mulle",
                command=lambda ports: alone(ports, require_option("--on-overload"), "wait"),
                asks={"json": own["json"]},
                configured="`--on-overload wait`: it stops reading instead of refusing; only in the overload table",
            ),
        ]
    if "grpc" in kinds:
        grpc = {"grpc": asks.calls(name)}
        command = lambda ports: alone(ports, require_option("--grpc-port"), ports.grpc)  # noqa: E731
        found.append(Contestant(name=MULLE, key="mulle", command=command, asks=grpc, configured="`--grpc-port`, one process, defaults"))
    if "jpeg" in own:
        found.append(
            Contestant(
                name=DRAFT,
                key="mulle",
                command=lambda ports: alone(ports, draft=True),
                asks={"jpeg": Ask(own["jpeg"].requests, own["jpeg"].expected, tolerance=DRAFT_TOLERANCE)},
                configured="the bundle opts in to draft decoding: other pixels than the rest of the table",
            )
        )
    return found


def _everything_on(work: Workload, bundles: Bundles, folder: Path, asks: Asks, plain: dict[str, Ask]) -> Contestant:
    """Metrics, prediction log, an API key, and two revisions routed 90 to 10."""
    folder.mkdir(parents=True, exist_ok=True)
    key = ""
    reason = ""
    try:
        (folder / "mulle.toml").write_text(f'[project]\nname = "{DEPLOYMENT}"\ncode = "project:project"\n', encoding="utf-8")
        key = str(run_mulle("keys", "create", f"bench-{time.time_ns()}", "--deployment", DEPLOYMENT, cwd=folder)["key"])
        _write_spec(folder, [bundles.get("T"), bundles.get("T", "second")], weights=(90, 10))
    except SkippedError as error:
        reason = str(error)

    def command(ports: Ports) -> list[Any]:
        if reason:
            raise SkippedError(reason)
        return [BIN / "mulle", "serve", "--project", folder, "--deployment", DEPLOYMENT, "--port", ports.http]

    def keyed(ask: Ask) -> Ask:
        head = f"\r\nauthorization: Bearer {key}\r\n".encode("ascii")
        return Ask(tuple(one.replace(b"\r\n", head, 1) for one in ask.requests), ask.expected, ask.n_rows)

    def prove(server: Server) -> None:
        """Refuse to call it everything unless a missing key is refused, both revisions answer, and answers are logged."""
        locked = exchange(server.ports.http, plain["json"].requests[0])
        if locked is None or locked[0] != 401:
            raise SkippedError(f"a request without a key was answered {None if locked is None else locked[0]}, not 401")
        request = keyed(plain["json"]).requests[0]
        seen = {json.loads(found[1])["revision"] for _ in range(200) if (found := exchange(server.ports.http, request)) is not None}
        if seen != {1, 2}:
            raise SkippedError(f"of two revisions, {sorted(seen)} answered")
        if not any(path.stat().st_size for path in (folder / ".mulle" / "logs").rglob("*") if path.is_file()):
            raise SkippedError("nothing was logged")

    del work, asks
    told = "one process; metrics, prediction log, an API key checked on every request, two revisions routed 90/10"
    return Contestant(
        name=FULL, key="mulle", command=command, asks={kind: keyed(ask) for kind, ask in plain.items()}, configured=told, prove=prove
    )


def _two_answer(server: Server) -> None:
    """Refuse to call it two workers unless two processes beside the first have the port open."""
    workers = [pid for pid in tree(server.pid) if pid != server.pid and _listens(pid, server.ports.http)]
    if len(workers) < 2:
        raise SkippedError(f"{len(workers)} of its processes listen, not two")


def _listens(pid: int, port: int) -> bool:
    """Return whether a process holds a listening socket of the port (Linux)."""
    try:
        lines = Path(f"/proc/{pid}/net/tcp").read_text(encoding="ascii").splitlines()[1:]
        links = {str(path.readlink()) for path in Path(f"/proc/{pid}/fd").iterdir()}
    except OSError:
        return False  # it ended meanwhile
    inodes = (line.split()[9] for line in lines if line.split()[1].endswith(f":{port:04X}") and line.split()[3] == "0A")
    return any(f"socket:[{inode}]" in links for inode in inodes)


def _never_repeating(work: Workload, asks: Asks) -> Ask:
    bodies = [features_body(work.rows[i : i + 1]) for i in range(32)]
    requests = (http_request("/predict", bodies[i % 32], x_request_id=f"{i:08x}") for i in range(N_UNIQUE))
    return Ask(tuple(requests), asks.first)


def _write_spec(folder: Path, bundles: Sequence[Path], *, weights: Sequence[int]) -> None:
    """Write the signed spec a controller would hand over."""
    from mulle.formats.bundle import read_manifest
    from mulle.formats.deployment import DeploymentSpec, Revision, SignedSpec, Traffic, encode_signed_spec
    from mulle.formats.signing import key_path, load_or_create_key, sign

    revisions = tuple(
        Revision(
            number=i + 1,
            model="trees",
            model_version=i + 1,
            bundle_digest=read_manifest(path).digest(),
            bundle_path=str(path),
            run_id=f"run-{i + 1}",
        )
        for i, path in enumerate(bundles)
    )
    spec = DeploymentSpec(
        deployment=DEPLOYMENT,
        environment="local",
        generation=1,
        revisions=revisions,
        traffic=Traffic(weights={one.number: weight for one, weight in zip(revisions, weights, strict=True)}, salt="bench"),
    )
    path = folder / ".mulle" / "serving" / f"{DEPLOYMENT}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode_signed_spec(SignedSpec(msgspec.structs.replace(spec), sign(spec.to_bytes(), load_or_create_key(key_path())))))
