"""The evaluation as one self-contained HTML page: the verdict for whoever decides, the evidence for whoever asks."""

from collections.abc import Callable, Mapping, Sequence

from mulle.evaluate.result import Comparison, Evaluation
from mulle.formats.charts import (
    ForestRow,
    Series,
    bar_chart,
    forest_plot,
    heat_table,
    histogram_pair,
    line_chart,
)
from mulle.formats.page import (
    Cell,
    Section,
    Tile,
    Tone,
    escape,
    format_number,
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
from mulle.release.gate_types import Outcome, Verdict
from mulle.stats.metric_names import METRICS, gain

_TONES: dict[Outcome, Tone] = {"pass": "ok", "fail": "bad", "inconclusive": "warn"}
_VERDICTS: dict[Outcome, str] = {"pass": "passed", "fail": "failed", "inconclusive": "cannot tell"}
_MAX_SLICE_COLUMNS = 8
_MAX_WORST_VALUES = 8
_KIBIBYTE = 1024.0


def render_report(
    evaluation: Evaluation,
    *,
    title: str,
    lineage: Mapping[str, str],
    verdict: Verdict | None = None,
    champion: str | None = None,
) -> str:
    """Return the report as a whole HTML document: no script, no request, light and dark, under 300 KB.

    Args:
        evaluation: What was measured.
        title: The model and what it answers, as a heading.
        lineage: Label to value: run, data version, code commit, bundle.
        verdict: What the gates said; None: no gates yet.
        champion: What the champion is called; None: the name in the evaluation.
    """
    e = evaluation
    name = champion or (e.comparison.champion if e.comparison else "champion")
    sections: list[Section] = [_summary(e, verdict, name)]
    if verdict is not None:
        sections.append(_gates(verdict))
    sections.append(_metrics(e))
    if e.comparison is not None:
        sections.append(_comparison(e, e.comparison, name))
    builders: list[Callable[[Evaluation], Section | None]] = [_curves, _answers, _slices, _importance, _latency, _worst]
    sections += [section for build in builders if (section := build(e)) is not None]
    sections.append(Section("Lineage", html_pairs(lineage.items()), "What this model was made of."))
    badge: tuple[Tone, str] | None = None if verdict is None else (_TONES[verdict.outcome], _VERDICTS[verdict.outcome])
    kind = {"binary": "yes or no", "multiclass": f"{len(e.classes)} classes", "regression": "a number"}[e.task]
    subtitle = f"The served graph, judged on {e.n:,} held-out rows ({kind})."
    footer = (
        f"Intervals: two-sided, {e.confidence:.0%}, {e.n_resamples:,} bootstrap resamples." if e.n_resamples else "No intervals were made."
    )
    return render_page(title, sections, subtitle, badge, footer=f"{footer} Measured in {e.seconds:.1f} s by Mulle.")


def _summary(e: Evaluation, verdict: Verdict | None, champion: str) -> Section:
    main = e.metrics.get(e.main_metric)
    tiles: list[Tile] = []
    if main is not None:
        tiles.append(Tile(METRICS[e.main_metric].label, format_number(main.value), _interval_text(main.low, main.high)))
    others = [n for n in ("accuracy", "f1", "log_loss", "mae", "r2") if n in e.metrics and n != e.main_metric][:2]
    tiles += [
        Tile(METRICS[n].label, format_number(e.metrics[n].value), _interval_text(e.metrics[n].low, e.metrics[n].high)) for n in others
    ]
    if e.comparison is not None and e.main_metric in e.comparison.metrics:
        d = e.comparison.metrics[e.main_metric]
        sure: Tone = "plain" if d.low <= 0 <= d.high else "ok" if gain(e.main_metric, d.difference) > 0 else "bad"
        tiles.append(
            Tile(f"against {champion}", f"{d.difference:+.4f}", f"{METRICS[e.main_metric].label}, {_signed_interval(d.low, d.high)}", sure)
        )
    single = next((entry for entry in e.latency if entry.rows == 1), None)
    if single is not None:
        tiles.append(Tile("One answer, p99", _ms(single.p99_ms), f"p50 {_ms(single.p50_ms)} on this host"))
    parts = [html_tiles(tiles)]
    if verdict is not None:
        parts.insert(0, html_callout(_sentence(verdict), tone=_TONES[verdict.outcome]))
    if e.n_missing_target:
        parts.append(html_callout(f"{e.n_missing_target:,} rows without a target were left out.", tone="warn"))
    return Section("In short", "".join(parts))


def _sentence(verdict: Verdict) -> str:
    if not verdict.results:
        return "No gates are set, so nothing was checked."
    total = len(verdict.results)
    passed = sum(r.outcome == "pass" for r in verdict.results)
    stopped = next((r for r in verdict.results if r.outcome == "fail"), None) or next(
        (r for r in verdict.results if r.outcome != "pass"), None
    )
    if stopped is None:
        return f"All {total} gates passed." if total > 1 else "The one gate passed."
    return f"{passed} of {total} gates passed. {stopped.name}: {stopped.reason}."


def _gates(verdict: Verdict) -> Section:
    rows: list[list[Cell]] = [[html_badge(_TONES[r.outcome], _VERDICTS[r.outcome]), r.name, f"{r.reason}."] for r in verdict.results]
    body = "".join(_gate_line(row) for row in rows) if rows else html_callout("No gates are set.", tone="warn")
    policy = "An inconclusive gate counts as failed." if verdict.on_inconclusive == "fail" else "An inconclusive gate waits for a person."
    return Section("Gates", f'<div class="gates">{body}</div>', f"Each gate with the numbers it compared. {policy}")


def _gate_line(row: Sequence[Cell]) -> str:
    badge, name, reason = row
    return f'<div class="gate"><div>{escape(badge)} <strong>{escape(name)}</strong></div><p>{escape(reason, limit=900)}</p></div>'


def _metrics(e: Evaluation) -> Section:
    header = ["Metric", "Value", f"{e.confidence:.0%} interval", *(["Cross-validation"] if e.folds else []), "Better"]
    rows: list[list[Cell]] = []
    for name, estimate in e.metrics.items():
        fold = e.folds.get(name)
        mean = [f"{fold.mean:.4f} ± {fold.sd:.4f}" if fold else None] if e.folds else []
        row: list[Cell] = [METRICS[name].label, estimate.value, _interval_text(estimate.low, estimate.high) or None, *mean]
        rows.append([*row, "higher" if METRICS[name].higher_is_better else "lower"])
    folds = len(next(iter(e.folds.values())).values) if e.folds else 0
    note = f"Cross-validation: mean ± standard deviation over {folds} stratified folds of the training rows." if folds else ""
    return Section("Metrics", html_table(header, rows), note)


def _comparison(e: Evaluation, c: Comparison, champion: str) -> Section:
    rows: list[list[Cell]] = []
    forest: list[ForestRow] = []
    for name, d in c.metrics.items():
        better = gain(name, d.difference)
        low, high = sorted((gain(name, d.low), gain(name, d.high)))
        mark = (
            html_badge("ok", "better")
            if low > 0
            else html_badge("bad", "worse")
            if high < 0
            else html_badge("plain", "no difference shown")
        )
        rows.append([METRICS[name].label, d.challenger, d.champion, f"{d.difference:+.4f}", _signed_interval(d.low, d.high), mark])
        if METRICS[name].points:
            forest.append(ForestRow(METRICS[name].label, better, low, high))
    table = html_table(["Metric", "This model", champion, "Difference", f"{c.confidence:.0%} interval", ""], rows)
    tests: list[str] = []
    if c.delong is not None:
        tests.append(f"DeLong's test of the two ROC areas: difference {c.delong.difference:+.4f}, p = {format_number(c.delong.p_value)}.")
    if c.mcnemar is not None:
        m = c.mcnemar
        alone = f"{m.only_challenger:,} rows only this model gets right, {m.only_champion:,} only the champion"
        tests.append(f"McNemar's exact test: {alone}, p = {format_number(m.p_value)}.")
    plot = html_figure(forest_plot(forest, reference=0.0), "Gain over the champion (right of the dotted line: better)") if forest else ""
    roc = ""
    if c.curves and e.roc:
        own, other = e.roc[0], c.curves[0]
        lines = [Series("this model", own.x, own.y), Series(champion, other.x, other.y, dashed=True)]
        roc = html_figure(_unit_chart(lines, "false positive rate", "true positive rate"), "ROC curves")
    body = table + "".join(f'<p class="note">{t}</p>' for t in tests) + html_columns(*[p for p in (plot, roc) if p])
    return Section(
        f"Against {champion}",
        body,
        f"Both models on the same {c.n:,} rows and the same resamples, which makes the difference surer than either figure.",
    )


def _curves(e: Evaluation) -> Section | None:
    figures: list[str] = []
    if e.roc:
        lines = [Series(c.name, c.x, c.y) for c in e.roc]
        figures.append(html_figure(_unit_chart(lines, "false positive rate", "true positive rate"), "ROC: how well classes are told apart"))
    if e.precision_recall:
        lines = [Series(c.name, c.x, c.y) for c in e.precision_recall]
        figures.append(
            html_figure(line_chart(lines, x_label="recall", y_label="precision", x_range=(0, 1), y_range=(0, 1)), "Precision and recall")
        )
    if e.reliability:
        points = Series("observed", [b.mean_probability for b in e.reliability], [b.observed_share for b in e.reliability], dots=True)
        figures.append(
            html_figure(_unit_chart([points], "promised probability", "observed share"), "Calibration: are probabilities honest?")
        )
    if e.observed:
        points = Series("mean target", [b.mean_probability for b in e.observed], [b.observed_share for b in e.observed], dots=True)
        same = Series(
            "exact", [b.mean_probability for b in e.observed], [b.mean_probability for b in e.observed], dashed=True, colour="soft"
        )
        figures.append(
            html_figure(line_chart([points, same], x_label="mean prediction", y_label="mean target"), "Prediction and target, ten bins")
        )
    if e.histogram is not None:
        h = e.histogram
        if e.task != "regression":
            marker = e.threshold if e.task == "binary" else None
            first, second = h.counts[:2]
            chart = histogram_pair(h.edges, first, second, labels=(h.groups[0], h.groups[1]), x_label=h.label, marker=marker)
        else:
            middle = [(a + b) / 2 for a, b in zip(h.edges[:-1], h.edges[1:], strict=True)]
            chart = line_chart([Series("rows", middle, h.counts[0])], x_label=h.label, y_label="rows")
        figures.append(html_figure(chart, "How scores are spread" if e.task != "regression" else "How errors are spread"))
    return Section("Curves", html_columns(*figures)) if figures else None


def _answers(e: Evaluation) -> Section | None:
    if not e.confusion:
        return None
    table = heat_table(e.classes, e.classes, e.confusion, row_title="truth", column_title="answer")
    note = "Rows are the truth, columns the answer; shares are of each row."
    if e.task == "binary":
        note += f" {e.positive!r} is answered from a probability of {e.threshold:g}."
    return Section("Right and wrong answers", table, note)


def _slices(e: Evaluation) -> Section | None:
    if not e.slices:
        return None
    columns = list(dict.fromkeys(s.column for s in e.slices))
    metric = e.main_metric
    rows: list[ForestRow] = []
    for column in columns[:_MAX_SLICE_COLUMNS]:
        rest = e.slices_left_out.get(column, 0)
        rows.append(ForestRow(column, note=f"{rest:,} rows with rarer values are not shown" if rest else ""))
        for s in (s for s in e.slices if s.column == column):
            found = s.metrics.get(metric)
            count = f"{s.n:,}{', few rows' if s.small else ''}"
            if found is None:
                rows.append(ForestRow(f"{s.value} has no {METRICS[metric].label}: one class only", note=count))
            else:
                rows.append(ForestRow(s.value, found.value, found.low, found.high, count, s.small))
    whole = e.metrics.get(metric)
    plot = forest_plot(rows, reference=whole.value if whole else None)
    names = [
        n for n in ("accuracy", "precision", "recall", "log_loss", "calibration_error", "rmse", "mae") if n in e.metrics and n != metric
    ]
    header = ["Column", "Value", "Rows", *(METRICS[n].label for n in names)]
    table = html_table(header, [[s.column, s.value, s.n, *(_value(s.metrics.get(n)) for n in names)] for s in e.slices[:160]])
    note = (
        f"{METRICS[metric].label} where a column has one value; the dotted line is the whole holdout. Few rows (under 30) are greyed out."
    )
    return Section("Slices", plot + html_details("Other metrics per slice", table), note)


def _importance(e: Evaluation) -> Section | None:
    if not e.importance:
        return None
    labels = [i.column for i in e.importance]
    values = [i.mean for i in e.importance]
    intervals = [(i.mean - i.sd, i.mean + i.sd) for i in e.importance]
    texts = [f"{i.mean:+.4f} ± {i.sd:.4f}" for i in e.importance]
    note = (
        f"What {METRICS[e.main_metric].label} loses when a raw column is shuffled: mean ± standard deviation of "
        f"{e.importance[0].repeats} shuffles, {e.importance_rows:,} rows. Columns that say the same share their importance."
    )
    return Section("What the model relies on", bar_chart(labels, values, intervals=intervals, texts=texts, limit=30), note)


def _latency(e: Evaluation) -> Section | None:
    if not e.latency and e.size_bytes is None:
        return None
    rows: list[list[Cell]] = [
        [
            f"{entry.rows:,}",
            f"{entry.samples:,}",
            _ms(entry.p50_ms),
            _ms(entry.p99_ms),
            f"{entry.rows / max(entry.p50_ms, 1e-6) * 1000:,.0f}",
        ]
        for entry in e.latency
    ]
    table = html_table(["Rows per request", "Requests", "p50", "p99", "Rows per second at p50"], rows) if rows else ""
    pairs: list[tuple[str, Cell]] = []
    if e.host is not None:
        pairs += [("Processor", e.host.cpu), ("Cores", e.host.cores), ("System", f"{e.host.system}, Python {e.host.python}")]
    if e.size_bytes is not None:
        pairs.append(("Graph", f"{e.size_bytes / _KIBIBYTE:,.1f} KiB"))
    return Section(
        "Speed and size",
        table + html_pairs(pairs),
        "Measured through the same function that scored the holdout, on the machine named here; other machines differ.",
    )


def _worst(e: Evaluation) -> Section | None:
    if not e.worst:
        return None
    by_importance = [i.column for i in e.importance]
    known = list(e.worst[0].values)
    columns = [c for c in by_importance if c in known][:_MAX_WORST_VALUES] or known[:_MAX_WORST_VALUES]
    given = "Probability of the truth" if e.task != "regression" else "Prediction"
    answer = ["Answer"] if e.task != "regression" else []
    rows: list[list[Cell]] = [
        [f"{w.row:,}", w.target, *([w.predicted] if answer else []), f"{w.score:.4g}", *(w.values.get(c, "") for c in columns)]
        for w in e.worst
    ]
    table = html_table(["Row", "Truth", *answer, given, *columns], rows)
    return Section(
        "The most wrong answers",
        html_details(f"{len(rows)} rows of the holdout", table),
        "Often mislabelled rows, or something no column tells.",
    )


def _unit_chart(lines: Sequence[Series], x_label: str, y_label: str) -> str:
    return line_chart(lines, x_label=x_label, y_label=y_label, x_range=(0, 1), y_range=(0, 1), diagonal=True)


def _value(estimate: object) -> Cell:
    return getattr(estimate, "value", None)


def _interval_text(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f"{format_number(low)} to {format_number(high)}"


def _signed_interval(low: float, high: float) -> str:
    return f"{low:+.4f} to {high:+.4f}"


def _ms(value: float) -> str:
    return f"{value * 1000:.0f} µs" if value < 1 else f"{value:.2f} ms"
