"""A sealed bundle as a folder MLflow can load and serve: models-from-code, no pickle, no Mulle needed there."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false, reportPrivateImportUsage=false

import contextlib
import logging
import os
import shutil
import warnings
from collections.abc import Generator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mulle.core.errors import SpecError
from mulle.core.schema import ColumnType
from mulle.formats.bundle import Manifest, verify_bundle
from mulle.formats.golden import read_golden

CODE_FILE = "mulle_pyfunc.py"
REQUIREMENTS = ("mlflow", "numpy", "onnxruntime", "pandas")
_EXAMPLE_ROWS = 3


def write_mlflow_model(bundle: Path, out: Path) -> Path:
    """Return `out`, a new folder with `MLmodel`, the loader's code and the whole bundle as its artefact.

    The requirements are named instead of inferred: MLflow infers them by loading the model in another process. Numbers
    are declared as `any`: MLflow would refuse an integer column where `double` is declared, and the loader's own
    messages name the value.

    Args:
        bundle: A sealed bundle; verified first.
        out: Must not exist.

    Raises:
        SpecError: no bundle there, or `out` exists.
        CheckError: the bundle was changed.
    """
    manifest = verify_bundle(bundle)
    if manifest.kind != "columns":
        raise SpecError(
            "mlflow-model-kind",
            f"{manifest.model!r} takes {'pictures' if manifest.kind == 'image' else 'tensors'}, and MLflow's tables hold columns",
            fix="serve it with `mulle serve`, or log its model.onnx with mlflow.onnx",
            where=str(bundle),
        )
    if out.exists():
        raise SpecError("mlflow-model-exists", f"{out.name!r} is there already", fix="name a new folder", where=str(out))
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("DO_NOT_TRACK", "true")
    import mlflow.pyfunc
    from mlflow.models import Model
    from mlflow.models.signature import ModelSignature

    # MLflow copies an artefact by its URI's last part: the digest would become a folder name, and its path be recorded.
    code = out.with_name(f".{out.name}.code") / CODE_FILE
    code.parent.mkdir(parents=True)
    try:
        shutil.copyfile(Path(__file__).with_name("mlflow_pyfunc.py"), code)
        with _quiet():
            mlflow.pyfunc.save_model(
                str(out),
                python_model=str(code),
                artifacts={"bundle": str(bundle.resolve())},
                signature=ModelSignature(inputs=_inputs(manifest), outputs=_outputs(manifest)),
                input_example=_example(bundle, manifest),
                pip_requirements=[f"{name}=={version(name)}" for name in REQUIREMENTS],
                metadata={"mulle.bundle": manifest.digest(), "mulle.task": manifest.task},
            )
            # Where the code and the bundle lay on this machine is nobody's business; MLflow uses the last part only.
            model = Model.load(str(out))
            flavor: dict[str, Any] = model.flavors["python_function"]
            flavor["model_code_path"] = CODE_FILE
            flavor["artifacts"]["bundle"]["uri"] = flavor["artifacts"]["bundle"]["path"]
            model.save(str(out / "MLmodel"))
    finally:
        shutil.rmtree(code.parent, ignore_errors=True)
    return out


def _inputs(manifest: Manifest) -> Any:
    from mlflow.types.schema import AnyType, ColSpec, Schema

    return Schema(
        [ColSpec("string" if c.type is ColumnType.TEXT else AnyType(), name=c.name, required=not c.nullable) for c in manifest.columns],
    )


def _outputs(manifest: Manifest) -> Any:
    from mlflow.types.schema import ColSpec, Schema

    return Schema([ColSpec("float", name=name) for name in manifest.classes or ("prediction",)])


def _example(bundle: Path, manifest: Manifest) -> Any:
    """Return the first golden requests as a table."""
    import pandas as pd

    name = next((name for name in manifest.files if name == "golden.json"), None)
    if name is None:
        return None
    rows = read_golden(bundle / name).rows[:_EXAMPLE_ROWS]
    return pd.DataFrame({c.name: [row.get(c.name) for row in rows] for c in manifest.columns}) if rows else None


@contextlib.contextmanager
def _quiet() -> Generator[None]:
    """Keep MLflow's progress bars and its remarks about our own choices out of the user's terminal."""
    loggers = [logging.getLogger(name) for name in ("mlflow", "mlflow.pyfunc", "mlflow.models.model")]
    levels = [logger.level for logger in loggers]
    bars = os.environ.get("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR")
    os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if bars is None:
            del os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"]
        else:
            os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = bars
