"""A custom MLServer runtime: `python mlserver_model.py PORT GRPC_PORT FOLDER` writes its settings and starts the server."""

import json
import os
import sys
from pathlib import Path

import work
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceResponse


class Bench(MLModel):
    """One graph behind MLServer's own batching."""

    async def load(self):
        """Load the graph."""
        self.session = work.make_session()
        return True

    async def predict(self, payload):
        """Return the probabilities."""
        tensor = NumpyCodec.decode_input(payload.inputs[0])
        output = NumpyCodec.encode_output("probabilities", work.infer(self.session, tensor))
        return InferenceResponse(model_name=self.name, outputs=[output])


def write_settings(folder, port, grpc_port):
    folder.mkdir(parents=True, exist_ok=True)
    server = {
        "http_port": port,
        "grpc_port": grpc_port,
        "host": "127.0.0.1",
        "metrics_endpoint": None,
        "parallel_workers": 0,
        "use_structured_logging": False,
        "debug": False,
    }
    model = {"name": work.MODEL, "implementation": "mlserver_model.Bench", "max_batch_size": work.MAX_BATCH, "max_batch_time": 0.001}
    (folder / "settings.json").write_text(json.dumps(server))
    (folder / "model-settings.json").write_text(json.dumps(model))


if __name__ == "__main__":
    here = Path(sys.argv[3]) / f"mlserver-{sys.argv[1]}"
    write_settings(here, int(sys.argv[1]), int(sys.argv[2]))
    os.environ["PYTHONPATH"] = str(Path(__file__).parent)
    program = Path(sys.executable).with_name("mlserver")
    os.execv(program, [str(program), "start", str(here)])  # noqa: S606 - the server takes this process's place
