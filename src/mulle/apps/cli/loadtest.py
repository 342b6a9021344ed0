"""`mulle loadtest`: ask a running server as hard as wanted, and say what came back."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import typer

from mulle.apps.cli.output import note, print_json, print_table, say

if TYPE_CHECKING:
    from mulle.loop.paths import StatePaths
    from mulle.loop.settings.model import Settings
    from mulle.serve.loadtest.processes import Measured
    from mulle.serve.loadtest.report import LoadReport
    from mulle.serve.loadtest.requests import Columns, Protocol, Row
    from mulle.serve.loadtest.result import Arrivals, Load, Second
    from mulle.serve.loadtest.target import Target

app = typer.Typer(add_completion=False, rich_markup_mode=None)

_CLOSED = "1,16,64"
_OPEN = "64"
_PROTOCOLS = ("predict", "features", "oip")
_ARRIVALS = ("constant", "poisson")


@app.command(
    epilog="Example: mulle loadtest --rate 500 --slo-ms 20 --html load.html   (exit code 1: the objective was missed)"
    "      or: mulle loadtest http://127.0.0.1:8080 --find-knee"
)
def loadtest(
    *,
    url: str | None = typer.Argument(None, metavar="[URL]", help="The running server; [serving] host and port by default."),
    connections: str | None = typer.Option(
        None,
        "--connections",
        "-c",
        metavar="N,N…",
        help=f"Clients that each ask again when answered, one measurement per number: {_CLOSED}. With a rate: how many are open.",
    ),
    rate: str | None = typer.Option(None, "--rate", "-r", metavar="R,R…", help="Requests per second, sent on time whatever comes back."),
    find_knee: bool = typer.Option(False, "--find-knee", help="Search the highest rate that keeps --slo-ms with under 0.1 % failed."),
    slo_ms: float | None = typer.Option(
        None, "--slo-ms", metavar="MS", min=0.001, help="The p99 to keep; missed: exit 1. For --find-knee: 5 × the unloaded p99."
    ),
    duration: float = typer.Option(10.0, "--duration", "-d", metavar="S", min=0.1, max=86400, help="Seconds of each measurement."),
    warmup: float = typer.Option(1.0, "--warmup", metavar="S", min=0.0, max=3600, help="Seconds before each that do not count."),
    timeout: float = typer.Option(10.0, "--timeout", metavar="S", min=0.01, max=3600, help="A client gives up after this long."),
    arrivals: str = typer.Option("constant", "--arrivals", metavar="KIND", help="With a rate: constant, or poisson as independent users."),
    pipeline: int = typer.Option(
        1, "--pipeline", metavar="N", min=1, max=10000, help="With a rate: requests that may wait on one connection."
    ),
    processes: int = typer.Option(1, "--processes", metavar="N", min=1, max=256, help="Generator processes that share the load."),
    bundle: Path | None = typer.Option(None, "--bundle", metavar="DIR", help="Send the golden requests of this bundle."),
    source: Path | None = typer.Option(None, "--input", "-i", metavar="FILE", help="Send the rows of a JSON or JSON lines file."),
    replay: bool = typer.Option(False, "--replay", help="Send the rows of the prediction log again."),
    last: int = typer.Option(1000, "--last", metavar="N", min=1, max=1000000, help="With --replay: the newest N rows."),
    body: list[Path] = typer.Option([], "--body", metavar="FILE", help="Send this file as it is, with --content-type; repeat it."),
    content_type: str = typer.Option("application/json", "--content-type", metavar="TYPE", help="Of --body."),
    rows: int = typer.Option(1, "--rows", "-n", metavar="N", min=1, max=100000, help="Rows per request."),
    protocol: str = typer.Option("predict", "--protocol", metavar="NAME", help="How rows are written: predict, features or oip."),
    path: str | None = typer.Option(None, "--path", metavar="PATH", help="Where to send; by default what the protocol says."),
    header: list[str] = typer.Option([], "--header", "-H", metavar="'NAME: VALUE'", help="One more header; repeat it."),
    api_key_env: str | None = typer.Option(
        None, "--api-key-env", metavar="NAME", help="Environment variable that holds the API key; the key itself is never shown."
    ),
    pid: int | None = typer.Option(None, "--pid", metavar="PID", help="The server's process, to read its CPU; found by itself on Linux."),
    html: Path | None = typer.Option(None, "--html", metavar="FILE", help="Write a page with charts, for people who were not there."),
    may_load: bool = typer.Option(False, "--i-may-load-this-host", help="Load another machine than this one."),
    deployment: str | None = typer.Option(None, "--deployment", metavar="NAME", help="Whose requests; the project's own by default."),
    project: Path = typer.Option(Path(), "--project", "-p", metavar="DIR", help="The project's folder."),
    environment: str = typer.Option("local", "--env", metavar="NAME", help="The environment."),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON document."),
) -> None:
    """Ask a running server as hard as wanted: latency percentiles with their sample counts, failures by kind, the rate it can carry.

    Latency counts from the moment a request was meant to be sent. Ctrl-C reports what was measured so far.
    """
    from mulle.serve.loadtest.processes import measure
    from mulle.serve.loadtest.report import LoadReport, machine_facts
    from mulle.serve.loadtest.result import Load

    _require_usage(protocol=protocol, arrivals=arrivals, rate=rate, find_knee=find_knee, pipeline=pipeline, html=html)
    counts = _numbers(connections or (_OPEN if rate is not None or find_knee else _CLOSED), "--connections", whole=True)
    rates = _numbers(rate, "--rate") if rate is not None else None
    where = _place(project, environment, deployment)
    target = _target(url, where)
    from mulle.serve.loadtest.target import require_may_load

    local = require_may_load(target, allowed=may_load)
    chosen = _Source(bundle, source, tuple(body), replay, last, content_type)
    built = _requests(chosen, where, target, cast("Protocol", protocol), rows=rows, path=path, header=header, api_key_env=api_key_env)
    load = Load(
        host=target.host,
        port=target.port,
        requests=built.requests,
        connections=int(max(counts)),
        duration_s=duration,
        warmup_s=warmup,
        arrivals=cast("Arrivals", arrivals),
        pipeline=pipeline,
        timeout_s=timeout,
    )
    machine, began = machine_facts(), _now()
    server = pid if pid is not None or not local else _listener(target.port)
    show = _Progress(load)

    def run(one: "Load") -> "Measured":
        show.begin(one)
        try:
            return measure(one, n_processes=min(processes, one.connections), pid=server, on_second=show.second)
        finally:
            show.end()

    if find_knee:
        from mulle.serve.loadtest.knee import find_knee as search

        knee = search(load, lambda one: run(one).result, slo_ms=slo_ms, on_step=show.step)
        report = LoadReport(asked=built.asked(target, load), began=began, machine=machine, knee=knee, slo_ms=slo_ms)
    else:
        measured = _measure_all(load, counts, rates, run)
        report = LoadReport(asked=built.asked(target, load), began=began, machine=machine, measured=measured, slo_ms=slo_ms)
    _tell(report, html, as_json=as_json)
    if report.interrupted:
        raise typer.Exit(130)
    if not report.kept:
        raise typer.Exit(1)


@dataclass(frozen=True, slots=True)
class _Source:
    """Where the requests come from, as the options say it."""

    bundle: Path | None
    rows: Path | None
    bodies: tuple[Path, ...]
    replay: bool
    last: int
    content_type: str


@dataclass(frozen=True, slots=True)
class _Place:
    """The project the command runs in; None where there is none, which is no error: a URL is enough."""

    settings: "Settings | None"
    paths: "StatePaths | None"
    deployment: str | None


@dataclass(frozen=True, slots=True)
class _Built:
    """The requests, and what to say of them."""

    requests: tuple[bytes, ...]
    path: str
    source: str
    n_rows: int | None
    header_names: tuple[str, ...]

    def asked(self, target: "Target", load: "Load") -> Any:
        """Return what the report says was asked."""
        from mulle.serve.loadtest.report import Asked

        return Asked(
            url=f"http://{target.authority}{self.path}",
            source=self.source,
            n_requests=len(self.requests),
            n_rows=self.n_rows,
            n_bytes=sum(map(len, self.requests)) // len(self.requests),
            header_names=self.header_names,
            timeout_s=load.timeout_s,
            duration_s=load.duration_s,
            warmup_s=load.warmup_s,
        )


def _require_usage(*, protocol: str, arrivals: str, rate: str | None, find_knee: bool, pipeline: int, html: Path | None) -> None:
    from mulle.core.errors import SpecError

    wrong = None
    if protocol not in _PROTOCOLS:
        wrong = f"--protocol is one of {', '.join(_PROTOCOLS)}, not {protocol!r}"
    elif arrivals not in _ARRIVALS:
        wrong = f"--arrivals is one of {', '.join(_ARRIVALS)}, not {arrivals!r}"
    elif rate is not None and find_knee:
        wrong = "--rate measures rates you name, --find-knee looks for one: give either"
    elif pipeline > 1 and rate is None and not find_knee:
        wrong = "--pipeline belongs to --rate or --find-knee: in a closed loop every client waits for its answer"
    elif html is not None and not html.resolve().parent.is_dir():
        wrong = f"--html: there is no folder {str(html.parent)!r}"
    if wrong is not None:
        raise SpecError("loadtest-usage", wrong, fix="mulle loadtest --help shows examples")


def _numbers(text: str, option: str, *, whole: bool = False) -> list[float]:
    from mulle.core.errors import SpecError

    try:
        values = [float(int(part) if whole else float(part)) for part in text.split(",")]
    except ValueError:
        values = []
    if not values or not all(0 < value < 1e7 for value in values):  # noqa: PLR2004 - beyond what any machine offers; also no NaN
        raise SpecError(
            "loadtest-usage", f"{option} {text[:60]!r} is no list of numbers above 0", fix=f"{option} 16   or: {option} 1,16,64"
        )
    return values


def _place(project: Path, environment: str, deployment: str | None) -> _Place:
    if not (project / "mulle.toml").exists():
        return _Place(None, None, deployment)
    from mulle.loop.wiring import open_project

    settings, paths = open_project(project, environment)
    return _Place(settings, paths, deployment or settings.deployment)


def _target(url: str | None, where: _Place) -> "Target":
    from mulle.serve.loadtest.target import Target, parse_url

    if url is not None:
        return parse_url(url)
    host, port = "127.0.0.1", 8080
    if where.settings is not None:
        host, port = where.settings.serving.host, where.settings.serving.port
    if port == 0:
        from mulle.core.errors import SpecError

        raise SpecError(
            "loadtest-usage", "[serving] port is 0: the server took a free one", fix="give the address it printed: mulle loadtest URL"
        )
    # A server that listens everywhere is asked on this machine.
    return Target({"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host), port)  # noqa: S104 - compared, not bound


def _requests(
    chosen: _Source,
    where: _Place,
    target: "Target",
    protocol: "Protocol",
    *,
    rows: int,
    path: str | None,
    header: list[str],
    api_key_env: str | None,
) -> _Built:
    import os

    from mulle.core.errors import SpecError
    from mulle.formats.bundle import read_manifest
    from mulle.serve.loadtest.requests import body_file, golden_bodies, key_headers, parse_header, render_request, row_bodies

    given = [chosen.bundle is not None, chosen.rows is not None, bool(chosen.bodies), chosen.replay]
    if sum(given) > 1:
        raise SpecError("loadtest-usage", "give one of --bundle, --input, --body and --replay", fix="mulle loadtest --help shows examples")
    headers = [parse_header(text) for text in header]
    if api_key_env is not None:
        headers += key_headers(os.environ.get(api_key_env), api_key_env)
    folder = chosen.bundle if chosen.bundle is not None or sum(given) else _served_bundle(where)
    kind = "columns" if folder is None else read_manifest(folder).kind
    n_rows, default = None, "/predict"
    if chosen.bodies:
        bodies = [body_file(file, chosen.content_type) for file in chosen.bodies]
        told = ", ".join(file.name for file in chosen.bodies[:3]) + (" …" if len(chosen.bodies) > 3 else "")  # noqa: PLR2004
    elif folder is not None and kind != "columns":
        bodies = golden_bodies(folder)
        told = f"golden {'pictures' if kind == 'image' else 'tensors'} of the bundle ({len(bodies):,})"
        default = "/predict" if kind == "image" else "oip"
    else:
        found, columns, told = _rows(chosen, where, target, headers, folder)
        bodies, n_rows = row_bodies(found, columns, n_rows=rows, protocol=protocol), rows
        default = "oip" if protocol == "oip" else "/predict"
    full = path or target.path or (_oip_path(where, chosen.bundle) if default == "oip" else default)
    requests = tuple(render_request(full, one, headers=headers, host=target.authority) for one in bodies)
    return _Built(requests, full, told, n_rows, tuple(sorted({name.lower() for name, _ in headers})))


def _oip_path(where: _Place, bundle: Path | None) -> str:
    name = where.deployment
    if name is None and bundle is not None:
        from mulle.formats.bundle import read_manifest

        # As `mulle serve --bundle` calls it.
        name = f"bundle-{read_manifest(bundle).digest()[:12]}"
    if name is None:
        from mulle.core.errors import SpecError

        raise SpecError("loadtest-usage", "the protocol names the model in its path", fix="add --deployment NAME, or --path")
    return f"/v2/models/{name}/infer"


def _rows(
    chosen: _Source, where: _Place, target: "Target", headers: list[tuple[str, str]], folder: Path | None
) -> "tuple[list[Row], Columns, str]":
    from mulle.core.errors import SpecError
    from mulle.serve.loadtest.requests import example_rows, file_rows, golden_rows, logged_rows
    from mulle.serve.loadtest.target import fetch_document

    if chosen.rows is not None:
        return file_rows(chosen.rows), (), f"rows of {chosen.rows.name}"
    if chosen.replay:
        if where.paths is None or where.deployment is None:
            raise SpecError(
                "loadtest-usage", "--replay reads the project's prediction log", fix="run it in the project's folder, or add --project DIR"
            )
        rows, columns = logged_rows(where.paths.logs, where.deployment, last=chosen.last)
        return rows, columns, f"logged rows of {where.deployment} ({len(rows):,})"
    if folder is not None:
        rows, columns = golden_rows(folder)
        return rows, columns, f"golden rows of the bundle ({len(rows):,})"
    return example_rows(fetch_document(target, "/openapi.json", headers)), (), "the example row the server shows"


def _served_bundle(where: _Place) -> Path | None:
    """Return the folder of the revision with the most traffic; None where nothing was released here."""
    if where.paths is None or where.deployment is None or not where.paths.spec(where.deployment).is_file():
        return None
    from mulle.formats.deployment import read_signed_spec

    spec = read_signed_spec(where.paths.spec(where.deployment)).spec
    revision = max(spec.revisions, key=lambda one: spec.traffic.weights.get(one.number, 0))
    folders = [root / revision.bundle_path for root in (where.paths.root, where.paths.root.parent)]
    return next((folder for folder in folders if folder.is_dir()), None)


def _listener(port: int) -> int | None:
    from mulle.serve.loadtest.probe import listener_of

    return listener_of(port)


def _now() -> str:
    from datetime import UTC, datetime

    from mulle.loop.wiring import SystemClock

    return datetime.fromtimestamp(SystemClock().now_ns() / 1e9, UTC).strftime("%Y-%m-%d %H:%M UTC")


def _measure_all(load: "Load", counts: list[float], rates: list[float] | None, run: Any) -> "list[Measured]":
    import msgspec

    if rates is None:
        loads = [msgspec.structs.replace(load, connections=int(count)) for count in counts]
    else:
        loads = [msgspec.structs.replace(load, rate=one) for one in rates]
    measured: list[Measured] = []
    for one in loads:
        measured.append(run(one))
        if measured[-1].result.interrupted:
            break
    return measured


def _tell(report: "LoadReport", html: Path | None, *, as_json: bool) -> None:
    from mulle.serve.loadtest.report import busy_remark, knee_sentence, remarks_on, table_of

    if html is not None:
        from mulle.loop.paths import write_atomic
        from mulle.serve.loadtest.page import render_html

        write_atomic(html, render_html(report).encode())
    if as_json:
        print_json(report.to_dict())
        return
    if report.measured:
        header, rows = table_of(report.measured)
        print_table(header, rows)
        for remark in remarks_on(report.measured):
            say(f"  {remark}")
    if report.knee is not None:
        say(knee_sentence(report.knee))
    busy = busy_remark(report.machine)
    if busy is not None:
        note(f"  {busy}")
    for miss in report.misses:
        say(f"missed: {miss}")
    if report.slo_ms is not None and report.kept and not report.interrupted:
        say(f"kept: p99 ≤ {report.slo_ms:g} ms")
    if html is not None:
        note(f"report: {html}")


class _Progress:
    """One line a second on a terminal; a line per step of a search anywhere."""

    def __init__(self, load: "Load") -> None:
        self._live = sys.stderr.isatty()
        self._load = load

    def begin(self, load: "Load") -> None:
        """Say what is measured now."""
        self._load = load

    def second(self, second: "Second") -> None:
        """Show one second."""
        if not self._live:
            return
        load = self._load
        name = f"{load.connections} connections" if load.rate is None else f"{load.rate:,.0f}/s"
        if second.warm:
            text = f"{name}: warming up, {second.n_answered:,} answers"
        else:
            text = (
                f"{name}: {second.at_s - load.warmup_s:.0f} of {load.duration_s:g} s   {second.n_ok:,} answers   "
                f"p50 {second.p50_ns / 1e6:.3g} ms   p99 {second.p99_ns / 1e6:.3g} ms   {second.n_errors:,} failed"
            )
            if second.waiting:
                text += f"   {second.waiting:,} wait for a connection"
        sys.stderr.write(f"\r\x1b[K{text}")
        sys.stderr.flush()

    def end(self) -> None:
        """Take the line away."""
        if self._live:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()

    def step(self, step: Any) -> None:
        """Say how one step of the search went."""
        from mulle.serve.loadtest.report import rate_text

        note(f"  {rate_text(step.rate):>10}/s   {step.verdict:<10} {step.why}")
