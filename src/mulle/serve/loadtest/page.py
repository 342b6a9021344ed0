"""The load test as one page: a manager reads the top, an engineer the rest."""

import math
from collections.abc import Sequence

from mulle.formats.charts import Series, bar_chart, line_chart
from mulle.formats.page import (
    Html,
    Section,
    Tile,
    Tone,
    html_badge,
    html_callout,
    html_columns,
    html_details,
    html_figure,
    html_pairs,
    html_table,
    html_tiles,
    render_page,
)
from mulle.serve.loadtest.histogram import Histogram, bucket_range
from mulle.serve.loadtest.knee import MAX_ERROR_SHARE, Knee
from mulle.serve.loadtest.report import (
    ERROR_WORDS,
    LoadReport,
    busy_remark,
    failures_text,
    knee_sentence,
    percentile_text,
    rate_text,
    remarks_on,
    table_of,
    title_of,
)
from mulle.serve.loadtest.result import Result, milliseconds

_CURVES = 6
_CLIP = 4.0
_SHORT_S = 0.3
_FEW = 12
_TAIL = tuple(1 - 10 ** (-i / 8) for i in range(1, 33))
_VERDICTS: dict[str, tuple[Tone, str]] = {
    "met": ("ok", "kept"),
    "slow": ("bad", "too slow"),
    "errors": ("bad", "failures"),
    "unmeasured": ("warn", "not measured"),
}


def render_html(report: LoadReport) -> str:
    """Return the whole page, self-contained."""
    sections = [Section("", _tiles(report) + _callouts(report))]
    if report.knee is not None:
        sections.append(_knee_section(report.knee))
    if report.measured:
        sections.append(_table_section(report))
    shown = _shown(report)
    if shown:
        sections += [_latency_section(shown), _time_section(shown)]
    sections += [_failures_section(_all(report)), _asked_section(report)]
    return render_page(
        "Load test",
        sections,
        subtitle=f"{report.asked.url} · {report.began} · {report.asked.source}",
        badge=_badge(report),
        footer=(
            "Latency counts from the moment a request was meant to be sent to the last byte of its answer. Percentiles are of "
            "good answers (2xx) and at most 0.4 % off; ~ marks one with fewer than 100 samples beyond it."
        ),
    )


def _badge(report: LoadReport) -> tuple[Tone, str]:
    if report.interrupted:
        return "warn", "ended early"
    if report.slo_ms is not None:
        return ("ok", "objective kept") if report.kept else ("bad", "objective missed")
    worst = max((result.error_share for result in report.results), default=0.0)
    return ("bad", "with failures") if worst >= MAX_ERROR_SHARE else ("plain", "measured")


def _tiles(report: LoadReport) -> str:
    tiles: list[Tile] = []
    knee = report.knee
    if knee is not None:
        value = "none" if knee.rate is None else f"{knee.rate:,.0f}/s"
        note = "at least: the generator was the limit" if knee.limit == "generator" else "requests answered in time"
        tiles.append(Tile("Sustainable rate", value, note, "bad" if knee.rate is None else "ok"))
        kept = [step.result for step in knee.steps if step.verdict == "met" and step.rate == knee.rate]
        if kept:
            tiles.append(Tile("p99 at that rate", f"{percentile_text(kept[0].latency(), 0.99)} ms", f"of {kept[0].n_ok:,} answers"))
        tiles.append(Tile("Objective, p99", f"{milliseconds(knee.slo_ms)} ms", "given" if knee.slo_given else "5 × unloaded p99"))
    results = report.results
    if results:
        best = max(results, key=lambda result: result.ok_rate)
        tiles.append(Tile("Most good answers", f"{best.ok_rate:,.0f}/s", f"at {title_of(best)}"))
        first = results[0]
        late = report.slo_ms is not None and first.latency().quantile(0.99) / 1e6 > report.slo_ms
        tiles.append(Tile("p50", f"{percentile_text(first.latency(), 0.5)} ms", f"at {title_of(first)}"))
        tiles.append(Tile("p99", f"{percentile_text(first.latency(), 0.99)} ms", f"at {title_of(first)}", "bad" if late else "plain"))
    asked = _all(report)
    n, failed = sum(result.n_requests for result in asked), sum(result.n_errors for result in asked)
    tiles.append(
        Tile(
            "Failed", f"{failed / max(1, n):.2%}", f"{failed:,} of {n:,} requests", "bad" if failed / max(1, n) >= MAX_ERROR_SHARE else "ok"
        )
    )
    return html_tiles(tiles)


def _callouts(report: LoadReport) -> str:
    parts: list[str] = []
    if report.knee is not None:
        parts.append(html_callout(_sentence(knee_sentence(report.knee)), tone="ok" if report.knee.rate is not None else "bad"))
    parts += [html_callout(_sentence(miss), tone="bad") for miss in report.misses]
    parts += [html_callout(_sentence(remark), tone="warn") for remark in remarks_on(report.measured, failures=False)]
    busy = busy_remark(report.machine)
    if busy is not None:
        parts.append(html_callout(_sentence(busy), tone="warn"))
    return "".join(parts)


def _knee_section(knee: Knee) -> Section:
    steps = sorted(knee.steps, key=lambda step: step.rate)
    rows = [
        (
            f"{rate_text(step.rate)}/s",
            html_badge(*_VERDICTS[step.verdict]),
            f"{step.result.rate:,.0f}",
            *(percentile_text(step.result.latency(), q) for q in (0.5, 0.99, 0.999)),
            f"{step.result.latency().n:,}",
            f"{step.result.error_share:.2%}",
            step.why,
        )
        for step in steps
    ]
    table = html_table(("asked", "", "answered/s", "p50 ms", "p99 ms", "p99.9 ms", "samples", "failed", "compared"), rows)
    # A rate that was asked twice is drawn as it was judged: by its better measurement.
    best = {step.rate: step.result for step in sorted(steps, key=lambda step: (step.verdict == "met", -_ms(step.result, 0.99)))}
    drawn = [(rate, result) for rate, result in sorted(best.items()) if result.n_ok]
    top = min(max([_ms(result, 0.99) for _, result in drawn] + [1.25 * knee.slo_ms]), _CLIP * knee.slo_ms)
    unit, scale = _rate_unit(max(best, default=1.0))
    x = [rate / scale for rate, _ in drawn]
    ends = [0.0, max(x, default=1.0)]
    lines = [
        Series("p99", x, [min(_ms(result, 0.99), top) for _, result in drawn], dots=True, colour="two"),
        Series("p50", x, [min(_ms(result, 0.5), top) for _, result in drawn], dots=True, colour="one"),
        Series("objective for p99", ends, [knee.slo_ms, knee.slo_ms], dashed=True, colour="bad"),
    ]
    answered = [
        Series("answered well", x, [result.ok_rate / scale for _, result in drawn], dots=True, colour="ok"),
        Series("asked", ends, ends, dashed=True, colour="soft"),
    ]
    label = f"{unit} asked"
    charts = html_columns(
        html_figure(line_chart(lines, x_label=label, y_label="ms", y_range=(0.0, 1.05 * top)), "Latency by rate"),
        html_figure(line_chart(answered, x_label=label, y_label=unit), "Good answers by rate"),
    )
    return Section(
        "How much it carries",
        charts + table,
        "Each step is an open loop: requests are sent on time whether answers come or not, as independent users do. Rates are doubled "
        "until a step misses the objective twice, then the distance is halved. Latencies above four times the objective are drawn there.",
    )


def _table_section(report: LoadReport) -> Section:
    header, rows = table_of(report.measured)
    return Section(
        "Measurements",
        html_table(header, rows),
        "With a number of connections each asks again as soon as it is answered (closed loop); with a rate, requests are sent on time "
        "whatever comes back (open loop).",
    )


def _latency_section(results: Sequence[Result]) -> Section:
    curves: list[Series] = []
    for result in results[:_CURVES]:
        good = result.latency()
        n = good.n
        # Nothing is drawn beyond what ten samples support.
        shares = [q for q in (0.0, *_TAIL) if n * (1 - q) >= 10]  # noqa: PLR2004
        values = good.quantiles(shares)
        curves.append(Series(title_of(result), [-math.log10(1 - q) for q in shares], [value / 1e6 for value in values]))
    tail = line_chart(curves, x_label="slowest one in 10 (1), 100 (2), 1,000 (3), 10,000 (4)", y_label="ms", y_range=_from_zero(curves))
    last = results[0]
    labels, counts, texts = _bars(last.latency())
    return Section(
        "How long answers take",
        html_columns(
            html_figure(tail, "Percentiles"),
            html_figure(bar_chart(labels, counts, texts=texts), f"Answers by latency, {title_of(last)}"),
        ),
        "The curve says how long the slowest one of ten (p90), of a hundred (p99), of a thousand (p99.9) requests takes.",
    )


def _bars(histogram: Histogram) -> tuple[list[str], list[float], list[str]]:
    """Return label, share and text of bars between the 0.1 % and 99.9 % quantile, each about the same factor wide; the ends are open."""
    n = histogram.n
    if not n:
        return ["nothing"], [0.0], ["–"]
    low, high = (max(1.0, value) for value in histogram.quantiles((0.001, 0.999)))
    n_bars = 14
    factor = max(1.02, (high / low) ** (1 / n_bars))
    edges = [low * factor**i for i in range(n_bars + 1)]
    counts = [0] * (n_bars + 1)
    for bucket, count in histogram.filled():
        middle = sum(bucket_range(bucket)) / 2
        at = math.ceil(math.log(middle / low, factor)) if middle > low else 0
        counts[min(at, n_bars)] += count
    labels = [f"≤ {milliseconds(edge / 1e6)} ms" for edge in edges[:-1]] + [f"> {milliseconds(edges[-2] / 1e6)} ms"]
    return labels, [count / n for count in counts], [f"{count / n:.1%}" for count in counts]


def _time_section(results: Sequence[Result]) -> Section:
    rates: list[Series] = []
    slow: list[Series] = []
    unit, scale = _rate_unit(max((result.ok_rate for result in results), default=1.0))
    for result in results[:_CURVES]:
        begin = next((second.at_s for second in reversed(result.seconds) if second.warm), 0.0)
        ends = [second.at_s - begin for second in result.seconds if not second.warm]
        seconds = [
            (end, end - before, second)
            for end, before, second in zip(ends, [0.0, *ends], (one for one in result.seconds if not one.warm), strict=False)
            if end - before > _SHORT_S
        ]
        x = [end for end, _, _ in seconds]
        # One second makes no line.
        dots = len(x) <= _FEW
        rates.append(Series(title_of(result), x, [second.n_ok / length / scale for _, length, second in seconds], dots=dots))
        slow.append(Series(title_of(result), x, [second.p99_ns / 1e6 for _, _, second in seconds], dots=dots))
    longest = max((value for one in rates for value in one.x), default=1.0)
    return Section(
        "Over time",
        html_columns(
            html_figure(
                line_chart(rates, x_label="seconds", x_range=(0.0, longest), y_label=unit, y_range=_from_zero(rates)),
                "Good answers per second",
            ),
            html_figure(
                line_chart(slow, x_label="seconds", x_range=(0.0, longest), y_label="ms", y_range=_from_zero(slow)), "p99 of each second"
            ),
        ),
        "A level line is what a server in balance shows; a rising one has not reached its balance yet.",
    )


def _failures_section(results: Sequence[Result]) -> Section:
    rows = [
        (title_of(result), f"{result.n_errors:,}", f"{result.error_share:.2%}", failures_text(result))
        for result in results
        if result.n_errors
    ]
    if not rows:
        return Section(
            "Failures", html_callout(f"All {sum(result.n_requests for result in results):,} requests were answered with a 2xx.", tone="ok")
        )
    statuses = sorted({status for result in results for status in result.by_status})
    timing: list[tuple[str, ...]] = []
    for status in statuses:
        merged = Histogram().merged(*(result.latency(status, status) for result in results))
        timing.append(
            (str(status), f"{merged.n:,}", *(percentile_text(merged, q) for q in (0.5, 0.99)), milliseconds(merged.largest() / 1e6))
        )
    words = "; ".join(f"{kind}: {text}" for kind, text in ERROR_WORDS.items())
    return Section(
        "Failures",
        html_table(("asked", "failed", "share", "by kind"), rows)
        + html_table(("status", "answers", "p50 ms", "p99 ms", "slowest ms"), timing, caption="How long answers took, by status"),
        f"Kinds in the JSON report: {words}.",
    )


def _asked_section(report: LoadReport) -> Section:
    asked = report.asked
    generator = [
        (
            title_of(result),
            f"{result.cpu_us_per_request:,.3g}",
            f"{result.cpu_share:.0%}",
            "–" if result.asked_rate is None else f"{result.offered_rate:,.0f}",
            "–" if result.asked_rate is None else percentile_text(result.lags(), 0.99),
            f"{result.n_reconnects:,}",
        )
        for result in _all(report)
    ]
    pairs = html_pairs(
        [
            ("address", asked.url),
            ("requests", asked.source),
            ("different requests", f"{asked.n_requests:,}"),
            ("rows in each", None if asked.n_rows is None else f"{asked.n_rows:,}"),
            ("mean size", f"{asked.n_bytes:,} bytes"),
            ("headers", ", ".join(asked.header_names) or "none of its own"),
            ("measured for", f"{asked.duration_s:g} s each, after {asked.warmup_s:g} s of warm-up"),
            ("a client gives up after", f"{asked.timeout_s:g} s"),
            *report.machine.items(),
        ]
    )
    table = html_table(("asked", "CPU µs per request", "busy", "sent/s", "p99 sent late, ms", "reconnects"), generator)
    return Section(
        "What was asked, and on what",
        pairs + html_details("The generator itself", Html(table)),
        "The generator and the server share this machine where the address is its own: each takes time from the other.",
    )


def _shown(report: LoadReport) -> list[Result]:
    """Return the measurements whose curves are drawn: the table's, or the best step of the search."""
    found = [result for result in report.results if result.n_ok]
    if found or report.knee is None:
        return found
    met = [step.result for step in report.knee.steps if step.verdict == "met"]
    return sorted(met, key=lambda result: -(result.asked_rate or 0.0))[:_CURVES]


def _all(report: LoadReport) -> list[Result]:
    steps = [] if report.knee is None else [step.result for step in report.knee.steps]
    return [*report.results, *steps]


def _ms(result: Result, q: float) -> float:
    return result.latency().quantile(q) / 1e6


def _from_zero(series: Sequence[Series]) -> tuple[float, float]:
    top = max((value for one in series for value in one.y if math.isfinite(value)), default=1.0)
    return 0.0, 1.05 * (top or 1.0)


def _rate_unit(most: float) -> tuple[str, float]:
    """Return the unit rates are drawn in, and its size: axes have room for four digits."""
    return ("thousand requests per second", 1000.0) if most >= 5000 else ("requests per second", 1.0)  # noqa: PLR2004


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + ("" if text.endswith(".") else ".")
