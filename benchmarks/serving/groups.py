"""The groups of scenarios: what is measured together, and the tables it becomes."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from measure import SkippedError

from serving import names
from serving.bare import bare_loop
from serving.figures import middle
from serving.fleet import Contestant, Fleet
from serving.footprint import cold_starts, installed_sizes
from serving.models import Workload
from serving.overload import overload
from serving.own_servers import own_contestants
from serving.peer_servers import CORES, bare_contestants, peer_contestants
from serving.rounds import Cell, Measured, Plan, row_of, summary, take_rounds

RATE, ROWS, CPU = (
    {"key": "rate", "label": "requests/s", "unit": "rate"},
    {"key": "rate", "label": "rows/s", "unit": "rate"},
    {
        "key": "cpu_us",
        "label": "server CPU per request",
        "unit": "µs",
    },
)
P50, P99 = {"key": "p50_ms", "label": "p50", "unit": "ms"}, {"key": "p99_ms", "label": "p99", "unit": "ms"}
MEMORY = {"key": "memory_mib", "label": "memory (PSS)", "unit": "MiB"}
SIZES = (
    {"key": "size_mb", "label": "with byte code, as pip installs", "unit": "MB"},
    {"key": "bare_mb", "label": "without", "unit": "MB"},
)
FAILED = {"key": "failed", "label": "failed", "unit": "count"}


@dataclass(frozen=True, slots=True)
class Setting:
    """How long and with whom.

    Attributes:
        work: Models and requests.
        scratch: A scratch folder.
        quick: One short round: for developing, not for publishing.
        peers: Keys of the peers that take part; None: all.
    """

    work: Workload
    scratch: Path
    quick: bool
    peers: frozenset[str] | None

    def chosen(self, contestants: Sequence[Contestant]) -> list[Contestant]:
        """Return those that take part; ours and the bare ones always do."""
        return [one for one in contestants if self.peers is None or one.key in {"mulle", "bare", *self.peers}]

    @property
    def rounds(self) -> int:
        """How many rounds."""
        return 1 if self.quick else 3


@dataclass(slots=True)
class Report:
    """What a group gives back; `tables` by a name that targets refer to."""

    title: str
    tables: dict[str, dict[str, Any]] = field(default_factory=dict[str, dict[str, Any]])
    skipped: dict[str, str] = field(default_factory=dict[str, str])
    notes: list[str] = field(default_factory=list[str])
    configured: dict[str, str] = field(default_factory=dict[str, str])
    seconds: float = 0.0


def table(
    title: str, columns: Sequence[Mapping[str, str]], rows: Mapping[str, Any], *, base: str | None = None, ratio: str = "rate"
) -> dict[str, Any]:
    """Return a table; with a base, every row is also shown as a ratio to that row, round by round."""
    order = [*names.OWN, *names.PEERS, *names.BARE]
    ranked = sorted(rows, key=lambda name: order.index(name) if name in order else len(order))
    return {"title": title, "columns": list(columns), "rows": {name: rows[name] for name in ranked}, "base": base, "ratio": ratio}


def _own_title(n: int) -> str:
    return f"{n} connection{'s' if n > 1 else ''}"


def _measure(
    setting: Setting,
    contestants: Sequence[Contestant],
    cells: Sequence[Cell],
    report: Report,
    *,
    seconds: float,
    bare: Mapping[str, Callable[[], dict[str, float]]] | None = None,
    only: Mapping[str, Sequence[Cell]] | None = None,
    enough: int = 10_000,
) -> Measured:
    fleet = Fleet(setting.chosen(contestants), setting.scratch)
    try:
        plan = Plan(
            cells=cells,
            rounds=setting.rounds,
            seconds=0.7 if setting.quick else seconds,
            bare=bare or {},
            only=only or {},
            enough=0 if setting.quick else enough,
        )
        found = take_rounds(fleet, plan)
    finally:
        fleet.close()
    report.skipped |= found.skipped
    report.notes += found.notes
    report.configured |= {one.name: one.configured for one in fleet.contestants.values()}
    return found


def _rows(found: Measured, cell: Cell, n_rows: int = 1) -> dict[str, Any]:
    return {name: row_of(shots, n_rows) for name, shots in found.shots[cell].items() if shots}


def _bare_rows(found: Measured, *which: str) -> dict[str, Any]:
    return {
        name: {"rate": summary([one["rows"] for one in found.bare[name]]), "cpu_us": summary([one["cpu_us"] for one in found.bare[name]])}
        for name in which
        if name in found.bare
    }


def _loops(setting: Setting, model: str, loops: Mapping[str, tuple[str, int]]) -> dict[str, Callable[[], dict[str, float]]]:
    seconds = 0.5 if setting.quick else 2.0
    return {
        name: (lambda what=what, cores=cores: bare_loop(setting.work, model, what, cores=cores, seconds=seconds))
        for name, (what, cores) in loops.items()
    }


def measure_tabular(setting: Setting) -> Report:
    """Model T over JSON."""
    report = Report("Tabular model over JSON (200 trees, 30 numbers)")
    one, few, many, rows = Cell("json", 1), Cell("json", 16), Cell("json", 64), Cell("rows32", 16)
    kinds = ("json", "rows32")
    contestants = [
        *own_contestants(setting.work, "T", setting.scratch, kinds),
        *peer_contestants(setting.work, "T", setting.scratch, kinds),
        *bare_contestants(setting.work, ("json",)),
    ]
    loops = _loops(setting, "T", {names.RUN_ONE: ("run", 1), names.RUN_32: ("run32", 1)})
    found = _measure(
        setting,
        [contestant for contestant in contestants if contestant.name != names.STOPS],
        (one, few, many, rows),
        report,
        seconds=1.5,
        bare=loops,
        only={names.UNIQUE: (many,), names.TWO: (many,)},
    )
    for cell in (one, few, many):
        columns = [RATE, CPU, P50, P99, FAILED, *([MEMORY] if cell is many else [])]
        shown = {**_rows(found, cell), **(_bare_rows(found, names.RUN_ONE) if cell is one else {})}
        report.tables[f"json-{cell.connections}"] = table(
            f"One row per request, {_own_title(cell.connections)}", columns, shown, base=names.TUTORIAL
        )
    shown = {**_rows(found, rows, 32), **_bare_rows(found, names.RUN_32)}
    report.tables["rows32-16"] = table("32 rows per request, 16 connections", [ROWS, CPU, P50, P99, FAILED], shown, base=names.TUTORIAL)
    memory = {name: middle(row.get("memory_mib")) for name, row in report.tables["json-64"]["rows"].items()}
    if memory.get(names.MULLE) and memory.get(names.TWO):
        report.notes.append(f"A second worker of ours adds {memory[names.TWO] - memory[names.MULLE]:.0f} MiB, its supervisor included.")
    report.notes.append(f"*{names.TUNED}* is the tutorial app as somebody who measures would write it: no promise is about it.")
    report.notes.append("Every server must give the model's own probability for the first request before it is measured.")
    report.notes.append(
        "The echo decodes 30 floats and answers two: no model, no checks. CPU is that of the server's whole process tree; "
        "the load generator's is not in it."
    )
    return report


def measure_grpc(setting: Setting) -> Report:
    """Model T over gRPC."""
    report = Report("Open Inference Protocol v2 over gRPC, the same tabular model")
    cells = [Cell("grpc", n) for n in (1, 16, 64)]
    kinds = ("grpc",)
    contestants = [
        *own_contestants(setting.work, "T", setting.scratch, kinds),
        *peer_contestants(setting.work, "T", setting.scratch, kinds),
        *bare_contestants(setting.work, kinds),
    ]
    found = _measure(setting, contestants, cells, report, seconds=2.0)
    for cell in cells:
        title = f"One FP32 row in raw_input_contents, {cell.connections} call{'s' if cell.connections > 1 else ''} at a time"
        report.tables[f"grpc-{cell.connections}"] = table(
            title, [RATE, CPU, P50, P99, FAILED], _rows(found, cell), base=names.GRPC_BARE, ratio="cpu_us"
        )
    report.notes.append(
        "The client writes prepared HTTP/2 frames, 16 calls at a time per connection; Python's own gRPC client would be the limit."
    )
    return report


def measure_small(setting: Setting) -> Report:
    """Model S by photograph and by tensor."""
    report = Report("Small convolution network (about 0.25 ms) on 3 × 224 × 224")
    photo, tensor = Cell("jpeg", 16), Cell("tensor", 16)
    kinds = ("jpeg", "tensor")
    contestants = [
        *own_contestants(setting.work, "S", setting.scratch, kinds),
        *peer_contestants(setting.work, "S", setting.scratch, kinds),
    ]
    loops = _loops(setting, "S", {names.RUN_CORE: ("run", 1), names.RUN_ALL: ("run", CORES), names.PIXELS_ALL: ("pixels", CORES)})
    found = _measure(setting, contestants, (photo, tensor), report, seconds=2.0, bare=loops)
    shown = {**_rows(found, photo), **_bare_rows(found, names.PIXELS_ALL)}
    report.tables["jpeg-S-16"] = table(
        "A JPEG of 60 KB uploaded, 16 connections", [RATE, CPU, P50, P99, FAILED, MEMORY], shown, base=names.TUTORIAL
    )
    shown = {**_rows(found, tensor), **_bare_rows(found, names.RUN_CORE, names.RUN_ALL)}
    title = "The tensor in binary (602 KB, Open Inference REST), 16 connections"
    report.tables["tensor-S-16"] = table(title, [RATE, CPU, P50, P99, FAILED, MEMORY], shown, base=names.RUN_CORE)
    report.notes.append(
        "Everybody resizes to 224 × 224 with Pillow's bilinear filter; draft decoding gives other pixels and is its own row."
    )
    report.notes.append("MLServer and MLflow take tensors as JSON only, and are left out.")
    return report


def measure_resnet(setting: Setting) -> Report:
    """Model I by photograph and by tensor."""
    report = Report("A network with the shape of ResNet-18 on 3 × 224 × 224")
    kinds = ("jpeg", "tensor")
    cells = [Cell(kind, n) for kind in kinds for n in (1, 16)]
    contestants = [
        *(one for one in own_contestants(setting.work, "I", setting.scratch, kinds) if one.name != names.DRAFT),
        *peer_contestants(setting.work, "I", setting.scratch, kinds),
    ]
    loops = _loops(setting, "I", {names.RUN_CORE: ("run", 1), names.RUN_ALL: ("run", CORES)})
    found = _measure(setting, contestants, cells, report, seconds=2.5, bare=loops, enough=0)
    for cell in cells:
        said = "A JPEG of 60 KB uploaded" if cell.kind == "jpeg" else "The tensor in binary"
        shown = {**_rows(found, cell), **_bare_rows(found, names.RUN_CORE, names.RUN_ALL)}
        report.tables[f"{cell.kind}-I-{cell.connections}"] = table(
            f"{said}, {_own_title(cell.connections)}", [RATE, CPU, P50, P99, FAILED], shown, base=names.RUN_ALL
        )
    return report


BUSY_GENERATOR, OFFERED = 0.85, 0.99
OVERLOAD_COLUMNS = tuple(
    {"key": key, "label": label, "unit": unit}
    for key, label, unit in (
        ("capacity", "capacity /s", "rate"),
        ("offered", "offered /s", "rate"),
        ("good", "good answers /s", "rate"),
        ("good_share", "share of capacity", "percent"),
        ("refused", "refused /s", "rate"),
        ("lost", "lost /s", "rate"),
        ("calm_p99_ms", "p99 unloaded", "ms"),
        ("p99_ms", "p99 of accepted", "ms"),
        ("calm_p50_ms", "p50 unloaded", "ms"),
        ("after_p50_ms", "p50 after 1 s", "ms"),
        ("memory_before_mib", "memory before", "MiB"),
        ("memory_peak_mib", "peak", "MiB"),
        ("memory_after_mib", "after", "MiB"),
        ("refusal_us", "CPU per refusal", "µs"),
        ("client_share", "the generator's core", "percent"),
    )
)


def measure_overload(setting: Setting) -> Report:
    """Twice the capacity, open loop."""
    report = Report("Overload: twice the capacity, open loop, clients that give up after 2 s")
    own_s, peer_s = (4.0, 4.0) if setting.quick else (60.0, 15.0)
    plans = (
        ("overload-T", "T", "json", "Tabular model, JSON", {names.MULLE, names.STOPS, names.TUTORIAL, names.TUNED}, 64),
        ("overload-S", "S", "jpeg", "Small network, JPEG", None, 16),
        ("overload-tensor", "S", "tensor", "Small network, binary tensor", {names.MULLE, names.TRITON}, 16),
    )
    for key, model, kind, title, who, busy in plans:
        contestants = [
            one
            for one in (
                *own_contestants(setting.work, model, setting.scratch, (kind,)),
                *peer_contestants(setting.work, model, setting.scratch, (kind,)),
            )
            if (one.name in who if who is not None else one.name not in {names.DRAFT, names.TUTORIAL_ONE})
        ]
        rows: dict[str, Any] = {}
        fleet = Fleet(setting.chosen(contestants), setting.scratch)
        try:
            for name, one in fleet.contestants.items():
                pipeline = 8 if one.key == "mulle" and model == "T" else 1
                try:
                    rows[name] = overload(fleet, name, kind, seconds=own_s if one.key == "mulle" else peer_s, busy=busy, pipeline=pipeline)
                    good, offered = (rows[name][key]["rounds"][0] for key in ("good", "offered"))
                    print(f"    {name}: {kind}: {good:,.0f} good of {offered:,.0f} offered", flush=True)
                except (SkippedError, OSError) as reason:
                    report.skipped[f"{name} ({title})"] = str(reason)
                report.configured |= {name: one.configured}
        finally:
            fleet.close()
        report.tables[key] = table(title, OVERLOAD_COLUMNS, rows)
    report.notes += [
        f"Ours {own_s:.0f} s, peers {peer_s:.0f} s. Latency counts from the intended send time; an answer after 2 s is lost, not good.",
        (
            "At most 4,000 connections with one request each; ours over JSON: 1,024 connections with up to 8 requests each, "
            "because the generator could not offer as much otherwise."
        ),
    ]
    for key, shown in report.tables.items():
        for name, row in shown["rows"].items():
            if row["client_share"]["rounds"][0] > BUSY_GENERATOR or row["offered_share"]["rounds"][0] < OFFERED:
                report.notes.append(f"{name} ({key}): the generator was at its limit.")
    return report


def measure_footprint(setting: Setting) -> Report:
    """Start, memory, size."""
    report = Report("Start, memory, size")
    kinds = ("json",)
    own = [one for one in own_contestants(setting.work, "T", setting.scratch, kinds) if one.name in {names.MULLE, names.TWO}]
    contestants = setting.chosen([*own, *peer_contestants(setting.work, "T", setting.scratch, kinds)])
    quick_ones = [one for one in contestants if one.name in {names.MULLE, names.TWO, names.TUTORIAL}]
    rows, report.skipped = cold_starts(quick_ones, setting.scratch, rounds=2 if setting.quick else 5)
    others = [one for one in contestants if one not in quick_ones]
    more, skipped = cold_starts(others, setting.scratch, rounds=1)
    rows, report.skipped = rows | more, report.skipped | skipped
    columns = [
        {"key": "cold_start_s", "label": "start to first answer", "unit": "s"},
        {"key": "start_cpu_s", "label": "CPU until then", "unit": "s"},
        {**MEMORY, "label": "memory then"},
    ]
    report.tables["start"] = table(
        "From the start of the process to the first right answer", columns, rows, base=names.MULLE, ratio="cold_start_s"
    )
    venvs = (
        []
        if setting.quick
        else [(names.TUTORIAL, "fastapi"), (names.BENTO, "bentoml"), (names.LIT, "litserve"), (names.MLSERVER, "mlserver")]
    )
    venvs += [] if setting.quick else [(names.KSERVE, "kserve"), (names.RAY, "ray"), (names.MLFLOW, "mlflow"), (names.TRITON, "triton")]
    try:
        sizes = installed_sizes(venvs)
        report.tables["install"] = table("Size of the environment on disk", SIZES, sizes)
    except SkippedError as reason:
        report.skipped["install"] = str(reason)
    report.configured |= {one.name: one.configured for one in contestants}
    report.notes.append("Peers' environments hold what their service here needs (ONNX Runtime, Pillow for pictures).")
    return report


GROUPS: dict[str, Callable[[Setting], Report]] = {
    "tabular": measure_tabular,
    "grpc": measure_grpc,
    "small": measure_small,
    "resnet": measure_resnet,
    "overload": measure_overload,
    "footprint": measure_footprint,
}


def measure_group(name: str, setting: Setting) -> Report:
    """Return a group's report with the time it took."""
    before = time.perf_counter()
    report = GROUPS[name](setting)
    report.seconds = round(time.perf_counter() - before, 1)
    return report
