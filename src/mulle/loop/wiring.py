"""The only place that chooses real adapters: which clock, which event log, which tracking store."""

import re
import time
from pathlib import Path
from typing import TYPE_CHECKING

from mulle.core.errors import SpecError
from mulle.loop.paths import StatePaths, folder_unwritable, state_paths
from mulle.loop.settings import LOCAL, Settings, load_settings

if TYPE_CHECKING:
    from mulle.loop.outbox import Outbox
    from mulle.registry.projection import Projection
    from mulle.registry.state import StateStore
    from mulle.train.tracking import Tracker


class SystemClock:
    """The machine's clocks."""

    def now_ns(self) -> int:
        """Return nanoseconds since 1970-01-01 UTC."""
        return time.time_ns()

    def monotonic_ns(self) -> int:
        """Return nanoseconds since an arbitrary moment."""
        return time.monotonic_ns()


def open_project(project_dir: Path, environment: str = LOCAL) -> tuple[Settings, StatePaths]:
    """Return the settings and the state paths of the project in `project_dir`; nothing is written.

    Raises:
        SpecError: `mulle.toml` is missing or wrong, asks for what this version does not do, or lies where MLflow's
            database cannot be.
    """
    settings = load_settings(project_dir, environment)
    _require_supported(settings)
    if settings.backends.tracking is None:
        _require_addressable(settings.project_dir)
    return settings, state_paths(settings.project_dir)


def _require_supported(settings: Settings) -> None:
    """Refuse what this version would ignore: a key that is set and does nothing would be believed in."""
    backends = settings.backends
    asked = {
        f"engine = {backends.engine!r}": backends.engine != "local",
        "secrets in a vault": backends.secrets is not None and backends.secrets.startswith("vault://"),
    }
    first = next((what for what, is_asked in asked.items() if is_asked), None)
    if first is not None:
        raise SpecError(
            "setting-not-yet",
            f"[env.{settings.environment}] asks for {first}, which this version does not do yet",
            fix="remove it, or choose another environment with --env",
            where=str(settings.project_dir / "mulle.toml"),
        )


def _require_addressable(project_dir: Path) -> None:
    """Refuse at once what MLflow would fail on two minutes into a run: its database is named by an address, where these mean something."""
    match = re.search(r"\?|%[0-9A-Fa-f]{2}", str(project_dir))
    if match is not None:
        raise SpecError(
            "project-folder-name",
            f"the project's path has {match.group()!r} in it, and MLflow's database cannot lie in such a folder",
            fix="rename the folder, or set [env.…] tracking in mulle.toml to a tracking server",
            where=str(project_dir),
        )


def open_state(settings: Settings) -> "StateStore":
    """Return the event log of the chosen environment: SQLite under `.mulle/` unless the environment names another.

    Raises:
        SpecError: the environment names a backend this version cannot open.
        UnavailableError: the state folder cannot be written.
    """
    from mulle.registry.state_sqlite import SqliteStateStore

    paths = state_paths(settings.project_dir)
    address = resolve_reference(settings.backends.state, settings.project_dir)
    if address is None:
        return SqliteStateStore(paths.ensure().state_db)
    return SqliteStateStore(_sqlite_file(address, settings, "state"))


def open_tracker(settings: Settings) -> "Tracker":
    """Return the tracking store of the chosen environment: MLflow on SQLite under `.mulle/` unless it names another.

    Raises:
        SpecError: a reference that leads nowhere.
        UnavailableError: the state folder cannot be written.
    """
    from mulle.train.tracking import MlflowTracker

    return MlflowTracker(tracking_uri(settings), artifact_root(settings))


def open_outbox(settings: Settings, store: "StateStore") -> "Outbox":
    """Return the outbox of the chosen environment: it signs with this user's key, and opens MLflow when it has something to say.

    Raises:
        SpecError: the signing key cannot be used.
    """
    from mulle.formats.signing import key_path, load_or_create_key
    from mulle.loop.outbox import Outbox

    paths = state_paths(settings.project_dir)

    def projection() -> "Projection":
        from mulle.bundle.mlflow_model import write_mlflow_model
        from mulle.loop.release import resolve_bundle
        from mulle.registry.mlflow_projection import MlflowProjection

        return MlflowProjection(
            tracking_uri(settings),
            artifact_root(settings),
            lambda version, out: write_mlflow_model(resolve_bundle(paths.root, version), out),
        )

    return Outbox(
        store=store,
        paths=paths,
        environment=settings.environment,
        trusted=settings.backends.trust,
        private_key=load_or_create_key(key_path()),
        projection=projection,
        now_ns=SystemClock().now_ns,
    )


def tracking_uri(settings: Settings) -> str:
    """Return MLflow's address for the chosen environment, references resolved; never show it."""
    address = resolve_reference(settings.backends.tracking, settings.project_dir)
    if address is not None:
        return address
    from mulle.loop.moved import follow_move

    paths = state_paths(settings.project_dir).ensure()
    try:
        paths.mlflow_artifacts.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise folder_unwritable(paths.mlflow, error) from error
    follow_move(paths)
    return f"sqlite:///{paths.mlflow_db}"


def artifact_root(settings: Settings) -> str:
    """Return where MLflow's artefacts lie: a folder's path, or an address such as `s3://bucket`."""
    address = resolve_reference(settings.backends.artifacts, settings.project_dir)
    return str(state_paths(settings.project_dir).mlflow_artifacts) if address is None else address


def resolve_reference(address: str | None, project_dir: Path) -> str | None:
    """Return `address` with every reference to a secret replaced; never show the result.

    Args:
        address: A setting's value: `env://NAME`, `file://path`, or a text with `${env://NAME}` in it.
        project_dir: Relative paths of `file://` start here.

    Raises:
        SpecError: the variable is not set, or the file cannot be read.
    """
    if address is None:
        return None
    from mulle.data.secrets import expand_secrets

    return expand_secrets(address, root=project_dir)[0]


def _sqlite_file(address: str, settings: Settings, key: str) -> Path:
    prefix = "sqlite:///"
    if not address.startswith(prefix):
        scheme = address.split(":", maxsplit=1)[0]
        raise SpecError(
            "backend-unsupported",
            f"{key} = '{scheme}:…' cannot be opened by this version",
            fix=f"use sqlite:///path, or remove `{key}` from [env.{settings.environment}]",
            where=str(settings.project_dir / "mulle.toml"),
        )
    return settings.project_dir / address.removeprefix(prefix)
