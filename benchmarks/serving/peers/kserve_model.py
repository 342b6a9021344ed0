"""KServe's Python server: `python kserve_model.py PORT`."""

import sys

import kserve
import numpy as np
import uvicorn
import work
from kserve.protocol.rest import server as rest


class Bench(kserve.Model):
    """One graph."""

    def __init__(self):
        super().__init__(work.MODEL)
        self.session = work.make_session()
        self.ready = True

    async def predict(self, payload, headers=None, response_headers=None):
        """Return the probabilities."""
        del headers, response_headers
        tensor = payload.inputs[0].as_numpy().astype(np.float32, copy=False)
        found = work.infer(self.session, tensor)
        output = kserve.InferOutput("probabilities", list(found.shape), "FP32")
        output.set_data_from_numpy(found, binary_data=bool(payload.inputs[0].parameters))
        return kserve.InferResponse(payload.id or "0", self.name, [output])


class Loopback(uvicorn.Config):
    """KServe has no setting for its address and no way to switch its access log off."""

    def __init__(self, app, **options):
        super().__init__(app, **{**options, "host": "127.0.0.1", "access_log": False})


if __name__ == "__main__":
    rest.uvicorn.Config = Loopback
    server = kserve.ModelServer(http_port=int(sys.argv[1]), enable_grpc=False, workers=1, enable_latency_logging=False)
    server.start([Bench()])
