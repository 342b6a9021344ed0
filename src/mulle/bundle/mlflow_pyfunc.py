"""A sealed bundle as an MLflow python_function model; copied into the model folder and run there, without Mulle.

Needs numpy, pandas, onnxruntime and mlflow only. Nothing is unpickled: the graph is ONNX, everything else JSON, and
the graph's bytes are compared with the manifest's digest before they are loaded.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false, reportUntypedBaseClass=false, reportPrivateImportUsage=false

import hashlib
import json
from pathlib import Path
from typing import Any

import mlflow.models
import mlflow.pyfunc
import numpy as np
import onnxruntime as ort
import pandas as pd

MISSING_TEXT = "\ufdd0"
BATCH = 16384
DTYPES = {"double": np.float64, "float": np.float32, "int64": np.int64, "bool": np.bool_}


class BundleModel(mlflow.pyfunc.PythonModel):
    """Predicts with the bundle's ONNX graph: a DataFrame with columns by name in, all probabilities by class name out."""

    def load_context(self, context: Any) -> None:
        """Verify the bundle in the artefacts and load its graph."""
        folder = Path(context.artifacts["bundle"])
        manifest = json.loads((folder / "bundle.json").read_text(encoding="utf-8"))
        name = manifest["graph"]["file"]
        data = (folder / name).read_bytes()
        if hashlib.sha256(data).hexdigest() != manifest["files"][name]["sha256"]:
            raise ValueError(f"{name} was changed after the bundle was sealed: download the model again")
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        self.manifest = manifest
        self.session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])

    # MLflow reads the type hint of `model_input` as a schema of its own, and warns about every one but this.
    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> Any:
        """Return one row per row: a column per class with its probability, or for regression the column `prediction`.

        Args:
            context: MLflow's; unused.
            model_input: Columns by name, in any order; those the model does not know are ignored, null is missing.
            params: Not used: what a bundle answers depends on its rows only.

        Raises:
            ValueError: a column is missing, or holds what cannot be read as its type.
        """
        del context, params
        frame = pd.DataFrame(model_input)
        columns = self.manifest["columns"]
        absent = [c["name"] for c in columns if c["name"] not in frame.columns and not c["nullable"]]
        if absent:
            given = ", ".join(map(repr, list(frame.columns)[:20]))
            raise ValueError(f"the table lacks the column(s) {', '.join(map(repr, absent[:10]))}; it has {given}")
        arrays = {c["name"]: to_array(frame, c["name"], c["type"]) for c in columns}
        output = self.manifest["graph"]["output"]
        parts = [
            np.asarray(self.session.run([output], feeds(self.manifest["graph"]["inputs"], arrays, start))[0])
            for start in range(0, len(frame), BATCH)
        ]
        names: Any = list(self.manifest["classes"]) or ["prediction"]
        scores = np.concatenate(parts) if parts else np.empty((0, len(names)), dtype=np.float32)
        return pd.DataFrame(scores.reshape(len(frame), len(names)), columns=names, index=frame.index)


def to_array(frame: Any, name: str, kind: str) -> np.ndarray:
    """Return a column as the graph takes it: float64 with NaN, or text with the marker for missing."""
    if name not in frame.columns:
        return np.full(len(frame), MISSING_TEXT, dtype=object) if kind == "text" else np.full(len(frame), np.nan)
    column = frame[name]
    if kind == "text":
        column = column.astype(object)
        known = column.notna().to_numpy()
        wrong = [value for value in column[known] if not isinstance(value, str)]
        if wrong:
            raise ValueError(f"the column {name!r} holds {wrong[0]!r}, which is not text")
        return np.where(known, column.to_numpy(), MISSING_TEXT)
    if kind == "datetime":
        try:
            times = pd.to_datetime(column, utc=True, format="ISO8601") if column.dtype == object else pd.to_datetime(column, utc=True)
        except (ValueError, TypeError) as error:
            raise ValueError(f"the column {name!r} holds what is not a time: {error}") from error
        seconds = (times - pd.Timestamp(0, tz="UTC")).dt.total_seconds()
        return seconds.to_numpy(dtype=np.float64, na_value=np.nan)
    try:
        return column.astype(object).where(column.notna(), np.nan).to_numpy().astype(np.float64)
    except (ValueError, TypeError) as error:
        raise ValueError(f"the column {name!r} holds what is not a {kind}: {error}") from error


def feeds(inputs: list[dict[str, Any]], arrays: dict[str, np.ndarray], start: int) -> dict[str, np.ndarray]:
    """Return the tensors of one batch: each input stacks its columns side by side, shape (n, columns)."""
    tensors: dict[str, np.ndarray] = {}
    for one in inputs:
        block = np.stack([arrays[name][start : start + BATCH] for name in one["columns"]], axis=1)
        tensors[one["name"]] = block.astype(object) if one["dtype"] == "string" else block.astype(DTYPES[one["dtype"]])
    return tensors


mlflow.models.set_model(BundleModel())
