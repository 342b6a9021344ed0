"""The page and the README's table: pure functions of `results.json`, so that neither can say anything else than what was measured."""

import re
from collections.abc import Sequence
from typing import Any

from serving import names
from serving.figures import Json, find_table, middle, ratio, value
from serving.targets import Target, targets

NOTICE = "<!-- Written by benchmarks/serving/run.py from benchmarks/serving/results.json: run `make bench-serving`, do not edit. -->"
START, END = "<!-- serving:start -->", "<!-- serving:end -->"
ENOUGH = 10_000
_BLOCK = re.compile(re.escape(START) + ".*?" + re.escape(END), re.DOTALL)


def number(figure: float, unit: str) -> str:
    """Return a figure with as many digits as it deserves."""
    if unit == "percent":
        return f"{100 * figure:.0f} %"
    if unit == "rate" or (unit in {"MiB", "MB", "count"} and abs(figure) >= 10):
        return f"{figure:,.0f}"
    if figure == 0:
        return "0"
    digits = 0 if abs(figure) >= 100 else 1 if abs(figure) >= 10 else 2 if abs(figure) >= 0.1 else 3
    return f"{figure:,.{digits}f}"


def with_unit(figure: float, unit: str) -> str:
    """Return a figure and its unit."""
    if unit == "times":
        return f"× {number(figure, unit)}"
    said = number(figure, unit)
    return f"{said} {unit}" if unit in {"s", "ms", "µs", "MiB", "MB"} else said


def cell_text(cell: Any, unit: str) -> str:
    """Return a cell: the figure and, where there were several rounds, their range; `~` and the number of samples where these are few."""
    figure = middle(cell)
    if figure is None:
        return "–"
    if "samples" in cell:
        few = cell["samples"] < ENOUGH
        return f"~ {with_unit(figure, unit)} (n = {cell['samples']:,})" if few else with_unit(figure, unit)
    rounds = cell["rounds"]
    spread = f" ({number(min(rounds), unit)}–{number(max(rounds), unit)})" if len(rounds) > 1 and min(rounds) != max(rounds) else ""
    return with_unit(figure, unit) + spread


def render_table(results: Json, name: str) -> str:
    """Return one table as Markdown."""
    shown = find_table(results, name)
    assert shown is not None
    columns = [one for one in shown["columns"] if any(one["key"] in row for row in shown["rows"].values())]
    base = shown["base"] if shown["base"] in shown["rows"] else None
    heads = ["", *(one["label"] for one in columns)]
    if base:
        heads.append(next(one["label"] for one in columns if one["key"] == shown["ratio"]) + f" over *{base}*")
    lines = [f"| {' | '.join(heads)} |", f"|---|{'---:|' * (len(heads) - 1)}"]
    for row_name, row in shown["rows"].items():
        cells = [cell_text(row.get(one["key"]), one["unit"]) for one in columns]
        if base:
            found = ratio(results, name, row_name, base, shown["ratio"])
            cells.append("–" if found is None else with_unit(found, "times"))
        said = f"**{row_name}**" if row_name in names.OWN else row_name
        lines.append(f"| {said} | {' | '.join(cells)} |")
    return "\n".join(lines)


def machine_text(results: Json) -> str:
    """Return what the figures were measured on, and how busy it was."""
    machine = results["machine"]
    low, high = machine["load_min"], machine["load_max"]
    text = (
        f"Measured {results['date']} on {machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']:.0f} GiB, "
        f"{machine['system']}, Python {machine['python']}. Server and load generator share the cores; believe ratios and CPU."
    )
    if results["quick"]:
        text += f" **Quick settings on a machine with load {low:.1f}–{high:.1f}: not for publishing.**"
    return text


def target_line(one: Target) -> str:
    """Return a promise as a row of the table of promises."""
    measured = "–" if one.measured is None else with_unit(one.measured, one.unit)
    verdict = one.verdict if one.verdict == "kept" else f"**{one.verdict}**"
    return f"| {one.kind} | {one.what} | {one.sense} {with_unit(one.limit, one.unit)} | {measured} | {verdict} |"


def targets_text(results: Json) -> str:
    """Return the table of promises, kept or not."""
    lines = ["| | promise | limit | measured | |", "|---|---|---|---:|---|", *(target_line(one) for one in targets(results))]
    return "\n".join(lines)


BLOCK_COLUMNS = (
    ("json-64", "rate", "rate", "JSON rows/s, c = 64"),
    ("json-64", "cpu_us", "µs", "server CPU"),
    ("json-64", "p99_ms", "ms", "p99"),
    ("rows32-16", "rate", "rate", "rows/s, 32 a request"),
    ("jpeg-S-16", "rate", "rate", "JPEG/s, small CNN"),
    ("tensor-S-16", "rate", "rate", "tensors/s, small CNN"),
    ("jpeg-I-16", "rate", "rate", "JPEG/s, ResNet shape"),
    ("grpc-64", "rate", "rate", "gRPC/s, c = 64"),
)
BLOCK_ROWS = (names.FULL, names.MULLE, names.TUTORIAL, names.TUTORIAL_ONE, names.TUNED, *names.SERVERS)


def figures_block(results: Json) -> str:
    """Return the README's table, markers included."""
    lines = [START, NOTICE, machine_text(results), ""]
    lines += [f"| one worker each | {' | '.join(label for *_, label in BLOCK_COLUMNS)} |", f"|---|{'---:|' * len(BLOCK_COLUMNS)}"]
    for row in BLOCK_ROWS:
        found = [value(results, table, row, key) for table, key, _, _ in BLOCK_COLUMNS]
        if any(one is not None for one in found):
            cells = ["–" if one is None else with_unit(one, unit) for one, (_, _, unit, _) in zip(found, BLOCK_COLUMNS, strict=True)]
            lines.append(f"| {f'**{row}**' if row in names.OWN else row} | {' | '.join(cells)} |")
    promised = targets(results)
    musts = [one for one in promised if one.kind == "must"]
    kept = sum(one.verdict == "kept" for one in musts)
    lines += [
        "",
        (
            f"{kept} of {len(musts)} promises are kept; each of them, what every server was configured to do, ranges, overload and losses: "
            "[benchmarks/serving/RESULTS.md](benchmarks/serving/RESULTS.md). `make bench-serving` measures all of this on your machine."
        ),
        END,
    ]
    return "\n".join(lines)


def place_block(text: str, block: str) -> str:
    """Return `text` with what stands between the markers replaced; unchanged where there are none."""
    return _BLOCK.sub(lambda _: block, text)


def render_page(results: Json) -> str:
    """Return the whole page."""
    lines = ["# Serving benchmarks", "", NOTICE, "", machine_text(results), ""]
    lines += [
        (
            f"p99 stands on at least {ENOUGH:,} samples over all rounds together; where there were fewer, `~` and their number say so. "
            "Other figures are medians of rounds in which the contestants took turns, with their range; ratios are taken round by round."
        ),
        "",
        "## Promises",
        "",
        targets_text(results),
        "",
    ]
    for group in results["groups"].values():
        lines += [f"## {group['title']}", ""]
        for name, shown in group["tables"].items():
            if shown["rows"]:
                lines += [f"**{shown['title']}**", "", render_table(results, name), ""]
        lines += [line for note in group["notes"] for line in (note, "")]
        if group["skipped"]:
            lines += [*(f"- Not measured: {who}: {why}" for who, why in group["skipped"].items()), ""]
    lines += ["## What each was configured to do", "", *configured_lines(results), ""]
    lines += ["Every server: one worker, access logs off, CPU only. Could not be had: Triton's own ONNX backend (in no package).", ""]
    lines += ["## Versions", "", ", ".join(f"{name} {version}" for name, version in sorted(results["versions"].items())), ""]
    return "\n".join(lines)


def configured_lines(results: Json) -> list[str]:
    """Return the table of configurations; where groups differ, each says for which it holds."""
    told: dict[str, dict[str, list[str]]] = {}
    for group_name, group in results["groups"].items():
        for name, text in group["configured"].items():
            told.setdefault(name, {}).setdefault(text, []).append(group_name)
    lines = ["| | | in |", "|---|---|---|"]
    for name in (*names.OWN, *names.PEERS, *names.BARE):
        lines += [f"| {name} | {text} | {', '.join(groups)} |" for text, groups in told.get(name, {}).items()]
    return lines


def console_text(group: Json) -> Sequence[str]:
    """Return a group as lines for the terminal."""
    lines = [f"\n{group['title']} ({group['seconds']:.0f} s)"]
    for shown in group["tables"].values():
        lines.append(f"  {shown['title']}")
        for name, row in shown["rows"].items():
            cells = (f"{one['label']} {cell_text(row[one['key']], one['unit'])}" for one in shown["columns"] if one["key"] in row)
            lines.append(f"    {name}: {', '.join(cells)}")
    return [*lines, *(f"    not measured: {name}: {reason}" for name, reason in group["skipped"].items())]
