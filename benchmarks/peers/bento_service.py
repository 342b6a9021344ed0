"""The same graph behind BentoML, as its documentation writes a service; BUNDLE names the folder."""

import json
import os
from pathlib import Path
from typing import Any

import bentoml
import numpy as np
import onnxruntime


@bentoml.service(workers=1)
class Churn:
    """One graph, one worker."""

    def __init__(self) -> None:
        folder = Path(os.environ["BUNDLE"])
        self.columns = json.loads((folder / "bundle.json").read_text(encoding="utf-8"))["columns"]
        self.session = onnxruntime.InferenceSession(folder / "model.onnx")

    @bentoml.api
    def predict(self, rows: list[dict[str, Any]]) -> list[list[float]]:
        """Return the probabilities of each row."""
        feeds = {}
        for one in self.columns:
            dtype = object if one["type"] == "text" else np.float64
            feeds[one["name"]] = np.array([row[one["name"]] for row in rows], dtype=dtype).reshape(-1, 1)
        return self.session.run(None, feeds)[0].tolist()
