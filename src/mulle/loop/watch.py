"""Watches a deployment: reads the logged window, compares it with the serving bundle's baseline, writes the report.

    prediction log ──┐
    feedback log ────┼── check_window ── .mulle/reports/monitor/<time>-<deployment>.json | .html
    bundle baseline ─┘

Which bundle: the one the signed spec gives most traffic, else the one that answered last. Rows other revisions answered are
left out and counted: their scores come from another model.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mulle.core.canonical import is_digest
from mulle.core.errors import MulleError, SpecError
from mulle.core.names import require_name
from mulle.formats.baseline import read_baseline
from mulle.formats.bundle import BASELINE, Manifest, verify_bundle
from mulle.formats.deployment import Revision, read_signed_spec
from mulle.formats.envelope import read_limited
from mulle.formats.feedback_log import join_feedback, read_feedback
from mulle.formats.prediction_log import PredictionTable, read_predictions
from mulle.formats.signing import require_signature
from mulle.loop.paths import StatePaths, folder_unwritable, write_atomic
from mulle.loop.settings import Settings, duration_s
from mulle.loop.trust import trusted_keys
from mulle.monitor.baseline import AnswerSpec
from mulle.monitor.check import check_window
from mulle.monitor.performance import judge_labelled, say_drop
from mulle.monitor.report import render_report
from mulle.monitor.result import DriftSettings, MonitorReport, Performance, WindowInfo

MAX_REPORT_BYTES = 64 << 20
_SECOND = 1_000_000_000
_OK_BELOW = 400
_LOOKS = 2


def check_deployment(
    settings: Settings,
    paths: StatePaths,
    *,
    now_ns: int,
    last: int | None = None,
    since: str | int | None = None,
    until: str | int | None = None,
    deployment: str | None = None,
) -> MonitorReport:
    """Return the verdict on a window of what a deployment served; JSON and HTML are written beside each other.

    Args:
        settings: `[monitor]` says how to judge, and how long a window is when nothing else is said.
        paths: The state folder.
        now_ns: Now, in nanoseconds since 1970-01-01 UTC: durations count back from it.
        last: Only the newest this many rows; with it, `since` is open unless given.
        since: Start: ISO time, a duration such as `2h`, or nanoseconds.
        until: End, exclusive: the same.
        deployment: Which; the project's own by default.

    Raises:
        SpecError: an unreadable time, nothing has been logged yet, or no bundle to compare with.
        CheckError: the bundle is damaged, or the spec is signed by nobody this environment trusts.
        UnavailableError: the report cannot be written.
    """
    name = require_name(deployment or settings.deployment, "a deployment")
    if last is not None and last < 1:
        raise SpecError("monitor-last", f"a window of the last {last} rows holds nothing", fix="give a number above 0, such as --last 1000")
    since_ns, until_ns = parse_time(since, now_ns), parse_time(until, now_ns)
    if since_ns is None and last is None:
        since_ns = (until_ns or now_ns) - duration_s(settings.monitor.window) * _SECOND
    if since_ns is not None and until_ns is not None and since_ns >= until_ns:
        raise SpecError("monitor-window", "the window ends before it starts", fix="give a --since before --until")
    table = _read_settled(paths, name, since_ns, until_ns, last)
    revision, folder = _reference(settings, paths, name, table)
    manifest = verify_bundle(folder, digest=revision.bundle_digest or None)
    report = _check(settings, paths, name, table, revision, manifest, folder)
    return _write(paths, name, report, now_ns)


def parse_time(value: str | int | None, now_ns: int) -> int | None:
    """Return a moment in nanoseconds since 1970-01-01 UTC: ISO time (UTC unless it says otherwise), or a duration before now.

    Raises:
        SpecError: neither.
    """
    if value is None or isinstance(value, int):
        return value
    try:
        return now_ns - duration_s(value) * _SECOND
    except ValueError:
        pass
    try:
        moment = datetime.fromisoformat(value.strip())
    except ValueError as error:
        raise SpecError(
            "monitor-time",
            f"{value[:80]!r} is neither a time nor a duration",
            fix="write 2026-11-20T06:00, 2026-11-20T06:00+09:00, 2h or 7d",
        ) from error
    moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment
    return int(moment.timestamp()) * _SECOND + moment.microsecond * 1000


def latest_report(paths: StatePaths, deployment: str | None = None) -> Path:
    """Return the JSON file of the last report; its HTML lies beside it with the suffix `.html`.

    Raises:
        SpecError: there is none.
    """
    pattern = "*.json" if deployment is None else f"*Z-{require_name(deployment, 'a deployment')}.json"
    found = max((paths.reports / "monitor").glob(pattern), default=None, key=lambda path: path.name)
    if found is None:
        raise SpecError("monitor-no-report", "no window was checked yet", fix="mulle monitor check")
    return found


def load_report(path: Path) -> dict[str, Any]:
    """Return a report as `MonitorReport.to_dict` wrote it.

    Raises:
        SpecError: missing, too large, or not a report.
    """
    try:
        document: Any = json.loads(read_limited(path, max_bytes=MAX_REPORT_BYTES))
    except ValueError as error:
        raise SpecError("monitor-report-unreadable", f"this is no report: {error}", fix="mulle monitor check", where=str(path)) from error
    return document


def _read_settled(paths: StatePaths, name: str, since_ns: int | None, until_ns: int | None, last: int | None) -> PredictionTable:
    """Return the window; a torn end is looked at again, because a server may have been in the middle of writing it."""
    table = read_predictions(paths.logs, name, since_ns=since_ns, until_ns=until_ns, last=last)
    for _ in range(_LOOKS):
        damage = table.gaps.damage
        if not damage.torn_tails or damage.corrupt_frames or table.gaps.missing_frames:
            break
        table = read_predictions(paths.logs, name, since_ns=since_ns, until_ns=until_ns, last=last)
    return table


def _reference(settings: Settings, paths: StatePaths, name: str, table: PredictionTable) -> tuple[Revision, Path]:
    spec = paths.spec(name)
    if spec.exists():
        signed = read_signed_spec(spec)
        served = signed.spec
        require_signature(served.to_bytes(), signed.signature, trusted=trusted_keys(settings), what="the deployment spec", where=str(spec))
        weight = served.traffic.weights
        revision = max(served.revisions, key=lambda item: (weight.get(item.number, 0), item.number))
        return revision, bundle_folder(paths, revision.bundle_digest, revision.bundle_path)
    if not len(table):
        raise SpecError(
            "monitor-nothing-served",
            f"nothing was served by a deployment called {name!r}, and no model was released to it",
            fix="mulle run, then mulle serve; or name another deployment with --deployment",
        )
    source = table.sources[int(table.source_index[-1])]
    revision = Revision(source.revision, source.model, source.model_version, source.bundle_digest, "", source.run_id)
    return revision, bundle_folder(paths, source.bundle_digest, "")


def bundle_folder(paths: StatePaths, digest: str, bundle_path: str) -> Path:
    """Return the folder of a bundle: among the project's bundles, else where the spec says.

    Raises:
        SpecError: it is in neither place.
    """
    places = [*([paths.bundles / digest] if is_digest(digest) else []), *([paths.root / bundle_path] if bundle_path else [])]
    found = next((place for place in places if place.is_dir()), None)
    if found is None:
        raise SpecError(
            "monitor-no-bundle",
            f"the bundle {digest[:12]!r}, which served, is not here: its baseline is needed",
            fix="copy the bundle back into .mulle/bundles, or run the check where it was sealed",
            where=str(places[-1]) if places else str(paths.bundles),
        )
    return found


def _check(
    settings: Settings, paths: StatePaths, name: str, table: PredictionTable, revision: Revision, manifest: Manifest, folder: Path
) -> MonitorReport:
    if BASELINE not in manifest.files:
        raise SpecError("monitor-no-baseline", "the bundle was sealed without a baseline", fix="mulle run, or adopt it with sample data")
    baseline = read_baseline(folder / BASELINE)
    mine = [i for i, source in enumerate(table.sources) if source.bundle_digest == revision.bundle_digest]
    rows = table.of_source(mine[0]) if len(mine) == 1 else table
    if len(mine) != 1:
        import numpy as np

        rows = table.take(np.isin(table.source_index, mine))
    answered = rows.take(rows.status < _OK_BELOW)
    width = max(1, len(manifest.classes))
    scores = answered.outputs[:, :width]
    if scores.shape[1] < width:
        scores = None
    answer = AnswerSpec(manifest.require_answer(), manifest.classes, manifest.positive, manifest.threshold)
    window = _window(name, table, answered, revision)
    return check_window(
        baseline,
        {column.name: answered.columns[column.name] for column in manifest.columns if column.name in answered.columns},
        scores,
        settings=DriftSettings(alpha=settings.monitor.alpha, min_rows=settings.monitor.min_rows),
        answer=answer,
        window=window,
        performance=None if scores is None else _performance(settings, paths, name, answered, answer, revision),
    )


def _window(name: str, table: PredictionTable, answered: PredictionTable, revision: Revision) -> WindowInfo:
    gaps: list[str] = []
    damage = table.gaps.damage
    if not table.gaps.complete:
        parts = {
            "missing frames": table.gaps.missing_frames,
            "changed or unreadable frames": damage.corrupt_frames,
            "torn ends of files": damage.torn_tails,
            "requests answered and not logged": table.gaps.dropped,
            "rows left out by sampling": table.gaps.sampled_out,
        }
        gaps = [f"{count:,} {what}" for what, count in parts.items() if count] or ["the log says it is incomplete"]
    notes: list[str] = []
    if table.gaps.unlogged:
        notes.append(f"{table.gaps.unlogged:,} requests were refused because they could not be logged")
    others = len(table) - len(answered)
    if others:
        notes.append(f"{others:,} rows of the window were answered by other revisions, or with an error: left out")
    counts = table.outcomes.values()
    return WindowInfo(
        deployment=name,
        model=revision.model,
        model_version=revision.model_version,
        revision=revision.number,
        bundle_digest=revision.bundle_digest,
        since=_iso(int(answered.time_ns[0])) if len(answered) else "",
        until=_iso(int(answered.time_ns[-1])) if len(answered) else "",
        n_other_revisions=others,
        n_refused=sum(count.refused for count in counts),
        n_failed=sum(count.failed for count in counts),
        gaps=tuple(gaps),
        notes=tuple(notes),
    )


def _performance(
    settings: Settings, paths: StatePaths, name: str, rows: PredictionTable, answer: AnswerSpec, revision: Revision
) -> Performance | None:
    feedback = read_feedback(paths.logs, name)
    if not len(feedback):
        return None
    joined = join_feedback(rows, feedback, kind="value" if answer.task == "regression" else "label")
    if not len(joined.rows):
        return None
    evaluation, problem = _evaluation(settings, paths, revision)
    scores = rows.outputs[joined.rows][:, : max(1, len(answer.classes))]
    bound = settings.monitor.performance
    also = () if bound is None else (bound.metric,)
    found = judge_labelled(joined.values, scores, len(rows), answer=answer, evaluation=evaluation, also=also)
    if found is not None and bound is not None:
        problem = "; ".join(part for part in (problem, say_drop(found, bound.metric, bound.max_drop)) if part)
    return replace(found, note="; ".join(part for part in (found.note, problem) if part)) if found and problem else found


def _evaluation(settings: Settings, paths: StatePaths, revision: Revision) -> tuple[Mapping[str, float], str]:
    """Return the holdout metrics of the version, or why they are not known; a monitor must not fail because they are not."""
    if settings.backends.state is None and not paths.state_db.exists():
        return {}, "the evaluation is not known: there is no event log here"
    from mulle.loop.wiring import open_state
    from mulle.registry.fold import fold

    try:
        store = open_state(settings)
        try:
            record = fold(store.events()).version(revision.model, revision.model_version)
        finally:
            store.close()
    except MulleError as error:
        return {}, f"the evaluation is not known: {error.what}"
    if record is None or record.bundle_digest != revision.bundle_digest:
        return {}, "the evaluation is not known: this version is not in the event log"
    return record.metrics, ""


def _write(paths: StatePaths, name: str, report: MonitorReport, now_ns: int) -> MonitorReport:
    moment = datetime.fromtimestamp(now_ns // _SECOND, UTC).strftime("%Y%m%dT%H%M%S") + f".{now_ns % _SECOND // 1000:06d}Z"
    folder = paths.ensure().reports / "monitor"
    stem = f"{moment}-{name}"
    report = replace(report, files=tuple(f"reports/monitor/{stem}{suffix}" for suffix in (".json", ".html")))
    document = json.dumps(report.to_dict(), ensure_ascii=False, indent=1, allow_nan=False)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # The JSON is what `latest_report` looks for: it comes last.
        write_atomic(folder / f"{stem}.html", render_report(report).encode("utf-8"))
        write_atomic(folder / f"{stem}.json", document.encode("utf-8"))
    except OSError as error:
        raise folder_unwritable(folder, error) from error
    return report


def _iso(time_ns: int) -> str:
    return datetime.fromtimestamp(time_ns // _SECOND, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
