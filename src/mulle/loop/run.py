"""`mulle run`: the wheel from data to a registered model, stage by stage, picking up where it was left.

Read from the top: settings, lock, sweep, then for each stage decide → reuse or run → commit. Everything a kill can
interrupt is either not yet visible or already whole.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mulle.core.canonical import is_digest
from mulle.core.clock import Clock
from mulle.core.errors import MulleError
from mulle.loop.cache import StageCache, list_files
from mulle.loop.engines.local import Job, LocalEngine, Outcome, log_tail
from mulle.loop.lock import run_lock
from mulle.loop.paths import StatePaths, folder_unwritable, state_paths, write_atomic
from mulle.loop.plan import Plan, Planner, RunOptions, Step, TokenCheck, plan_run
from mulle.loop.progress import Progress, SilentProgress, mebibytes
from mulle.loop.record import RunDocument, StageEntry, StageRecord, iso, new_run_id
from mulle.loop.settings import Settings
from mulle.loop.stage import Stage

_SCRATCH = ".scratch"


@dataclass(frozen=True, slots=True)
class RunReport:
    """What a run did.

    Attributes:
        document: The same that lies in `.mulle/runs/`.
        folders: Stage to the folder of its result.
    """

    document: RunDocument
    folders: dict[str, Path]

    @property
    def run_id(self) -> str:
        """The run's name."""
        return self.document.run_id

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON."""
        import msgspec

        return {**msgspec.to_builtins(self.document), "folders": {stage: str(path) for stage, path in self.folders.items()}}


@dataclass(slots=True)
class Runner:
    """One project, its stages, and how they are run and shown.

    Args:
        settings: The project's settings.
        stages: All stages in order.
        clock: Where times come from.
        progress: Told what happens.
        python_path: Folders put before `sys.path` of the stages' processes.
        check_token: How a source is looked at; by default `data/freshness.py`.
    """

    settings: Settings
    stages: Sequence[Stage]
    clock: Clock
    progress: Progress = field(default_factory=SilentProgress)
    python_path: Sequence[str] = ()
    check_token: TokenCheck | None = None

    def plan(self, options: RunOptions | None = None) -> Plan:
        """Return what a run would do now; nothing is run or written, and no user code is imported."""
        return plan_run(self._planner(options or RunOptions(), StageCache(state_paths(self.settings.project_dir))), self.stages)

    def run(self, options: RunOptions | None = None, *, wait: bool = False) -> RunReport:
        """Run what has to be run and return what was done.

        Args:
            options: Forcing and overriding.
            wait: Wait for another run of this project instead of raising.

        Raises:
            MulleError: planning or a stage failed; the document of the run says so too. Finished stages are kept.
            ConflictError: another run holds the project's lock.
            KeyboardInterrupt: passed on after the running stage was killed.
        """
        chosen = options or RunOptions()
        paths = state_paths(self.settings.project_dir).ensure()
        with run_lock(paths.lock, now_ns=self.clock.now_ns(), wait=wait, on_wait=self.progress.waiting):
            cache = StageCache(paths)
            cache.sweep()
            planner = self._planner(chosen, cache)
            return _Run(self, chosen, paths, cache, planner).execute()

    def _planner(self, options: RunOptions, cache: StageCache) -> Planner:
        return Planner(self.settings, self.stages, cache, options, check_token=self.check_token)


class _Run:
    """One run under way."""

    def __init__(self, runner: Runner, options: RunOptions, paths: StatePaths, cache: StageCache, planner: Planner) -> None:
        self.runner = runner
        self.paths = paths
        self.cache = cache
        self.planner = planner
        now_ns = runner.clock.now_ns()
        self.document = RunDocument(
            run_id=new_run_id(now_ns),
            project=runner.settings.project.name,
            environment=runner.settings.environment,
            status="running",
            started=iso(now_ns),
            options={"force": options.force, "from": options.from_stage, **options.values()},
        )
        self.options = options
        self.logs = paths.runs / self.document.run_id
        self.started = time.monotonic()
        self.outputs: dict[str, dict[str, str]] = {}
        self.folders: dict[str, Path] = {}

    def execute(self) -> RunReport:
        progress = self.runner.progress
        try:
            self.logs.mkdir(parents=True)
        except OSError as error:
            raise folder_unwritable(self.paths.root, error) from error
        engine = LocalEngine(self.runner.settings, self.logs, python_path=self.runner.python_path)
        self._save()
        progress.run_started(self.document.run_id, [stage.name for stage in self.runner.stages])
        try:
            for stage in self.runner.stages:
                step = self.planner.decide(stage, self.outputs)
                record = step.record if step.record is not None else self._run_stage(engine, step)
                self.outputs[stage.name] = record.outputs
                self.folders[stage.name] = self.cache.folder(stage.name, record.key)
                if step.record is not None:
                    self.cache.remember(stage.name, record.key)
                    self._entry(step, record, "cached")
            self._finish("done")
        except MulleError as error:
            self._finish("failed", error)
            raise
        except BaseException:
            self._finish("interrupted")
            raise
        finally:
            engine.close()
            progress.close()
        return RunReport(self.document, self.folders)

    def _run_stage(self, engine: LocalEngine, step: Step) -> StageRecord:
        stage, progress = step.stage, self.runner.progress
        progress.stage_started(stage.name, step.why)
        started, before = self.runner.clock.now_ns(), time.monotonic()
        log = self.logs / f"{stage.name}.log"
        draft = self.cache.draft(stage.name, self.document.run_id)
        try:
            outcome = engine.run(
                self._job(step, draft, log),
                lambda message, done, total, memory: progress.stage_report(stage.name, message, done, total, memory),
            )
            self.cache.discard(draft / _SCRATCH)
            record = _record(step, outcome, draft, started=iso(started), run_id=self.document.run_id)
            self.cache.commit(draft, record)
        except BaseException as error:
            self.cache.discard(draft)
            seconds = time.monotonic() - before
            self.document.stages.append(StageEntry(stage=stage.name, status="failed", why=step.why, key=step.key, seconds=seconds))
            note = error.code if isinstance(error, MulleError) else "interrupted"
            progress.stage_finished(stage.name, "failed", seconds, 0, note)
            if isinstance(error, MulleError):
                _add_log(error, log)
            raise
        if log.exists() and log.stat().st_size == 0:
            log.unlink()
        self._entry(step, record, "done")
        return record

    def _job(self, step: Step, draft: Path, log: Path) -> Job:
        values = self.options.values()
        return Job(
            stage=step.stage.name,
            run=step.stage.run,
            project_dir=str(self.runner.settings.project_dir),
            parameters=step.ingredients["parameters"],
            options={name: values.get(name) for name in step.stage.options},
            situation=step.ingredients.get("situation"),
            inputs={name: str(self.folders[name]) for name in step.stage.inputs},
            input_outputs={name: self.outputs[name] for name in step.stage.inputs},
            output=str(draft),
            scratch=str(draft / _SCRATCH),
            state_dir=str(self.paths.root),
            run_id=self.document.run_id,
            log=str(log),
        )

    def _entry(self, step: Step, record: StageRecord, status: str) -> None:
        cached = status == "cached"
        self.document.stages.append(
            StageEntry(
                stage=step.stage.name,
                status="cached" if cached else "done",
                why=step.why,
                key=record.key,
                seconds=record.seconds,
                peak_memory_bytes=record.peak_memory_bytes,
                outputs=record.outputs,
                facts=record.facts,
                made_by=record.run_id,
            )
        )
        note = step.why if cached else _facts_line(record.facts)
        self.runner.progress.stage_finished(step.stage.name, status, record.seconds, record.peak_memory_bytes, note[:200])
        if not cached:
            self._save()

    def _finish(self, status: str, error: MulleError | None = None) -> None:
        self.document.status = "done" if status == "done" else "failed" if status == "failed" else "interrupted"
        self.document.finished = iso(self.runner.clock.now_ns())
        self.document.seconds = time.monotonic() - self.started
        self.document.error = None if error is None else {"class": type(error).__name__, **error.to_dict()}
        try:
            self._save()
        except MulleError:
            if error is None and status == "done":
                raise  # otherwise the first error is the one to show: the disk that failed it also refuses the document

    def _save(self) -> None:
        path = self.paths.run_document(self.document.run_id)
        try:
            write_atomic(path, self.document.to_bytes())
        except OSError as error:
            raise folder_unwritable(path.parent, error) from error


def _record(step: Step, outcome: Outcome, draft: Path, *, started: str, run_id: str) -> StageRecord:
    return StageRecord(
        stage=step.stage.name,
        key=step.key,
        ingredients=step.ingredients,
        outputs=outcome.outputs,
        facts=outcome.facts,
        freshness=outcome.freshness,
        files=list_files(draft),
        seconds=outcome.seconds,
        peak_memory_bytes=outcome.peak_memory_bytes,
        started=started,
        run_id=run_id,
        reason=step.why,
    )


def _add_log(error: MulleError, log: Path) -> None:
    """Add the end of what the stage printed, so that the cause of a crash is seen at once."""
    if error.code in {"stage-killed", "stage-crashed", "user-code"}:
        tail = log_tail(log).strip()
        printed = "\n".join(f"    | {line[:160]}" for line in tail.splitlines()[-12:])
        if printed:
            error.facts["printed"] = "\n" + printed
        error.facts.setdefault("log", str(log))


def render_summary(report: RunReport) -> list[tuple[str, str, str, str, str]]:
    """Return the rows of the final table: stage, status, seconds, peak memory, what came out or why it was kept."""
    rows: list[tuple[str, str, str, str, str]] = []
    for entry in report.document.stages:
        line = _facts_line(entry.facts) or entry.why
        rows.append((entry.stage, entry.status, f"{entry.seconds:.2f} s", mebibytes(entry.peak_memory_bytes), line))
    return rows


def _facts_line(facts: Mapping[str, Any]) -> str:
    """Return the plain facts on one line, digests and numbers cut to what a person compares."""
    shown = {name: value for name, value in facts.items() if value is not None and not isinstance(value, (dict, list))}
    return ", ".join(f"{name} {_fact(value)}" for name, value in shown.items())


def _fact(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return value[:12] if isinstance(value, str) and is_digest(value) else str(value)
