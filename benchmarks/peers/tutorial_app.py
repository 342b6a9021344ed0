"""The server a tutorial would write: FastAPI, a pydantic model of the row, ONNX Runtime. BUNDLE names the folder."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from fastapi import FastAPI
from pydantic import create_model

folder = Path(os.environ["BUNDLE"])
manifest = json.loads((folder / "bundle.json").read_text(encoding="utf-8"))
session = onnxruntime.InferenceSession(folder / "model.onnx")
texts = {one["name"] for one in manifest["columns"] if one["type"] == "text"}
Row: Any = create_model("Row", **{one["name"]: (str if one["name"] in texts else float | None, ...) for one in manifest["columns"]})
app = FastAPI()


@app.post("/predict")
def predict(rows: list[Row]):
    feeds = {}
    for one in manifest["columns"]:
        values = [getattr(row, one["name"]) for row in rows]
        dtype = object if one["name"] in texts else np.float64
        feeds[one["name"]] = np.array(values, dtype=dtype).reshape(-1, 1)
    probabilities = session.run(None, feeds)[0]
    return {"predictions": [{"No": float(row[0]), "Yes": float(row[1])} for row in probabilities]}
