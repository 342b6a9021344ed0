"""The drift check of `drift.py`: false alarms when nothing drifts, what a real change does, and the cost."""

from typing import Any

import drift
from measure import Context, column, headline, report, table

WINDOWS = ((300, 1.0), (1000, 1.0), (1000, 1.1))


def measure_drift(context: Context) -> dict[str, Any]:
    """Return the share of windows with an alarm, and CPU per check."""
    rows, schema = drift.load_customers()
    evidently = drift.evidently_preset(schema)
    contestants = {
        "mulle": (drift.mulle(schema), 20 if context.quick else 200),
        "scipy KS and chi-square, p < .05": (drift.scipy_uncorrected, 20 if context.quick else 200),
        "PSI > 0.1": (drift.psi_customary, 20 if context.quick else 200),
    }
    skipped = {}
    if evidently is None:
        skipped["evidently preset"] = "it is not installed here"
    else:
        contestants["evidently preset"] = (evidently, 2 if context.quick else 20)
    shares: dict[str, dict[str, Any]] = {}
    costs: dict[str, dict[str, Any]] = {}
    for n_window, rise in WINDOWS:
        for name, (alarm, n_windows) in contestants.items():
            found = drift.measure(alarm, rows, n_window, n_windows, rise)
            costs.setdefault(name, {})[f"cpu_{n_window}_{rise}"] = found.pop("cpu_ms")
            for what, share in found.items():
                label = name if name == "mulle" else f"{name}: {what}"
                shares.setdefault(label, {"windows": n_windows})[f"alarms_{n_window}_{rise}"] = share
    alarms = table(
        "Share of windows with an alarm, reference of 3,000 customers",
        [
            column("alarms_300_1.0", "300 rows, nothing drifts", "percent"),
            column("alarms_1000_1.0", "1,000 rows, nothing drifts", "percent"),
            column("alarms_1000_1.1", "1,000 rows, one price +10 %", "percent"),
            column("windows", "windows tried", "count"),
        ],
        shares,
        headlines=[headline("false drift alarms, healthy windows of 1,000 rows", "mulle", "alarms_1000_1.0")],
    )
    cost = table("CPU per check of 1,000 rows", [column("cpu_1000_1.0", "CPU", "ms")], costs, ratio="cpu_1000_1.0")
    large = drift.measure_large(100_000 if context.quick else 1_000_000, 10)
    big = table(
        f"A window of {int(large['rows']):,} rows × {int(large['columns'])} numbers",
        [column("cpu_s", "CPU", "s")],
        {
            "mulle, against a saved baseline": {"cpu_s": large["check_s"]},
            "sorting the window (bare limit of a rank test)": {"cpu_s": large["sort_only_s"]},
            "scipy KS, both windows in memory": {"cpu_s": large["scipy_ks_s"]},
        },
        ratio="cpu_s",
    )
    notes = ["wa_churn, 19 columns; a window passes or fails as a whole. Few windows for Evidently, which is slow: its shares are coarse."]
    return report("Drift checks: honesty and cost", [alarms, cost, big], skipped=skipped, notes=notes)
