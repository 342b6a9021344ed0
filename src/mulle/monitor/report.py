"""Draws a monitor report as one self-contained HTML page: the verdict for a manager on top, the figures below."""

from mulle.formats.charts import category_pair, histogram_pair
from mulle.formats.page import (
    Cell,
    Html,
    Section,
    Tile,
    Tone,
    escape,
    html_badge,
    html_callout,
    html_columns,
    html_figure,
    html_pairs,
    html_table,
    html_tiles,
    render_page,
)
from mulle.monitor.result import ColumnReport, MonitorReport
from mulle.monitor.wording import say_p, say_share

MAX_DRAWN = 12
_CALM_DRAWN = 4
_TONES: dict[str, Tone] = {"ok": "ok", "drift": "bad", "too few rows": "warn", "incomplete": "warn"}
_HOW = (
    "Numbers are compared by the Kolmogorov-Smirnov test (by chi-square where they have few different values), categories by "
    "chi-square, missing values by Fisher's exact test, values out of range and new values by exact counts. The reference is a "
    "sample too, and its size enters every test. p is after Holm's correction over all tests of this check. "
    "PSI is shown beside the value a healthy window of this size exceeds with the probability above; nothing is decided by it. "
    "The error rate is that of one check of one window: many checks add up."
)


def render_report(report: MonitorReport) -> str:
    """Return the whole page, as HTML text without any outside reference."""
    window = report.window
    served = f"{window.model} version {window.model_version}" if window.model_version else window.model
    subject = f"{served or 'the model'}, deployment {window.deployment}" if window.deployment else served
    sections = [
        Section("At a glance", _tiles(report) + _sentences(report)),
        Section(*_changes(report)),
        Section("All columns", _table(report), "Most changed first. Effect: the share of rows concerned."),
    ]
    odd = [(column.name, text) for column in report.columns for text in column.anomalies]
    if odd:
        note = "Served and counted. On its own none of these is an alarm; its test is, where one is significant."
        sections.append(Section("What is odd", html_table(("column", "what"), odd), note))
    if report.performance is not None:
        sections.append(Section("Labels", _performance(report), "Metrics on the rows of this window whose label has arrived."))
    sections.append(Section("How this was decided", _how(report), _HOW))
    title = f"Monitor: {window.deployment or window.model or 'window'}"
    footer = f"Mulle monitor report, {subject}" if subject else "Mulle monitor report"
    return render_page(title, sections, subtitle=_subtitle(report), badge=(_TONES[report.verdict], report.verdict), footer=footer)


def _subtitle(report: MonitorReport) -> str:
    return report.summary[0].upper() + report.summary[1:] + "."


def _tiles(report: MonitorReport) -> str:
    drifted = len(report.drifted)
    odd = sum(bool(column.anomalies) for column in report.columns)
    tiles = [
        Tile("Rows in the window", f"{report.n_rows:,}", f"reference: {report.n_reference_rows:,}"),
        Tile("Changed", f"{drifted} of {len(report.columns)}", "columns and answers", "bad" if drifted else "ok"),
        Tile("Odd, no alarm", str(odd - sum(bool(column.anomalies) for column in report.drifted)), "columns with unusual values"),
    ]
    performance = report.performance
    if performance is not None:
        name, value = next(iter(performance.metrics.items()))
        promised = performance.evaluation.get(name)
        tiles.append(
            Tile(
                name,
                "undefined" if value is None else f"{value:.3f}",
                f"{performance.n_labelled:,} labels" + ("" if promised is None else f"; evaluation {promised:.3f}"),
            )
        )
    return html_tiles(tiles)


def _sentences(report: MonitorReport) -> str:
    parts = [html_callout(text, tone="warn") for text in report.window.gaps]
    alarms = [test.sentence for column in report.drifted for test in column.tests if test.alarm]
    parts += [html_callout(text, tone="bad") for text in alarms[:MAX_DRAWN]]
    if len(alarms) > MAX_DRAWN:
        parts.append(html_callout(f"and {len(alarms) - MAX_DRAWN} more, in the table below"))
    if report.verdict == "ok":
        parts.append(html_callout("Nothing in this window differs from the reference by more than chance explains.", tone="ok"))
    return "".join(parts)


def _changes(report: MonitorReport) -> tuple[str, str, str]:
    if report.drifted:
        drawn = [column for column in report.drifted if column.comparison][:MAX_DRAWN]
        return "What changed", html_columns(*(_figure(column) for column in drawn)), ""
    drawn = [column for column in report.columns if column.comparison][:_CALM_DRAWN]
    return (
        "The least similar columns",
        html_columns(*(_figure(column) for column in drawn)),
        "Shown for orientation; none of them is an alarm.",
    )


def _figure(column: ColumnReport) -> str:
    picture = column.comparison
    if picture is None:
        return ""
    if picture.edges:
        drawing = histogram_pair(picture.edges, picture.reference, picture.current, labels=("reference", "window"))
    else:
        drawing = category_pair(picture.labels, picture.reference, picture.current, labels=("reference", "window"))
    return html_figure(drawing, column.name) + f'<p class="note">{escape(column.sentence, limit=400)}</p>'


def _table(report: MonitorReport) -> str:
    rows: list[list[Cell]] = []
    for column in report.columns:
        mark = html_badge("bad", "changed") if column.drifted else html_badge("warn", "odd") if column.anomalies else html_badge("ok", "ok")
        psi, cut = column.figures.get("psi"), column.figures.get("psi_cut")
        index = "–" if psi is None or cut is None else f"{psi:.3f} / {cut:.3f}"
        told = min(column.tests, key=lambda test: (not test.alarm, test.kind != "distribution"), default=None)
        missing = say_share(column.n_missing / total) if (total := column.n + column.n_missing) else "–"
        effect = "–" if told is None else f"{told.method} {told.effect:.3f}"
        p_value = Html(escape(say_p(column.p_adjusted).removeprefix("p = ").removeprefix("p "))) if column.tests else "–"
        rows.append([column.name, mark, column.type, column.n, missing, effect, p_value, index])
    return html_table(("column", "", "type", "values", "missing", "effect", "p", "PSI / cut"), rows)


def _performance(report: MonitorReport) -> str:
    performance = report.performance
    if performance is None:
        return ""
    rows: list[list[Cell]] = [[name, value, performance.evaluation.get(name)] for name, value in performance.metrics.items()]
    table = html_table(("metric", "this window", "evaluation"), rows)
    text = f"{performance.n_labelled:,} of {performance.n_rows:,} rows have a label."
    return html_callout(f"{text} {performance.note}".strip()) + table


def _how(report: MonitorReport) -> str:
    window, settings = report.window, report.settings
    pairs: list[tuple[str, Cell]] = [
        ("false alarms", f"at most {settings.alpha:.0%} of checks of a healthy window"),
        ("tests", report.n_tests),
        ("rows needed", settings.min_rows),
        ("smallest effect", say_share(settings.min_effect)),
        ("window", f"{window.since} … {window.until}" if window.since else None),
        ("revision", window.revision),
        ("bundle", window.bundle_digest[:12] or None),
        ("other revisions", f"{window.n_other_revisions:,} rows left out" if window.n_other_revisions else None),
        ("refused, failed", f"{window.n_refused:,} requests, {window.n_failed:,} requests"),
    ]
    return html_pairs(pairs) + "".join(html_callout(text) for text in window.notes)
