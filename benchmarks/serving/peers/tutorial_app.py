"""The server a tutorial would write: FastAPI, a pydantic body, ONNX Runtime as it comes."""

import numpy as np
import work
from fastapi import FastAPI, File, UploadFile
from pydantic import BaseModel

app = FastAPI()
session = work.make_session()


class Body(BaseModel):
    """Rows of numbers."""

    features: list[list[float]]


@app.post("/predict")
def predict(body: Body):
    probabilities = work.infer(session, np.array(body.features, dtype=np.float32))
    return {"predictions": probabilities.tolist()}


@app.post("/image")
async def image(file: UploadFile = File(...)):  # noqa: B008, FAST002 - as tutorials write it
    tensor = work.to_tensor(await file.read())
    probabilities = work.infer(session, tensor[None])[0]
    best = int(probabilities.argmax())
    return {"class": best, "confidence": float(probabilities[best])}
