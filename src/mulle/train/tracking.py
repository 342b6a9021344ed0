# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false, reportMissingTypeStubs=false
"""Training history: one small port, MLflow behind it.

Metrics travel in batches: MLflow takes 19 s for 1,000 points one by one, and 0.3 s in one batch. Nothing global is
touched: no active run, no fluent API, so that two trackers in one process never write into each other's run.
"""

import contextlib
import fcntl
import logging
import math
import os
import tempfile
import time
import warnings
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Literal, Protocol

from mulle.core.errors import SpecError, UnavailableError
from mulle.core.user_code import bounded

Status = Literal["FINISHED", "FAILED", "KILLED"]
METRICS_PER_BATCH = 1_000
PARAMS_PER_BATCH = 100
MAX_PARAM_CHARS = 6_000
MAX_TAG_CHARS = 8_000
MAX_KEY_CHARS = 250


@dataclass(frozen=True, slots=True)
class TrackedRun:
    """A run as the tracker remembers it; metrics are the last value of each."""

    run_id: str
    name: str
    status: str
    params: dict[str, str]
    metrics: dict[str, float]
    tags: dict[str, str]


class Tracker(Protocol):
    """Where training history is kept.

    Any thread and any process may use a tracker on the same store. A run belongs to whoever started it: only they log
    to it and finish it. Every method is complete when it returns; none keeps anything for later. Logging the same
    parameter twice with another value is a `SpecError`; tags and artefacts are replaced; metrics are appended.
    Names and values beyond the store's limits are cut, and end in `…` where they were.
    """

    def start_run(self, experiment: str, *, name: str = "", tags: Mapping[str, str] | None = None) -> str:
        """Return the identity of a new run in `experiment`, which is made if it is not there."""
        ...

    def log_params(self, run_id: str, params: Mapping[str, Any]) -> None:
        """Keep parameters, written as text."""
        ...

    def log_metrics(self, run_id: str, metrics: Mapping[str, float], *, step: int = 0) -> None:
        """Keep one value of each metric; values that are not finite are left out."""
        ...

    def log_curves(self, run_id: str, curves: Mapping[str, Sequence[float]]) -> None:
        """Keep curve name to one value per step, steps counted from 0."""
        ...

    def log_artifact(self, run_id: str, name: str, content: bytes | Path) -> None:
        """Keep a file under `name`, a relative path with `/`."""
        ...

    def log_artifacts(self, run_id: str, files: Mapping[str, bytes | Path]) -> None:
        """Keep several files: name to content."""
        ...

    def set_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        """Set tags; a tag that is there is replaced."""
        ...

    def finish(self, run_id: str, status: Status = "FINISHED") -> None:
        """Say how the run ended."""
        ...

    def search_runs(self, experiment: str, *, tags: Mapping[str, str] | None = None, limit: int = 100) -> list[TrackedRun]:
        """Return runs that have all of `tags`, the newest first; none for an experiment nobody made."""
        ...


def param_text(value: Any) -> str:
    """Return how a parameter is written, cut to what every store takes; a cut one says how long it was."""
    text = value if isinstance(value, str) else repr(value)
    if len(text) <= MAX_PARAM_CHARS:
        return text
    ending = f"… (cut: {len(text):,} characters)"
    return text[: MAX_PARAM_CHARS - len(ending)] + ending


def store_key(name: str) -> str:
    """Return `name` as a key every store takes: letters of any script, digits and `_-./ :`; the rest becomes `_`."""
    text = "".join(c if c.isalnum() or c in "_-./ :" else "_" for c in name)
    text = text.replace("..", "_").strip("/ ") or "_"
    return text if len(text) <= MAX_KEY_CHARS else text[: MAX_KEY_CHARS - 1] + "_"


def artifact_name(name: str) -> PurePosixPath:
    """Return `name` as a path inside the run's folder.

    Raises:
        SpecError: empty, absolute, or with `..`.
    """
    path = PurePosixPath(name)
    if not path.parts or path.is_absolute() or ".." in path.parts or "\\" in name or "\x00" in name:
        raise SpecError(
            "tracking-artifact-name", f"an artefact cannot be called {name[:80]!r}", fix="use a relative path with '/', without '..'"
        )
    return path


@dataclass
class MemoryTracker:
    """A tracker that keeps everything in this process: for tests, and for a project that wants no history."""

    runs: dict[str, TrackedRun] = field(default_factory=dict[str, TrackedRun])
    experiments: dict[str, list[str]] = field(default_factory=dict[str, list[str]])
    curves: dict[tuple[str, str], list[float]] = field(default_factory=dict[tuple[str, str], list[float]])
    artifacts: dict[tuple[str, str], bytes] = field(default_factory=dict[tuple[str, str], bytes])

    def start_run(self, experiment: str, *, name: str = "", tags: Mapping[str, str] | None = None) -> str:
        """See `Tracker`."""
        run_id = f"{len(self.runs) + 1:032x}"
        self.runs[run_id] = TrackedRun(run_id, name, "RUNNING", {}, {}, _tag_texts(tags or {}))
        self.experiments.setdefault(experiment, []).append(run_id)
        return run_id

    def log_params(self, run_id: str, params: Mapping[str, Any]) -> None:
        """See `Tracker`."""
        kept = self._run(run_id).params
        for key, value in params.items():
            text = param_text(value)
            if kept.setdefault(store_key(key), text) != text:
                raise _param_conflict(key)

    def log_metrics(self, run_id: str, metrics: Mapping[str, float], *, step: int = 0) -> None:
        """See `Tracker`."""
        for key, value in metrics.items():
            if math.isfinite(value):
                self._run(run_id).metrics[store_key(key)] = float(value)
                self.curves.setdefault((run_id, store_key(key)), []).append(float(value))
        del step

    def log_curves(self, run_id: str, curves: Mapping[str, Sequence[float]]) -> None:
        """See `Tracker`."""
        for key, values in curves.items():
            for step, value in enumerate(values):
                self.log_metrics(run_id, {key: value}, step=step)

    def log_artifact(self, run_id: str, name: str, content: bytes | Path) -> None:
        """See `Tracker`."""
        self._run(run_id)
        self.artifacts[run_id, str(artifact_name(name))] = content if isinstance(content, bytes) else content.read_bytes()

    def log_artifacts(self, run_id: str, files: Mapping[str, bytes | Path]) -> None:
        """See `Tracker`."""
        for name, content in files.items():
            self.log_artifact(run_id, name, content)

    def set_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        """See `Tracker`."""
        self._run(run_id).tags.update(_tag_texts(tags))

    def finish(self, run_id: str, status: Status = "FINISHED") -> None:
        """See `Tracker`."""
        run = self._run(run_id)
        self.runs[run_id] = TrackedRun(run_id, run.name, status, run.params, run.metrics, run.tags)

    def search_runs(self, experiment: str, *, tags: Mapping[str, str] | None = None, limit: int = 100) -> list[TrackedRun]:
        """See `Tracker`."""
        wanted = _tag_texts(tags or {}).items()
        found = [self.runs[run_id] for run_id in reversed(self.experiments.get(experiment, []))]
        return [run for run in found if wanted <= run.tags.items()][:limit]

    def _run(self, run_id: str) -> TrackedRun:
        if run_id not in self.runs:
            raise _unknown_run(run_id)
        return self.runs[run_id]


class MlflowTracker:
    """MLflow behind the port: a SQLite file by default, or any tracking server.

    Args:
        uri: `sqlite:///…/mlflow.db`, or the address of a tracking server. Never shown in an error: it may hold a password.
        artifact_root: Folder or address under which a new experiment keeps its artefacts. None leaves it to the server.
    """

    def __init__(self, uri: str, artifact_root: str | Path | None = None) -> None:
        self._uri = uri
        self._root = None if artifact_root is None else str(artifact_root)
        self._cached: Any = None
        self._experiments: dict[str, str] = {}

    def start_run(self, experiment: str, *, name: str = "", tags: Mapping[str, str] | None = None) -> str:
        """See `Tracker`."""
        with self._speaking():
            identity = self._experiment(experiment)
            run = self._client().create_run(identity, tags=_tag_texts(tags or {}), run_name=name or None)
            return str(run.info.run_id)

    def log_params(self, run_id: str, params: Mapping[str, Any]) -> None:
        """See `Tracker`."""
        from mlflow.entities import Param

        rows = [Param(store_key(key), param_text(value)) for key, value in params.items()]
        with self._speaking():
            for start in range(0, len(rows), PARAMS_PER_BATCH):
                self._client().log_batch(run_id, params=rows[start : start + PARAMS_PER_BATCH])

    def log_metrics(self, run_id: str, metrics: Mapping[str, float], *, step: int = 0) -> None:
        """See `Tracker`."""
        self._log_points(run_id, [(key, float(value), step) for key, value in metrics.items()])

    def log_curves(self, run_id: str, curves: Mapping[str, Sequence[float]]) -> None:
        """See `Tracker`."""
        self._log_points(run_id, [(key, float(value), step) for key, values in curves.items() for step, value in enumerate(values)])

    def log_artifact(self, run_id: str, name: str, content: bytes | Path) -> None:
        """See `Tracker`."""
        self.log_artifacts(run_id, {name: content})

    def log_artifacts(self, run_id: str, files: Mapping[str, bytes | Path]) -> None:
        """See `Tracker`."""
        with tempfile.TemporaryDirectory(prefix="mulle-artifacts-") as folder, self._speaking():
            for name, content in files.items():
                target = Path(folder, *artifact_name(name).parts)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(content if isinstance(content, bytes) else content.read_bytes())
            self._client().log_artifacts(run_id, folder)

    def set_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        """See `Tracker`."""
        from mlflow.entities import RunTag

        rows = [RunTag(key, value) for key, value in _tag_texts(tags).items()]
        with self._speaking():
            for start in range(0, len(rows), PARAMS_PER_BATCH):
                self._client().log_batch(run_id, tags=rows[start : start + PARAMS_PER_BATCH])

    def finish(self, run_id: str, status: Status = "FINISHED") -> None:
        """See `Tracker`."""
        with self._speaking():
            self._client().set_terminated(run_id, status=status)

    def search_runs(self, experiment: str, *, tags: Mapping[str, str] | None = None, limit: int = 100) -> list[TrackedRun]:
        """See `Tracker`."""
        with self._speaking():
            found = self._client().get_experiment_by_name(experiment)
            if found is None:
                return []
            # Filters are strings in MLflow's own language; values are compared here instead of being quoted into it.
            wanted = _tag_texts(tags or {}).items()
            runs: list[TrackedRun] = []
            token: str | None = None
            while len(runs) < limit:
                page = self._client().search_runs(
                    [found.experiment_id], max_results=1_000, order_by=["attributes.start_time DESC"], page_token=token
                )
                runs += [_tracked(run) for run in page if wanted <= dict(run.data.tags).items()]
                token = page.token
                if not token:
                    break
            return runs[:limit]

    def _log_points(self, run_id: str, points: Sequence[tuple[str, float, int]]) -> None:
        from mlflow.entities import Metric

        now_ms = time.time_ns() // 1_000_000
        rows = [Metric(store_key(key), value, now_ms, step) for key, value, step in points if math.isfinite(value)]
        with self._speaking():
            for start in range(0, len(rows), METRICS_PER_BATCH):
                self._client().log_batch(run_id, metrics=rows[start : start + METRICS_PER_BATCH])

    def _client(self) -> Any:
        if self._cached is None:
            with quiet_mlflow(), _first_migration(self._uri):
                from mlflow.tracking import MlflowClient

                client = MlflowClient(tracking_uri=self._uri)
                # The first question makes the tables; it is asked while nobody else can.
                client.search_experiments(max_results=1)
            self._cached = client
        return self._cached

    def _experiment(self, name: str) -> str:
        from mlflow.exceptions import MlflowException

        if name not in self._experiments:
            found = self._client().get_experiment_by_name(name)
            if found is None:
                location = None if self._root is None else _location(self._root, name)
                try:
                    self._experiments[name] = str(self._client().create_experiment(name, artifact_location=location))
                except MlflowException:
                    # Another process made it between the question and the answer.
                    found = self._client().get_experiment_by_name(name)
                    if found is None:
                        raise
            if found is not None:
                self._experiments[name] = str(found.experiment_id)
        return self._experiments[name]

    @contextlib.contextmanager
    def _speaking(self) -> Generator[None]:
        """Turn what MLflow raises into our errors, and keep it quiet meanwhile."""
        with quiet_mlflow():
            from mlflow.exceptions import MlflowException

            try:
                yield
            except MlflowException as error:
                raise _translated(error) from error
            except OSError as error:
                raise UnavailableError(
                    "tracking-unavailable",
                    f"the tracking store does not answer: {bounded(error.strerror or type(error).__name__, 160)}",
                    fix="check the disk and its permissions, or [env.…] tracking in mulle.toml",
                ) from error


@contextlib.contextmanager
def quiet_mlflow() -> Generator[None]:
    """Turn MLflow's telemetry off for good; its log and its libraries' warnings down for the block."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("DO_NOT_TRACK", "true")
    loggers = [logging.getLogger(name) for name in ("mlflow", "alembic")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        # MLflow and its libraries warn each other about their own deprecations; nobody here can act on them.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


@contextlib.contextmanager
def _first_migration(uri: str) -> Generator[None]:
    """Hold a lock beside a SQLite database: two processes that both find none would both make its tables, and one fail."""
    if not uri.startswith("sqlite:///"):
        yield
        return
    database = Path(uri.removeprefix("sqlite:///"))
    try:
        database.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(database.with_name(f".{database.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise UnavailableError(
            "tracking-unavailable",
            f"the folder of the tracking database cannot be written: {error.strerror}",
            fix="check the disk and its permissions",
            where=str(database.parent),
        ) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _translated(error: Any) -> SpecError | UnavailableError:
    code = str(getattr(error, "error_code", ""))
    text = bounded(str(error), 200)
    if "already logged" in text or "Changing param values" in text:
        return _param_conflict(text.partition("key='")[2].partition("'")[0])
    if code == "RESOURCE_DOES_NOT_EXIST":
        return _unknown_run("")
    if code in {"INVALID_PARAMETER_VALUE", "BAD_REQUEST"}:
        return SpecError("tracking-refused", f"the tracking store refuses this: {text}", fix="shorten or rename what is logged")
    # The address may hold a password, and lower layers like to repeat it.
    return UnavailableError(
        "tracking-unavailable",
        f"the tracking store does not answer ({code or type(error).__name__})",
        fix="check that it runs, or [env.…] tracking in mulle.toml; then run the same command again",
    )


def _param_conflict(key: str) -> SpecError:
    return SpecError(
        "tracking-param-changed",
        f"the parameter {key[:80]!r} was already logged with another value",
        fix="start a new run: parameters do not change",
    )


def _unknown_run(run_id: str) -> SpecError:
    return SpecError(
        "tracking-unknown-run",
        f"the tracking store has no run {run_id[:80]!r}".replace(" ''", " of this identity"),
        fix="start the run first",
    )


def _tag_texts(tags: Mapping[str, str]) -> dict[str, str]:
    return {store_key(key): (text if len(text) <= MAX_TAG_CHARS else text[: MAX_TAG_CHARS - 1] + "…") for key, text in tags.items()}


def _tracked(run: Any) -> TrackedRun:
    data = run.data
    return TrackedRun(
        str(run.info.run_id), str(run.info.run_name or ""), str(run.info.status), dict(data.params), dict(data.metrics), dict(data.tags)
    )


def _location(root: str, experiment: str) -> str:
    folder = store_key(experiment).replace("/", "_").replace(":", "_")
    return f"{root.rstrip('/')}/{folder}" if "://" in root else str(Path(root).absolute() / folder)
