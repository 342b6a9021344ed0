"""FastAPI by somebody who measures: the raw body, orjson both ways, inference on the loop; pictures in the thread pool."""

import numpy as np
import orjson
import work
from fastapi import FastAPI, File, Request, Response, UploadFile

app = FastAPI()
session = work.make_session()


def answer(content):
    return Response(orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY), media_type="application/json")


@app.post("/predict")
async def predict(request: Request):
    rows = np.array(orjson.loads(await request.body())["features"], dtype=np.float32)
    return answer({"predictions": work.infer(session, rows)})


@app.post("/image")
def image(file: UploadFile = File(...)):  # noqa: B008, FAST002
    tensor = work.to_tensor(file.file.read())
    probabilities = work.infer(session, tensor[None])[0]
    best = int(probabilities.argmax())
    return answer({"class": best, "confidence": float(probabilities[best])})
