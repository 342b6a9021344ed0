"""Our server beside all its peers, the same models in one run: `make bench-serving`.

    python -m serving.run [--quick] [--only GROUP …] [--peers KEY,KEY] [--results FILE]     (in the folder benchmarks/)
    python -m serving.run --render                        write the pages from results.json again

Peers live in virtual environments of their own, installed on the first run; one that cannot be had is named with its reason.
The load generator shares the machine with the server it measures and is not pinned, as any client on one machine would.
"""

import argparse
import json
import os
import resource
import shutil
import sys
import tempfile
import time
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from measure import HERE, ROOT, SkippedError
from run import clean, machine
from venvs import REQUIREMENTS, peer_bin, peer_version

from serving import render
from serving.groups import GROUPS, Setting, measure_group
from serving.models import make_workload

FOLDER = HERE / "serving"
RESULTS, PAGE = FOLDER / "results.json", FOLDER / "RESULTS.md"
READMES = (ROOT / "README.md", ROOT / "README.ko.md")
FORMAT, VERSION = "mulle.benchmarks.serving", 1
PEERS = {
    "tutorial": ("fastapi", "fastapi"),
    "intra1": ("fastapi", "uvicorn"),
    "orjson": ("fastapi", "orjson"),
    "bentoml": ("bentoml", "bentoml"),
    "litserve": ("litserve", "litserve"),
    "mlserver": ("mlserver", "mlserver"),
    "kserve": ("kserve", "kserve"),
    "ray": ("ray", "ray"),
    "mlflow": ("mlflow", "mlflow"),
    "triton": ("triton", "nvidia-pytriton"),
}
"""Short name to environment, and the distribution whose version is told."""

OWN = ("mulle", "numpy", "onnxruntime", "httptools", "uvloop", "msgspec", "pillow", "grpcio")


def versions(keys: frozenset[str]) -> dict[str, str]:
    """Return what took part, in which version."""
    found: dict[str, str] = {}
    for name in OWN:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    for key in sorted(keys):
        venv, distribution = PEERS[key]
        try:
            found[distribution] = peer_version(venv, distribution)
        except SkippedError:
            continue
    return found


def prepare(keys: frozenset[str]) -> dict[str, str]:
    """Install the peers' environments before anything is measured, and return who cannot be had, with the reason."""
    missing: dict[str, str] = {}
    for venv in dict.fromkeys(PEERS[key][0] for key in PEERS if key in keys):
        assert venv in REQUIREMENTS
        try:
            peer_bin(venv)
        except SkippedError as reason:
            missing[venv] = str(reason)
            print(f"cannot be had here: {venv}: {reason}", flush=True)
    return missing


def write_pages(results: dict[str, Any]) -> list[Path]:
    """Write every page that shows these figures, and return those that were written."""
    pages = {PAGE: render.render_page(results)}
    for readme in READMES:
        text = readme.read_text(encoding="utf-8") if readme.exists() else ""
        if render.START in text and render.END in text:
            pages[readme] = render.place_block(text, render.figures_block(results))
        else:
            print(f"{readme.name} has no {render.START} … {render.END}: its figures were not written")
    for path, text in pages.items():
        path.write_text(text, encoding="utf-8")
    return list(pages)


def _report(name: str, setting: Setting) -> dict[str, Any]:
    report = asdict(measure_group(name, setting))
    report["skipped"] = {who: clean(why, setting.scratch) for who, why in report["skipped"].items()}
    return report


def _save(path: Path, results: dict[str, Any]) -> None:
    path.write_text(json.dumps(results, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one short round of everything; not for publishing")
    parser.add_argument("--only", nargs="+", choices=list(GROUPS), metavar="GROUP", help=f"of {', '.join(GROUPS)}; other figures are kept")
    parser.add_argument("--peers", help=f"only these, by comma: {','.join(PEERS)}; 'none': only ours")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where the figures go; pages are written only for the default")
    parser.add_argument("--render", action="store_true", help="only write the pages again")
    parser.add_argument("--folder", type=Path, help="scratch folder to use and keep; a temporary one by default")
    return parser.parse_args()


def main() -> int:
    """Measure what was asked for, write the results after every group, and the pages at the end."""
    options = _options()
    if options.render:
        for path in write_pages(json.loads(RESULTS.read_bytes())):
            print(f"written: {path.relative_to(ROOT)}")
        return 0
    keys = frozenset(PEERS) if options.peers is None else frozenset(options.peers.split(",")) & set(PEERS)
    # Thousands of connections on both sides; servers inherit the limit.
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    missing = prepare(keys)
    folder = (options.folder or Path(tempfile.mkdtemp(prefix="mulle-bench-"))).resolve()
    setting = Setting(make_workload(folder / "work"), folder, options.quick, None if options.peers is None else keys)
    earlier = json.loads(options.results.read_bytes()) if options.only and options.results.exists() else None
    groups: dict[str, Any] = dict(earlier["groups"]) if earlier else {}
    loads = [os.getloadavg()[0]] + ([earlier["machine"]["load_min"], earlier["machine"]["load_max"]] if earlier else [])
    began = time.monotonic()
    broken: list[str] = []
    try:
        for name in [name for name in GROUPS if not options.only or name in options.only]:
            print(f"\n{name} ({time.monotonic() - began:.0f} s since the start)", flush=True)
            try:
                groups[name] = _report(name, setting)
            except Exception as error:  # noqa: BLE001 - what was measured before is kept, and this is told
                broken.append(name)
                print(f"    {name} failed: {type(error).__name__}: {error}", flush=True)
                continue
            groups[name]["skipped"] |= {venv: clean(why, folder) for venv, why in missing.items()}
            loads.append(os.getloadavg()[0])
            results = {
                "format": FORMAT,
                "version": VERSION,
                "date": datetime.now(UTC).strftime("%Y-%m-%d"),
                "quick": options.quick or bool(earlier and earlier["quick"]),
                "machine": {**machine(), "load_min": round(min(loads), 2), "load_max": round(max(loads), 2)},
                "versions": {**(earlier["versions"] if earlier else {}), **versions(keys)},
                "groups": {known: groups[known] for known in GROUPS if known in groups},
            }
            _save(options.results, results)
            print("\n".join(render.console_text(groups[name])), flush=True)
    finally:
        if options.folder is None:
            shutil.rmtree(folder, ignore_errors=True)
    if options.results == RESULTS and not broken:
        write_pages(json.loads(RESULTS.read_bytes()))
    print(f"\n{time.monotonic() - began:.0f} s" + (f"; no figures: {', '.join(broken)}" if broken else ""))
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
