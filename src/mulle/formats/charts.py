"""Charts as inline SVG and HTML, drawn by small pure functions; they stand inside a page of `formats/page.py`.

Colours are the page's variables, so a chart is light or dark with it. Text is never scaled below reading size: charts
with many labels (`bar_chart`, `forest_plot`, `heat_table`) are HTML rows around small drawings in percent.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from mulle.formats.page import Tone, escape, format_number

Colour = Literal["one", "two", "three", "four", "five", "six", "ok", "warn", "bad", "soft"]
PALETTE: tuple[Colour, ...] = ("one", "two", "three", "four", "five", "six")

Range = tuple[float, float]

MAX_POINTS = 240
_WIDTH, _LEFT, _RIGHT, _TOP, _BOTTOM = 420.0, 44.0, 10.0, 10.0, 36.0


@dataclass(frozen=True, slots=True)
class Series:
    """One line of a chart; `low` and `high` draw a band around it, `dots` marks every point."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    colour: Colour | None = None
    dashed: bool = False
    dots: bool = False


@dataclass(frozen=True, slots=True)
class ForestRow:
    """One estimate with its interval. A row with `value` None is a heading; `flagged` greys out what rests on few rows."""

    label: str
    value: float | None = None
    low: float | None = None
    high: float | None = None
    note: str = ""
    flagged: bool = False


def ticks(low: float, high: float, *, about: int = 5) -> list[float]:
    """Return round numbers inside [low, high], roughly `about` of them, in steps of 1, 2 or 5 times a power of ten."""
    if not (math.isfinite(low) and math.isfinite(high)) or high <= low:
        return [low] if math.isfinite(low) else [0.0]
    raw = (high - low) / max(1, about)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def legend(entries: Iterable[tuple[str, Colour]]) -> str:
    """Return the key of a chart: name and colour."""
    items = "".join(f'<span><i style="background:var(--{colour})"></i>{escape(name, limit=40)}</span>' for name, colour in entries)
    return f'<div class="legend">{items}</div>'


def line_chart(
    series: Sequence[Series],
    *,
    x_label: str = "",
    y_label: str = "",
    x_range: Range | None = None,
    y_range: Range | None = None,
    diagonal: bool = False,
    height: int = 280,
) -> str:
    """Return lines over a grid, as SVG, with a legend when there is more than one.

    Args:
        series: At most six are told apart by colour. Points that are not finite are left out; of a long line about
            `MAX_POINTS` points are drawn.
        x_label: Under the axis.
        y_label: Over the axis.
        x_range: Ends of the axis; None: what the points need.
        y_range: Ends of the axis; None: what the points and bands need.
        diagonal: Draw y = x, for chance or perfect calibration.
        height: Height in units of a chart 420 wide.
    """
    xs = _finite(v for s in series for v in s.x)
    ys = _finite(v for s in series for part in (s.y, s.low or (), s.high or ()) for v in part)
    frame = _Frame(x_range or _span(xs), y_range or _span(ys), height)
    parts = [frame.grid(x_label, y_label)]
    if diagonal:
        parts.append(_path([(frame.x(v), frame.y(v)) for v in frame.x_range], "var(--faint)", dash="3 4", width=1))
    coloured: list[tuple[Series, Colour]] = [(s, s.colour or PALETTE[i % len(PALETTE)]) for i, s in enumerate(series)]
    for s, colour in coloured:
        parts.append(_series(frame, s, colour))
    key = legend((s.name, colour) for s, colour in coloured) if len(series) > 1 else ""
    names = ", ".join(s.name for s in series)
    return key + _svg(f"{names}: {y_label} over {x_label}", height, "".join(parts))


def histogram_pair(
    edges: Sequence[float],
    reference: Sequence[float],
    current: Sequence[float],
    *,
    labels: tuple[str, str] = ("reference", "current"),
    x_label: str = "",
    marker: float | None = None,
    height: int = 240,
) -> str:
    """Return two histograms over the same bins, each as shares of its own total, one filled and one outlined.

    Args:
        edges: Shape (bins + 1,), rising; infinite outer edges are drawn one bin wide.
        reference: Counts or shares per bin, shape (bins,).
        current: Counts or shares per bin, shape (bins,).
        labels: Names of the two in the legend.
        x_label: Under the axis.
        marker: A value marked by an upright line, such as a threshold.
        height: Height in units of a chart 420 wide.
    """
    ends = _drawn_edges(edges)
    first, second = _shares(reference), _shares(current)
    top = max([*first, *second, 0.0]) or 1.0
    frame = _Frame((ends[0], ends[-1]), (0.0, top * 1.08), height)
    bars = "".join(
        f'<rect x="{frame.x(a):.1f}" y="{frame.y(v):.1f}" width="{max(0.5, frame.x(b) - frame.x(a) - 1):.1f}" '
        f'height="{frame.y(0) - frame.y(v):.1f}" fill="var(--one)" fill-opacity=".32"/>'
        for a, b, v in zip(ends[:-1], ends[1:], first, strict=True)
    )
    outline: list[tuple[float, float]] = [(frame.x(ends[0]), frame.y(0))]
    for a, b, v in zip(ends[:-1], ends[1:], second, strict=True):
        outline += [(frame.x(a), frame.y(v)), (frame.x(b), frame.y(v))]
    outline.append((frame.x(ends[-1]), frame.y(0)))
    line = _path(outline, "var(--two)", width=1.8)
    mark = "" if marker is None else _upright(frame, marker)
    grid = frame.grid(x_label, "", percent=True)
    return legend([(labels[0], "one"), (labels[1], "two")]) + _svg(
        f"{labels[0]} and {labels[1]}: {x_label}", height, grid + bars + line + mark
    )


def category_pair(
    categories: Sequence[str],
    reference: Sequence[float],
    current: Sequence[float],
    *,
    labels: tuple[str, str] = ("reference", "current"),
    limit: int = 20,
) -> str:
    """Return, per category, its share in two windows as a filled bar and a mark; the rest beyond `limit` is counted.

    Args:
        categories: Names, most important first.
        reference: Counts or shares per category.
        current: Counts or shares per category.
        labels: Names of the two in the legend.
        limit: How many categories are drawn.
    """
    first, second = _shares(reference), _shares(current)
    top = max([*first, *second, 0.0]) or 1.0
    rows = [
        f'<div class="label" title="{escape(name)}">{escape(name)}</div><svg width="100%" height="18" aria-hidden="true">'
        f'<rect x="0" y="4" width="{a / top * 100:.2f}%" height="10" rx="2" fill="var(--one)" fill-opacity=".4"/>'
        f'<line x1="{b / top * 100:.2f}%" x2="{b / top * 100:.2f}%" y1="1" y2="17" stroke="var(--two)" stroke-width="3"/></svg>'
        f'<div class="figure">{a:.1%} → {b:.1%}</div>'
        for name, a, b in list(zip(categories, first, second, strict=True))[:limit]
    ]
    return (
        legend([(labels[0], "one"), (labels[1], "two")]) + f'<div class="rows bars">{"".join(rows)}</div>' + _more(len(categories) - limit)
    )


def bar_chart(
    labels: Sequence[str],
    values: Sequence[float],
    *,
    intervals: Sequence[tuple[float, float]] | None = None,
    texts: Sequence[str] | None = None,
    tones: Sequence[Tone] | None = None,
    limit: int = 40,
) -> str:
    """Return horizontal bars, one per row, with the figure beside each; values below zero run to the left of the zero line.

    Args:
        labels: One per bar, in the order drawn.
        values: Lengths of the bars, finite.
        intervals: Low and high of each bar, drawn as a thin line over it.
        texts: What stands beside each bar; None: the value.
        tones: Colour of each bar; `plain` is the usual one.
        limit: How many bars are drawn; the rest is counted.
    """
    ends = [v for pair in (intervals or ()) for v in pair]
    low, high = min([*values, *ends, 0.0], default=0.0), max([*values, *ends, 0.0], default=0.0)
    scale = _Percent(low, high)
    rows: list[str] = []
    for i, (label, value) in enumerate(list(zip(labels, values, strict=True))[:limit]):
        tone = tones[i] if tones else "plain"
        colour: Colour = "one" if tone == "plain" else tone
        a, b = sorted((scale(0.0), scale(value)))
        drawing = f'<rect x="{a:.2f}%" y="4" width="{max(b - a, 0.3):.2f}%" height="10" rx="2" fill="var(--{colour})" fill-opacity=".75"/>'
        if intervals:
            drawing += _whisker(scale(intervals[i][0]), scale(intervals[i][1]), "var(--ink)")
        text = texts[i] if texts else format_number(value)
        rows.append(
            f'<div class="label" title="{escape(label)}">{escape(label)}</div>'
            f'<svg width="100%" height="18" aria-hidden="true">{drawing}</svg>'
            f'<div class="figure">{escape(text)}</div>'
        )
    return f'<div class="rows bars">{"".join(rows)}</div>' + _more(len(labels) - limit)


def forest_plot(
    rows: Sequence[ForestRow],
    *,
    reference: float | None = None,
    x_range: Range | None = None,
    limit: int = 120,
) -> str:
    """Return estimates with their intervals on one common scale, one per row, under their headings.

    Args:
        rows: `ForestRow`s; those without a value are headings.
        reference: A value marked through all rows: the whole sample's, or no difference.
        x_range: Ends of the scale; None: what the intervals need.
        limit: How many rows are drawn; the rest is counted.
    """
    ends = _finite(v for r in rows for v in (r.value, r.low, r.high, reference) if v is not None)
    low, high = x_range or _span(ends)
    scale = _Percent(low, high)
    line = ""
    if reference is not None and low <= reference <= high:
        at = scale(reference)
        line = f'<line x1="{at:.2f}%" x2="{at:.2f}%" y1="0" y2="26" stroke="var(--faint)" stroke-dasharray="2 3"/>'
    parts: list[str] = []
    for row in rows[:limit]:
        if row.value is None:
            text = f" <small>{escape(row.note)}</small>" if row.note else ""
            parts.append(f'<div class="group">{escape(row.label)}{text}</div>')
            continue
        colour = "var(--faint)" if row.flagged else "var(--one)"
        drawing = line
        if row.low is not None and row.high is not None and math.isfinite(row.low) and math.isfinite(row.high):
            drawing += _whisker(scale(max(low, row.low)), scale(min(high, row.high)), colour, y=13)
        drawing += f'<circle cx="{scale(row.value):.2f}%" cy="13" r="4" fill="{colour}"/>'
        note = f" <small>{escape(row.note)}</small>" if row.note else ""
        parts.append(
            f'<div class="label" title="{escape(row.label)}">{escape(row.label)}{note}</div>'
            f'<svg width="100%" height="26" aria-hidden="true">{drawing}</svg><div class="figure">{_with_interval(row)}</div>'
        )
    axis = f'<div></div><div class="axis">{_percent_axis(scale, low, high)}</div><div></div>'
    return f'<div class="rows forest">{"".join(parts)}{axis}</div>' + _more(len(rows) - limit)


def heat_table(
    row_labels: Sequence[str],
    column_labels: Sequence[str],
    values: Sequence[Sequence[float]],
    *,
    row_title: str = "",
    column_title: str = "",
    by_row: bool = True,
    limit: int = 12,
) -> str:
    """Return a table of counts whose cells are the darker the larger their share: a confusion matrix, a contingency table.

    Args:
        row_labels: One per row.
        column_labels: One per column.
        values: Counts, >= 0, one sequence per row.
        row_title: What the rows are.
        column_title: What the columns are.
        by_row: Shares are of the row's total; otherwise of the whole.
        limit: How many rows and columns are shown; the rest is counted.
    """
    whole = sum(sum(row) for row in values) or 1.0
    lines: list[str] = []
    for label, row in list(zip(row_labels, values, strict=True))[:limit]:
        total = (sum(row) or 1.0) if by_row else whole
        cells = "".join(_heat_cell(value, value / total) for value in row[:limit])
        lines.append(f'<tr><th class="side">{escape(label, limit=24)}</th>{cells}</tr>')
    head = "".join(f"<th>{escape(label, limit=24)}</th>" for label in column_labels[:limit])
    corner = f"{escape(row_title)} ↓ &nbsp; {escape(column_title)} →" if row_title else ""
    hidden = max(len(row_labels), len(column_labels)) - limit
    table = f'<table class="heat"><thead><tr><th>{corner}</th>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table>'
    return f'<div class="scroll">{table}</div>' + _more(hidden)


@dataclass(frozen=True, slots=True)
class _Frame:
    """Maps values to the coordinates of a chart and draws its grid."""

    x_range: Range
    y_range: Range
    height: int

    def x(self, value: float) -> float:
        low, high = self.x_range
        return _LEFT + (value - low) / ((high - low) or 1.0) * (_WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        low, high = self.y_range
        inner = self.height - _TOP - _BOTTOM
        return self.height - _BOTTOM - (value - low) / ((high - low) or 1.0) * inner

    def grid(self, x_label: str, y_label: str, *, percent: bool = False) -> str:
        parts: list[str] = []
        bottom = self.height - _BOTTOM
        for tick in ticks(*self.y_range, about=4):
            at = self.y(tick)
            text = f"{tick:.0%}" if percent else _tick(tick)
            parts.append(f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{at:.1f}" y2="{at:.1f}" stroke="var(--grid)"/>')
            parts.append(f'<text x="{_LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{text}</text>')
        parts.extend(
            f'<text x="{self.x(tick):.1f}" y="{bottom + 15:.1f}" text-anchor="middle">{_tick(tick)}</text>' for tick in ticks(*self.x_range)
        )
        parts.append(f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{bottom}" y2="{bottom}" stroke="var(--line)"/>')
        middle = (_LEFT + _WIDTH - _RIGHT) / 2
        parts.append(f'<text x="{middle}" y="{self.height - 4}" text-anchor="middle">{escape(x_label, limit=60)}</text>')
        if y_label:
            turn = self.height / 2 - 10
            parts.append(f'<text transform="translate(10 {turn}) rotate(-90)" text-anchor="middle">{escape(y_label, limit=40)}</text>')
        return "".join(parts)


@dataclass(frozen=True, slots=True)
class _Percent:
    """Maps values to percent of a drawing's width, with room for a mark at both ends."""

    low: float
    high: float

    def __call__(self, value: float) -> float:
        return 2.0 + (value - self.low) / ((self.high - self.low) or 1.0) * 96.0


def _series(frame: _Frame, s: Series, colour: Colour) -> str:
    parts: list[str] = []
    points = [(x, y) for x, y in zip(s.x, s.y, strict=True) if math.isfinite(x) and math.isfinite(y)]
    if s.low is not None and s.high is not None:
        band = [(x, a, b) for x, a, b in zip(s.x, s.low, s.high, strict=True) if math.isfinite(a) and math.isfinite(b)]
        band = band[:: max(1, len(band) // MAX_POINTS)]
        edge = [(x, a) for x, a, _ in band] + [(x, b) for x, _, b in reversed(band)]
        outline = " ".join(f"{frame.x(x):.1f},{frame.y(y):.1f}" for x, y in edge)
        parts.append(f'<polygon points="{outline}" fill="var(--{colour})" fill-opacity=".15"/>')
    step = max(1, len(points) // MAX_POINTS)
    drawn = points[::step] + (points[-1:] if step > 1 else [])
    parts.append(_path([(frame.x(x), frame.y(y)) for x, y in drawn], f"var(--{colour})", dash="5 4" if s.dashed else "", width=1.9))
    if s.dots:
        parts.extend(f'<circle cx="{frame.x(x):.1f}" cy="{frame.y(y):.1f}" r="3" fill="var(--{colour})"/>' for x, y in drawn)
    return "".join(parts)


def _svg(label: str, height: int, body: str) -> str:
    return f'<svg class="chart" viewBox="0 0 {_WIDTH:.0f} {height}" role="img" aria-label="{escape(label)}">{body}</svg>'


def _path(points: Sequence[tuple[float, float]], colour: str, *, dash: str = "", width: float = 1.5) -> str:
    if not points:
        return ""
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    dashes = f' stroke-dasharray="{dash}"' if dash else ""
    return f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="{width}" stroke-linejoin="round"{dashes}/>'


def _upright(frame: _Frame, value: float) -> str:
    at = frame.x(value)
    return f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{_TOP}" y2="{frame.height - _BOTTOM}" stroke="var(--soft)" stroke-dasharray="3 3"/>'


def _whisker(a: float, b: float, colour: str, *, y: int = 9) -> str:
    return f'<line x1="{a:.2f}%" x2="{b:.2f}%" y1="{y}" y2="{y}" stroke="{colour}" stroke-width="1.6"/>'


def _percent_axis(scale: _Percent, low: float, high: float) -> str:
    marks = "".join(f'<text x="{scale(t):.2f}%" y="12" text-anchor="middle">{_tick(t)}</text>' for t in ticks(low, high, about=3))
    return f'<svg width="100%" height="16" aria-hidden="true">{marks}</svg>'


def _with_interval(row: ForestRow) -> str:
    if row.value is None:
        return ""
    interval = ""
    if row.low is not None and row.high is not None:
        interval = f" <small>[{format_number(row.low, digits=3)}, {format_number(row.high, digits=3)}]</small>"
    return f"{format_number(row.value, digits=3)}{interval}"


def _heat_cell(value: float, share: float) -> str:
    ink = "color:var(--card)" if share > 0.55 else ""  # noqa: PLR2004 - where dark text stops being readable on the shade
    return (
        f'<td style="background:rgba(var(--shade),{0.06 + 0.84 * share:.2f});{ink}">{format_number(value)}<small>{share:.1%}</small></td>'
    )


def _more(hidden: int) -> str:
    return f'<p class="note">and {hidden:,} more, not drawn</p>' if hidden > 0 else ""


def _finite(values: Iterable[float]) -> list[float]:
    return [v for v in values if math.isfinite(v)]


def _span(values: Sequence[float]) -> Range:
    if not values:
        return (0.0, 1.0)
    low, high = min(values), max(values)
    if low == high:
        pad = abs(low) * 0.1 or 1.0
        return (low - pad, high + pad)
    pad = (high - low) * 0.04
    return (low - pad, high + pad)


def _shares(counts: Sequence[float]) -> list[float]:
    total = sum(counts) or 1.0
    return [c / total for c in counts]


def _drawn_edges(edges: Sequence[float]) -> list[float]:
    ends = [float(e) for e in edges]
    inner = [e for e in ends if math.isfinite(e)]
    width = (inner[-1] - inner[0]) / max(1, len(inner) - 1) if len(inner) > 1 else 1.0
    if inner and math.isinf(ends[0]):
        ends[0] = inner[0] - (width or 1.0)
    if inner and math.isinf(ends[-1]):
        ends[-1] = inner[-1] + (width or 1.0)
    return ends if inner else [0.0, 1.0]


def _tick(value: float) -> str:
    return "0" if abs(value) < 1e-12 else f"{value:,.10g}" if abs(value) < 1e5 else f"{value:.3g}"  # noqa: PLR2004 - what fits under a grid line
