"""The registry as MLflow shows it: model versions with tags, aliases `champion` and `challenger`; told, watched, corrected.

MLflow numbers versions itself; ours are found by their tag `mulle.version`. What was told last about the aliases is
kept in two tags of the registered model: `mulle.aliases` (done) and `mulle.aliases.next` (written before it is done),
so that an interrupted move is not taken for somebody's edit.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false, reportPrivateImportUsage=false

import json
import logging
import os
import re
import tempfile
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mulle.core.errors import MulleError, UnavailableError
from mulle.registry.projection import ALIASES, Drift, edited_tags, version_tags
from mulle.registry.versions import VersionRecord

_TOLD = "mulle.aliases"
_NEXT = "mulle.aliases.next"
_VERSION = "mulle.version"
_PAGE = 200


class MlflowProjection:
    """A `Projection` into an MLflow tracking server and registry.

    Args:
        uri: MLflow's address, `sqlite:///…` or `https://…`.
        artifact_root: Where artefacts of a new experiment lie; a server decides for itself.
        build_model: Writes the MLflow model of a version into a folder that does not exist yet.

    Raises:
        UnavailableError: from every method, when MLflow does not answer or refuses.
    """

    def __init__(self, uri: str, artifact_root: str, build_model: Callable[[VersionRecord, Path], object]) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("DO_NOT_TRACK", "true")
        # A server that is away must not hold a command for minutes; the outbox tries again by itself.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
        self._uri = uri
        self._artifact_root = artifact_root
        self._build_model = build_model
        with self._answers():
            # Importing MLflow sets its loggers up: only afterwards can they be kept quiet.
            from mlflow.tracking import MlflowClient
        with self._answers():
            self._client: Any = MlflowClient(tracking_uri=uri, registry_uri=uri)

    def publish_version(self, version: VersionRecord) -> None:
        """Make the version known with its tags; its model is built and uploaded only the first time."""
        with self._answers():
            self._ensure_model(version.model)
            found = self._versions(version.model).get(version.number)
            tags = version_tags(version)
            if found is None:
                logged = self._logged(version, tags)
                # A server takes a source only through the model it knows. Without a server MLflow would look that model up
                # in the process's global tracking store, which is not ours: there the folder itself is named.
                remote = self._uri.startswith("http")
                self._client.create_model_version(
                    version.model,
                    source=f"models:/{logged.model_id}" if remote else str(logged.artifact_location),
                    model_id=logged.model_id if remote else None,
                    run_id=self._known_run(version),
                    tags=tags,
                    description=f"Mulle version {version.number}, bundle {version.bundle_digest[:12]}",
                    await_creation_for=0,
                )
                return
            for name, value in tags.items():
                if found.tags.get(name) != value:
                    self._client.set_model_version_tag(version.model, str(found.version), name, value)

    def publish_aliases(self, model: str, aliases: Mapping[str, int]) -> None:
        """Point the aliases at these versions; they must have been published."""
        with self._answers():
            registered = self._ensure_model(model)
            known = self._versions(model)
            wanted = json.dumps(dict(sorted(aliases.items())))
            current = {name: int(number) for name, number in dict(registered.aliases).items() if name in ALIASES}
            target = {name: int(known[number].version) for name, number in aliases.items() if number in known}
            if current == target and registered.tags.get(_TOLD) == wanted:
                return
            self._client.set_registered_model_tag(model, _NEXT, wanted)
            for name in ALIASES:
                if name in target and current.get(name) != target[name]:
                    self._client.set_registered_model_alias(model, name, str(target[name]))
                elif name not in target and name in current:
                    self._client.delete_registered_model_alias(model, name)
            self._client.set_registered_model_tag(model, _TOLD, wanted)

    def find_drift(self, model: str, published: Sequence[VersionRecord]) -> tuple[Drift, ...]:
        """Return what somebody changed: versions removed, tags edited, aliases moved."""
        with self._answers():
            registered = self._registered(model)
            if registered is None:
                return (Drift(f"model {model}", "registered", "removed"),) if published else ()
            known = self._versions(model)
            drifts: list[Drift] = []
            for version in published:
                found = known.get(version.number)
                if found is None:
                    drifts.append(Drift(f"version {version.number}", "registered", "removed"))
                    continue
                drifts.extend(
                    Drift(f"tag {name} of version {version.number}", repr(ours), repr(theirs)[:80])
                    for name, (ours, theirs) in edited_tags(version, found.tags).items()
                )
            numbers = {int(one.version): number for number, one in known.items()}
            told, following = (_aliases(registered.tags.get(tag)) for tag in (_TOLD, _NEXT))
            if told is None and following is None:
                return tuple(drifts)
            for alias in ALIASES:
                now = dict(registered.aliases).get(alias)
                shown = None if now is None else numbers.get(int(now), -1)
                expected = (told or {}).get(alias)
                if shown not in {expected, (following or {}).get(alias)}:
                    drifts.append(Drift(f"alias {alias}", _say(expected), _say(shown)))
            return tuple(drifts)

    def _registered(self, model: str) -> Any:
        from mlflow.exceptions import MlflowException

        try:
            return self._client.get_registered_model(model)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise

    def _ensure_model(self, model: str) -> Any:
        from mlflow.exceptions import MlflowException

        found = self._registered(model)
        if found is not None:
            return found
        try:
            return self._client.create_registered_model(model, description="Kept by Mulle: edits made here are reported and put back.")
        except MlflowException as error:
            if error.error_code == "RESOURCE_ALREADY_EXISTS":
                return self._client.get_registered_model(model)
            raise

    def _versions(self, model: str) -> dict[int, Any]:
        """Return our number to MLflow's version; of two with one number the first counts."""
        found: dict[int, Any] = {}
        token: str | None = None
        while True:
            page = self._client.search_model_versions(f"name='{model}'", max_results=_PAGE, page_token=token)
            for one in page:
                number = str(one.tags.get(_VERSION, ""))
                if number.isdecimal() and (int(number) not in found or int(one.version) < int(found[int(number)].version)):
                    found[int(number)] = one
            token = page.token or None
            if token is None:
                return found

    def _logged(self, version: VersionRecord, tags: Mapping[str, str]) -> Any:
        """Return MLflow's logged model of a version, built and uploaded unless an interrupted attempt got so far."""
        experiment = self._experiment(version)
        for one in self._client.search_logged_models([experiment], filter_string=f"tags.`mulle.bundle` = '{version.bundle_digest}'"):
            if str(one.status).upper().endswith("READY") and one.tags.get(_VERSION) == str(version.number):
                return one
        with tempfile.TemporaryDirectory(prefix="mulle-mlflow-") as folder:
            out = Path(folder) / "model"
            self._build_model(version, out)
            logged = self._client.create_logged_model(
                experiment_id=experiment,
                name=re.sub(r"[/:.%\"']", "-", f"{version.model}-v{version.number}"),
                source_run_id=self._known_run(version),
                tags=dict(tags),
                model_type="mulle-bundle",
            )
            self._client.log_model_artifacts(logged.model_id, str(out))
            return self._client.finalize_logged_model(logged.model_id, "READY")

    def _experiment(self, version: VersionRecord) -> str:
        run_id = self._known_run(version)
        if run_id is not None:
            return str(self._client.get_run(run_id).info.experiment_id)
        found = self._client.get_experiment_by_name(version.model)
        if found is not None:
            return str(found.experiment_id)
        local = None if self._uri.startswith("http") else self._artifact_root
        return str(self._client.create_experiment(version.model, artifact_location=local))

    def _known_run(self, version: VersionRecord) -> str | None:
        """Return the version's MLflow run if MLflow still has it: a run deleted there must not keep a version out."""
        from mlflow.exceptions import MlflowException

        if not version.mlflow_run_id:
            return None
        try:
            self._client.get_run(version.mlflow_run_id)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise
        return version.mlflow_run_id

    @contextmanager
    def _answers(self) -> Generator[None]:
        """Turn whatever MLflow raises into an error that says to try again; keep its log off the terminal."""
        loggers = [logging.getLogger(name) for name in ("mlflow", "alembic")]
        levels = [logger.level for logger in loggers]
        bars = os.environ.get("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR")
        os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        except MulleError:
            raise
        except Exception as error:
            # MLflow, its HTTP client and its database raise unrelated classes; none of them may stop a deployment.
            raise UnavailableError(
                "tracking-unavailable",
                f"MLflow does not do as it is told: {type(error).__name__}: {str(error).splitlines()[0][:300] if str(error) else ''}",
                fix="see that the tracking server answers; it is told again with the next command, or now: mulle events rebuild",
            ) from error
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
            if bars is None:
                os.environ.pop("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", None)
            else:
                os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = bars


def _aliases(text: str | None) -> dict[str, int] | None:
    """Return the aliases a tag names; None without one, or when somebody wrote something else into it."""
    try:
        value = json.loads(text) if text else None
    except ValueError:
        return None
    if not isinstance(value, dict):
        return None
    return {str(name): number for name, number in value.items() if isinstance(number, int)}


def _say(number: int | None) -> str:
    if number is None:
        return "unset"
    return f"version {number}" if number > 0 else "a version Mulle did not register"
