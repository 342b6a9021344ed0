"""LitServe with batching: `python litserve_app.py PORT`."""

import sys

import litserve as ls
import numpy as np
import work


class Bench(ls.LitAPI):
    """One graph; a batch is a list of arrays, since requests may carry several rows."""

    def setup(self, device):
        """Load the graph."""
        del device
        self.session = work.make_session()

    def decode_request(self, request):
        """Return a request as an array of rows."""
        if work.MODEL == "T":
            return np.array(request["features"], dtype=np.float32)
        return work.to_tensor(request["file"].file.read())[None]

    def batch(self, inputs):
        """Return requests as they are."""
        return list(inputs)

    def predict(self, x):
        """Return one array per request."""
        ends = np.cumsum([len(one) for one in x])[:-1]
        return np.split(work.infer(self.session, np.concatenate(x)), ends)

    def unbatch(self, output):
        """Return answers as they are."""
        return output

    def encode_response(self, output):
        """Return one answer."""
        return {"predictions": output.tolist()}


if __name__ == "__main__":
    api = Bench(max_batch_size=work.MAX_BATCH, batch_timeout=0.001, api_path="/predict")
    ls.LitServer(api, accelerator="cpu", workers_per_device=1, timeout=60).run(
        host="127.0.0.1", port=int(sys.argv[1]), num_api_servers=1, log_level="error", generate_client_file=False
    )
