"""Where a project keeps what Mulle makes: the folder `.mulle/`, named in one place."""

import os
from dataclasses import dataclass
from pathlib import Path

from mulle.core.errors import SpecError, UnavailableError
from mulle.core.names import require_name

STATE_FOLDER = ".mulle"


@dataclass(frozen=True, slots=True)
class StatePaths:
    """Every path under a project's state folder.

    Args:
        root: The folder `.mulle` itself, absolute.
    """

    root: Path

    @property
    def state_db(self) -> Path:
        """The event log and its projections (SQLite)."""
        return self.root / "state.db"

    @property
    def lock(self) -> Path:
        """The file a running `mulle run` holds locked."""
        return self.root / "run.lock"

    @property
    def stages(self) -> Path:
        """The cache: `<stage>/<key>/`."""
        return self.root / "stages"

    @property
    def stage_drafts(self) -> Path:
        """Folders of stages that have not finished; swept at the start of every run."""
        return self.stages / ".draft"

    @property
    def runs(self) -> Path:
        """One document per run, and beside it a folder with the output of its stages."""
        return self.root / "runs"

    @property
    def datasets(self) -> Path:
        """Dataset versions: `<name>/<digest>/`."""
        return self.root / "datasets"

    @property
    def bundles(self) -> Path:
        """Sealed bundles: `<digest>/`."""
        return self.root / "bundles"

    @property
    def serving(self) -> Path:
        """Signed deployment specs: `<deployment>.json`."""
        return self.root / "serving"

    @property
    def serving_cache(self) -> Path:
        """The data plane's own copy of the last good spec."""
        return self.serving / "cache"

    @property
    def logs(self) -> Path:
        """Prediction log and feedback: `<deployment>/`."""
        return self.root / "logs"

    @property
    def mlflow(self) -> Path:
        """Everything of the tracking store."""
        return self.root / "mlflow"

    @property
    def mlflow_db(self) -> Path:
        """MLflow's own database (SQLite)."""
        return self.mlflow / "mlflow.db"

    @property
    def mlflow_artifacts(self) -> Path:
        """MLflow's artefacts."""
        return self.mlflow / "artifacts"

    @property
    def reports(self) -> Path:
        """Evaluation and monitor reports."""
        return self.root / "reports"

    @property
    def controller(self) -> Path:
        """The controller's heartbeat."""
        return self.root / "controller.json"

    def spec(self, deployment: str) -> Path:
        """Return the path of the signed spec of `deployment`."""
        return self.serving / f"{require_name(deployment, 'a deployment')}.json"

    def run_document(self, run_id: str) -> Path:
        """Return the path of the document of the run `run_id`."""
        return self.runs / f"{require_name(run_id, 'a run')}.json"

    def ensure(self) -> "StatePaths":
        """Make the folder and the `.gitignore` that keeps all of it out of git; return itself.

        Raises:
            UnavailableError: the folder cannot be written.
            SpecError: something that is not a folder is in the way.
        """
        if self.root.exists() and not self.root.is_dir():
            raise SpecError("state-folder", f"{self.root.name!r} is not a folder", fix=f"move {self.root} away", where=str(self.root))
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            ignore = self.root / ".gitignore"
            if not ignore.exists():
                ignore.write_text("*\n", encoding="utf-8")
        except OSError as error:
            raise folder_unwritable(self.root, error) from error
        return self


def folder_unwritable(folder: Path, error: OSError) -> UnavailableError:
    """Return the error for a folder that does not take a file: read-only, full, or not ours."""
    import errno

    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return UnavailableError(
            "disk-full",
            f"the disk is full: {error.strerror}",
            fix="free some space (`mulle gc` says what Mulle can give back), then run the same command again",
            where=str(folder),
        )
    return UnavailableError(
        "folder-read-only",
        f"{folder.name!r} cannot be written: {error.strerror}",
        fix=f"make it writable for {_user()} (chmod, chown, remount), or work on a copy of the project",
        where=str(error.filename or folder),
    )


def state_paths(project_dir: Path) -> StatePaths:
    """Return the paths of the project in `project_dir`; nothing is made."""
    return StatePaths(project_dir.resolve() / STATE_FOLDER)


def write_atomic(path: Path, data: bytes, *, sync: bool = False) -> None:
    """Put `data` at `path` in one step: a reader sees the old bytes or the new ones, never a part.

    Args:
        path: The file; its folder exists.
        data: All of it.
        sync: Whether to wait until the bytes are on the disk.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with draft.open("wb") as file:
            file.write(data)
            if sync:
                file.flush()
                os.fsync(file.fileno())
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


def _user() -> str:
    import getpass

    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"user {os.getuid()}"
