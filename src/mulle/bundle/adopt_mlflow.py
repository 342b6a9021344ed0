# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false, reportMissingTypeStubs=false
"""MLflow models taken in: the ONNX flavour as it is, skops where it is installed; pickles are refused, with the way out."""

from pathlib import Path, PurePosixPath
from typing import Any

from mulle.bundle.adopt import Adopted, adopt_estimator, adopt_onnx
from mulle.bundle.onnx_file import PASTE
from mulle.core.errors import SpecError, UnavailableError
from mulle.core.user_code import bounded

MLMODEL = "MLmodel"
_MAX_MLMODEL_BYTES = 1 << 20
_SCHEMES = ("models:/", "runs:/", "mlflow-artifacts:/", "s3://", "gs://", "http://", "https://")


def is_mlflow(source: str) -> bool:
    """Return whether `source` names an MLflow model: an address, or a folder with an `MLmodel` file."""
    return source.startswith(_SCHEMES) or (Path(source) / MLMODEL).is_file()


def adopt_mlflow(source: str, sample: Any, *, tracking_uri: str | None = None, **options: Any) -> Adopted:
    """Return an MLflow model as an adopted model, without loading a pickle.

    Args:
        source: A folder with `MLmodel`, `models:/NAME/VERSION`, `models:/NAME@ALIAS` or `runs:/ID/PATH`.
        sample: As in `adopt_onnx`.
        tracking_uri: Where addresses are looked up; None: MLflow's own configuration.
        options: As in `adopt_onnx`.

    Raises:
        SpecError: no such model, or a flavour that only a pickle could bring in.
        UnavailableError: the tracking server does not answer.
    """
    folder = _fetch(source, tracking_uri)
    flavors = _flavors(folder)
    if "onnx" in flavors:
        data = str(flavors["onnx"].get("data") or "model.onnx")
        file = _inside(folder, data)
        return adopt_onnx(next(iter(sorted(file.glob("*.onnx"))), file) if file.is_dir() else file, sample, **options)
    if "sklearn" in flavors:
        flavor = flavors["sklearn"]
        if str(flavor.get("serialization_format")) == "skops":
            estimator = _load_skops(_inside(folder, str(flavor.get("pickled_model") or "model.skops")))
            kept = {name: options[name] for name in ("target", "columns", "positive") if name in options}
            return adopt_estimator(estimator, sample, **kept)
    raise SpecError(
        "adopt-mlflow-pickle",
        f"reading this MLflow model ({bounded(', '.join(sorted(flavors)), 120) or 'no flavour'}) means unpickling: it runs any code inside",
        fix=f"in the process that trained it: {PASTE}; or log it with mlflow.onnx.log_model and adopt that",
        where=str(folder / MLMODEL),
    )


def _fetch(source: str, tracking_uri: str | None) -> Path:
    if (Path(source) / MLMODEL).is_file():
        return Path(source)
    if not source.startswith(_SCHEMES):
        raise SpecError(
            "file-missing",
            f"there is no MLflow model at {source[:120]!r}",
            fix="give the folder that holds the file MLmodel",
            where=source[:200],
        )
    from mlflow.artifacts import download_artifacts
    from mlflow.exceptions import MlflowException

    try:
        return Path(download_artifacts(artifact_uri=source, tracking_uri=tracking_uri))
    except MlflowException as error:
        if error.error_code in {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"}:
            raise SpecError(
                "adopt-mlflow-unknown",
                f"MLflow has no model {source[:120]!r}",
                fix="check its name and version: models:/NAME/VERSION, or --tracking URI",
            ) from error
        raise UnavailableError(
            "adopt-mlflow-unavailable", f"MLflow does not answer ({error.error_code})", fix="check --tracking URI"
        ) from error
    except OSError as error:
        raise UnavailableError(
            "adopt-mlflow-unavailable",
            f"the model's files cannot be fetched ({type(error).__name__})",
            fix="check --tracking URI and the network",
        ) from error


def _flavors(folder: Path) -> dict[str, dict[str, Any]]:
    import yaml

    path = folder / MLMODEL
    try:
        if path.stat().st_size > _MAX_MLMODEL_BYTES:
            raise SpecError("file-too-large", f"MLmodel has {path.stat().st_size:,} bytes", fix="point at an MLflow model", where=str(path))
        # The safe loader knows no tags: nothing in the file can name a class to build.
        document: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise SpecError(
            "adopt-mlflow-unreadable", "the file MLmodel cannot be read as YAML", fix="download the model again", where=str(path)
        ) from error
    found = document.get("flavors") if isinstance(document, dict) else None
    if not isinstance(found, dict):
        raise SpecError("adopt-mlflow-unreadable", "the file MLmodel names no flavours", fix="download the model again", where=str(path))
    return {str(name): dict(value) if isinstance(value, dict) else {} for name, value in found.items()}


def _inside(folder: Path, name: str) -> Path:
    pure = PurePosixPath(name)
    target = folder.joinpath(*pure.parts)
    if pure.is_absolute() or ".." in pure.parts or "\x00" in name or not target.resolve().is_relative_to(folder.resolve()):
        raise SpecError(
            "adopt-mlflow-path",
            f"MLmodel points at {name[:80]!r}, outside its folder",
            fix="do not use this model",
            where=str(folder / MLMODEL),
        )
    return target


def _load_skops(path: Path) -> Any:
    """Load with skops' own list of trusted types, and no other."""
    try:
        import skops.io
        from skops.io.exceptions import UntrustedTypesFoundException
    except ImportError as error:
        raise SpecError(
            "adopt-skops-missing",
            "the MLflow model is kept by skops, which is not installed",
            fix="pip install skops, or adopt it from your own process",
        ) from error
    try:
        return skops.io.load(path, trusted=[])
    except UntrustedTypesFoundException as error:
        raise SpecError(
            "adopt-skops-untrusted",
            f"the skops file needs types nobody vouches for: {bounded(str(error), 160)}",
            fix=f"in the process that trained it: {PASTE}",
            where=str(path),
        ) from error
    # Whatever a damaged archive makes skops raise, it is one answer for its user.
    except Exception as error:
        raise SpecError(
            "adopt-skops-unreadable",
            f"the skops file cannot be read ({type(error).__name__})",
            fix="download the model again",
            where=str(path),
        ) from error
