"""What every peer shares: which graph, with how many threads, and the photograph as a tensor. The environment says it all.

BENCH_FOLDER   the folder of the workload     BENCH_MODEL   T, S or I     BENCH_THREADS   of ONNX Runtime; 0: its own default
"""

import io
import os
from pathlib import Path

import numpy as np
import onnxruntime

MODEL = os.environ.get("BENCH_MODEL", "T")
THREADS = int(os.environ.get("BENCH_THREADS", "1"))
GRAPH = Path(os.environ["BENCH_FOLDER"]) / f"{MODEL}.onnx"
INPUT = "features" if MODEL == "T" else "image"
SHAPE = (30,) if MODEL == "T" else (3, 224, 224)
CLASSES = 2 if MODEL == "T" else 10
MAX_BATCH = 64 if MODEL == "T" else 16
MEAN = np.array((0.485, 0.456, 0.406), np.float32)
STD = np.array((0.229, 0.224, 0.225), np.float32)


def make_session():
    """Return the session; with a number of threads it does not spin while it waits."""
    options = onnxruntime.SessionOptions()
    if THREADS:
        options.intra_op_num_threads = THREADS
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(str(GRAPH), options, providers=["CPUExecutionProvider"])


def infer(session, tensor):
    """Return the probabilities, shape (n, k)."""
    return session.run(["probabilities"], {INPUT: tensor})[0]


def to_tensor(photo):
    """Return an encoded photograph (or an open image) as (3, 224, 224), the same pixels everywhere."""
    from PIL import Image

    image = Image.open(io.BytesIO(photo)) if isinstance(photo, bytes) else photo
    small = image.convert("RGB").resize((224, 224), Image.Resampling.BILINEAR)
    values = np.asarray(small, dtype=np.float32) / np.float32(255.0)
    return np.ascontiguousarray(((values - MEAN) / STD).transpose(2, 0, 1))
