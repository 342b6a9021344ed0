"""Measures everything and writes the pages: `make bench`.

    python benchmarks/run.py [--quick] [--only NAME …]     measure; --only keeps the other figures as they are
    python benchmarks/run.py --render                      write the pages from results.json again

Each benchmark runs in a process of its own with a time limit, so that one that hangs or crashes costs only its own figures.
"""

import argparse
import importlib
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import render
from measure import HERE, ROOT, Context, SkippedError, quiet_environment
from venvs import REQUIREMENTS, peer_version

RESULTS = HERE / "results.json"
PAGE, DOCS = HERE / "RESULTS.md", ROOT / "docs" / "reference" / "benchmarks.md"
READMES = (ROOT / "README.md", ROOT / "README.ko.md")
FORMAT, VERSION = "mulle.benchmarks", 1
BENCHMARKS = {
    "full_run": ("full_run", "measure_full_run", 420),
    "startup": ("startup", "measure_startup", 240),
    "second_run": ("second_run", "measure_second_run", 240),
    "stage_overhead": ("stage_overhead", "measure_stage_overhead", 240),
    "tracking": ("tracking", "measure_tracking", 180),
    "quality": ("quality", "measure_quality", 180),
    "serving": ("first_rate", "measure_serving", 300),
    "http_stack": ("http_table", "measure_http_stack", 240),
    "drift": ("drift_table", "measure_drift", 240),
    "throughput": ("throughput", "measure_throughput", 120),
}
"""Name to module, function, and the most seconds it may take."""
OWN = (
    "mulle",
    "mlflow",
    "numpy",
    "onnxruntime",
    "polars",
    "scikit-learn",
    "fastapi",
    "starlette",
    "uvicorn",
    "httptools",
    "uvloop",
    "evidently",
)


def machine() -> dict[str, Any]:
    """Return what the figures are measured on; nothing that names the machine itself."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    cpu = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor() or "unknown CPU")
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }


def versions() -> dict[str, str]:
    """Return what took part, in which version."""
    found: dict[str, str] = {}
    for name in OWN:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    peers = {"dvc", "prefect", "dagster", "metaflow", "bentoml"} & set(REQUIREMENTS)
    for peer, distribution in [*((peer, peer) for peer in peers), *(("http", name) for name in ("granian", "blacksheep", "robyn"))]:
        try:
            found[distribution] = peer_version(peer, distribution)
        except SkippedError:
            continue
    return found


def measure_one(name: str, context: Context) -> dict[str, Any]:
    """Return the report of one benchmark, run in a process of its own; a crash becomes a report that says so."""
    _, _, limit_s = BENCHMARKS[name]
    output = context.folder / f"{name}.json"
    command = [sys.executable, str(HERE / "run.py"), "--one", name, "--folder", str(context.folder)]
    output.unlink(missing_ok=True)
    log = context.folder / f"{name}.log"
    with log.open("wb") as said:
        process = subprocess.Popen(
            command + (["--quick"] if context.quick else []), stdout=said, stderr=said, env=quiet_environment(), start_new_session=True
        )
        try:
            process.wait(limit_s)
            reason = f"the benchmark ended with {process.returncode}"
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            reason = f"the benchmark took more than {limit_s} s"
    if output.exists():
        return json.loads(output.read_bytes())
    tail = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
    text = clean(f"{reason}: {' '.join(tail)}"[:300], context.folder)
    return {"title": name.replace("_", " "), "tables": [], "skipped": {"everything": text}, "notes": []}


def clean(text: str, folder: Path) -> str:
    """Return a reason without paths of this machine, on one line."""
    for path, name in ((str(folder), "…"), (str(ROOT), "."), (str(Path.home()), "~"), (tempfile.gettempdir(), "…")):
        text = text.replace(path, name)
    return " ".join(text.replace("|", "/").split())


def run_one(name: str, context: Context) -> None:
    """Run one benchmark in this process and leave its report in the folder."""
    module, function, _ = BENCHMARKS[name]
    before = time.perf_counter()
    try:
        found = getattr(importlib.import_module(module), function)(context)
    except SkippedError as reason:
        found = {"title": name.replace("_", " "), "tables": [], "skipped": {"everything": str(reason)}, "notes": []}
    found["skipped"] = {who: clean(why, context.folder) for who, why in found["skipped"].items()}
    found["seconds"] = round(time.perf_counter() - before, 1)
    (context.folder / f"{name}.json").write_text(json.dumps(found, ensure_ascii=False, allow_nan=False), encoding="utf-8")


def write_pages(results: dict[str, Any]) -> list[Path]:
    """Write every page that shows figures, and return those that were written."""
    pages = {PAGE: render.render_page(results), DOCS: render.render_page(results)}
    for readme in READMES:
        text = readme.read_text(encoding="utf-8") if readme.exists() else ""
        if render.START in text and render.END in text:
            pages[readme] = render.place_block(text, render.figures_block(results))
        else:
            print(f"{readme.name} has no {render.START} … {render.END}: its figures were not written")
    for path, text in pages.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return list(pages)


def main() -> int:
    """Measure what was asked for, write the results and the pages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one short round of everything; not for publishing")
    parser.add_argument("--only", nargs="+", choices=list(BENCHMARKS), metavar="NAME", help=f"of {', '.join(BENCHMARKS)}")
    parser.add_argument("--render", action="store_true", help="only write the pages again")
    parser.add_argument("--one", choices=list(BENCHMARKS), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help="scratch folder to use and keep; a temporary one by default")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where the figures go; pages are written only for the default")
    options = parser.parse_args()
    if options.render:
        for path in write_pages(json.loads(RESULTS.read_bytes())):
            print(f"written: {path.relative_to(ROOT)}")
        return 0
    folder = options.folder or Path(tempfile.mkdtemp(prefix="mulle-bench-"))
    folder.mkdir(parents=True, exist_ok=True)
    context = Context(folder.resolve(), quick=options.quick)
    if options.one:
        run_one(options.one, context)
        return 0
    earlier = json.loads(options.results.read_bytes()) if options.only and options.results.exists() else None
    kept = earlier["benchmarks"] if earlier else {}
    loads = [os.getloadavg()[0]] + ([earlier["machine"]["load_min"], earlier["machine"]["load_max"]] if earlier else [])
    found: dict[str, Any] = {}
    try:
        for name in BENCHMARKS:
            if options.only and name not in options.only:
                continue
            found[name] = measure_one(name, context)
            loads.append(os.getloadavg()[0])
            print("\n".join(render.console_text(found[name])), flush=True)
    finally:
        if options.folder is None:
            shutil.rmtree(folder, ignore_errors=True)
    results = {
        "format": FORMAT,
        "version": VERSION,
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "quick": options.quick or bool(earlier and earlier["quick"]),
        "machine": {**machine(), "load_min": round(min(loads), 2), "load_max": round(max(loads), 2)},
        "versions": versions(),
        "benchmarks": {name: one for name in BENCHMARKS if (one := found.get(name, kept.get(name))) is not None},
    }
    options.results.write_text(json.dumps(results, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
    if options.results == RESULTS:
        write_pages(results)
    broken = [name for name, one in found.items() if not one["tables"]]
    if broken:
        print(f"\nno figures: {', '.join(broken)}")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
