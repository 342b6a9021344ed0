"""Results as text: pure functions of `results.json`, so that no page can say anything else than what was measured."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

NOTICE = "<!-- Written by benchmarks/run.py from benchmarks/results.json: run `make bench`, do not edit. -->"
START, END = "<!-- figures:start -->", "<!-- figures:end -->"
HINT = "`make bench` measures all of this on your machine."
BUSY = 1.25
_BLOCK = re.compile(re.escape(START) + ".*?" + re.escape(END), re.DOTALL)

Json = Mapping[str, Any]


def middle(cell: Any) -> Any:
    """Return the figure of a cell: the median of a summary, or the value itself."""
    return cell["median"] if isinstance(cell, Mapping) else cell


def number(value: float, unit: str) -> str:
    """Return a figure with as many digits as it deserves."""
    if unit == "percent":
        return f"{100 * value:.1f} %"
    if unit == "share":
        return f"{value:.4f}"
    if unit == "signed":
        return f"{value:+.4f}"
    if unit in {"rate", "count", "MiB"}:
        return f"{value:,.0f}" if abs(value) >= 10 else f"{value:.2g}"
    if value == 0:
        return "0"
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2 if abs(value) >= 1 else 3
    return f"{value:,.{digits}f}" if abs(value) >= 0.001 else f"{value:.1g}"


def with_unit(value: float, unit: str) -> str:
    """Return a figure and its unit."""
    said = number(value, unit)
    return f"{said} {unit}" if unit in {"s", "ms", "µs", "MiB"} else said


def cell_text(cell: Any, unit: str) -> str:
    """Return a cell of a table: the median and, where there were several measurements, their range."""
    if cell is None:
        return "–"
    if isinstance(cell, Mapping) and cell["n"] > 1:
        return f"{with_unit(cell['median'], unit)} ({number(cell['min'], unit)}–{number(cell['max'], unit)})"
    return with_unit(middle(cell), unit)


def ratio_text(value: float) -> str:
    """Return how many times the first row's figure a figure is."""
    return f"× {value:,.0f}" if value >= 10 else f"× {value:.2f}" if value >= 0.01 else f"× {value:.1g}"


def render_table(shown: Json) -> str:
    """Return one Markdown table."""
    heads = ["", *(one["label"] for one in shown["columns"])]
    base = next((middle(row[shown["ratio"]]) for row in shown["rows"].values() if shown["ratio"] in row), None) if shown["ratio"] else None
    if base:
        heads.append(next(one["label"] for one in shown["columns"] if one["key"] == shown["ratio"]) + ", ratio to the first row")
    lines = [f"| {' | '.join(heads)} |", f"|---|{'---:|' * (len(heads) - 1)}"]
    for name, row in shown["rows"].items():
        cells = [cell_text(row.get(one["key"]), one["unit"]) for one in shown["columns"]]
        if base:
            cells.append(ratio_text(middle(row[shown["ratio"]]) / base) if shown["ratio"] in row else "–")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def machine_text(results: Json) -> str:
    """Return what the figures were measured on, and how busy it was."""
    machine = results["machine"]
    low, high = machine["load_min"], machine["load_max"]
    text = (
        f"Measured {results['date']} on {machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']:.0f} GiB, "
        f"{machine['system']}, Python {machine['python']}; load {low:.1f}–{high:.1f}."
    )
    if high > BUSY * machine["cores"]:
        text += " **The machine was busy with other work:** wall times are inflated for everybody; believe CPU and ratios."
    if results["quick"]:
        text += " **Quick settings: not for publishing.**"
    return text


def targets_of(results: Json) -> list[tuple[Json, Json, Json]]:
    """Return (benchmark, table, headline) of everything the README shows."""
    return [
        (benchmark, shown, line)
        for benchmark in results["benchmarks"].values()
        for shown in benchmark.get("tables", ())
        for line in shown["headlines"]
    ]


def verdict(value: float | None, below: float | None) -> str:
    """Return whether a promise was kept."""
    if below is None:
        return ""
    if value is None:
        return "**not measured**"
    return "kept" if value < below else "**missed**"


def figures_block(results: Json) -> str:
    """Return the table of the README, markers included."""
    lines = [START, NOTICE, machine_text(results), "", "| what | Mulle | promised | beside it |", "|---|---:|---|---|"]
    for _, shown, line in targets_of(results):
        unit = next(one["unit"] for one in shown["columns"] if one["key"] == line["key"])
        own = shown["rows"].get(line["row"], {}).get(line["key"])
        value = None if own is None else middle(own)
        beside = [
            f"{name} {with_unit(middle(row[line['key']]), unit)}"
            for name, row in shown["rows"].items()
            if name != line["row"] and line["key"] in row
        ]
        promised = f"< {with_unit(line['below'], unit)}: {verdict(value, line['below'])}" if line["below"] is not None else ""
        lines.append(f"| {line['what']} | {'–' if value is None else with_unit(value, unit)} | {promised} | {'; '.join(beside)} |")
    return "\n".join([*lines, "", f"{HINT} Everything, with ranges and what was lost: `benchmarks/RESULTS.md`.", END])


def place_block(text: str, block: str) -> str:
    """Return `text` with what stands between the markers replaced; unchanged where there are none."""
    return _BLOCK.sub(lambda _: block, text)


def versions_text(versions: Json) -> str:
    """Return name and version of everything that took part."""
    return ", ".join(f"{name} {version}" for name, version in sorted(versions.items()))


def render_page(results: Json, *, title: str = "Benchmarks") -> str:
    """Return the whole page: every benchmark with its tables, ranges, skipped peers and notes."""
    parts = [NOTICE, f"# {title}", machine_text(results)]
    parts.append(
        "Contestants take turns, round by round; the median is shown, with the smallest and largest in brackets. "
        f"CPU is user and system time of the process and its children. {HINT}"
    )
    kept = [verdict(middle(shown["rows"].get(line["row"], {}).get(line["key"])), line["below"]) for _, shown, line in targets_of(results)]
    promised = [one for one in kept if one]
    if promised:
        parts.append(f"Promises kept: {promised.count('kept')} of {len(promised)}.")
    for benchmark in results["benchmarks"].values():
        parts.append(f"## {benchmark['title']}")
        for shown in benchmark.get("tables", ()):
            if shown["title"]:
                parts.append(f"**{shown['title']}**")
            if shown["rows"]:
                parts.append(render_table(shown))
            promises = [line for line in shown["headlines"] if line["below"] is not None]
            parts += [_promise(shown, line) for line in promises]
        if benchmark["skipped"]:
            parts.append("\n".join(f"- Not measured: {name}: {reason}" for name, reason in benchmark["skipped"].items()))
        parts += list(benchmark["notes"])
    parts += ["## Versions", versions_text(results["versions"])]
    return "\n\n".join(parts) + "\n"


def _promise(shown: Json, line: Json) -> str:
    unit = next(one["unit"] for one in shown["columns"] if one["key"] == line["key"])
    value = middle(shown["rows"].get(line["row"], {}).get(line["key"]))
    return f"Promised: {line['what']} < {with_unit(line['below'], unit)}: {verdict(value, line['below'])}."


def console_text(benchmark: Json) -> Sequence[str]:
    """Return a benchmark as lines for the terminal."""
    lines = [f"\n{benchmark['title']}"]
    for shown in benchmark.get("tables", ()):
        lines += [f"  {shown['title']}"] if shown["title"] else []
        for name, row in shown["rows"].items():
            cells = ", ".join(f"{one['label']} {cell_text(row.get(one['key']), one['unit'])}" for one in shown["columns"])
            lines.append(f"    {name}: {cells}")
    return [*lines, *(f"    not measured: {name}: {reason}" for name, reason in benchmark["skipped"].items())]
