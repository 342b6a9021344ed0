"""MLflow's scoring server: `python mlflow_model.py PORT FOLDER` saves the graph as an MLflow model once and serves it."""

import os
import sys
from pathlib import Path

import mlflow.onnx
import numpy as np
import onnx
import work
from mlflow.models import ModelSignature
from mlflow.types import Schema, TensorSpec

if __name__ == "__main__":
    port, folder = sys.argv[1], Path(sys.argv[2]) / f"mlflow-{work.MODEL}"
    if not folder.exists():
        signature = ModelSignature(inputs=Schema([TensorSpec(np.dtype(np.float32), (-1, *work.SHAPE), work.INPUT)]))
        mlflow.onnx.save_model(
            onnx.load(str(work.GRAPH)),
            str(folder),
            signature=signature,
            onnx_session_options={"intra_op_num_threads": work.THREADS, "inter_op_num_threads": 1} if work.THREADS else None,
            pip_requirements=["mlflow", "onnx", "onnxruntime"],
        )
    bin_folder = Path(sys.executable).parent
    os.environ["PATH"] = f"{bin_folder}:{os.environ['PATH']}"
    command = ["mlflow", "models", "serve", "-m", str(folder), "--env-manager", "local", "-h", "127.0.0.1", "-p", port, "-w", "1"]
    os.execv(bin_folder / "mlflow", command)  # noqa: S606 - the server takes this process's place
