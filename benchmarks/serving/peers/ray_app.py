"""Ray Serve with its batching: `python ray_app.py PORT FOLDER`."""

import os
import signal
import sys
from pathlib import Path

import numpy as np
import ray
import work
from ray import serve


@serve.deployment(num_replicas=1, max_ongoing_requests=1000, ray_actor_options={"num_cpus": 1})
class Bench:
    """One graph; a batch is a list of arrays."""

    def __init__(self):
        self.session = work.make_session()

    @serve.batch(max_batch_size=work.MAX_BATCH, batch_wait_timeout_s=0.001)
    async def answer(self, inputs):
        """Return one array per request."""
        ends = np.cumsum([len(one) for one in inputs])[:-1]
        return np.split(work.infer(self.session, np.concatenate(inputs)), ends)

    async def __call__(self, request):
        """Return one answer."""
        if work.MODEL == "T":
            tensor = np.array((await request.json())["features"], dtype=np.float32)
        else:
            form = await request.form()
            tensor = work.to_tensor(await form["file"].read())[None]
        return {"predictions": (await self.answer(tensor)).tolist()}


if __name__ == "__main__":
    here = str(Path(__file__).parent)
    environment = {"env_vars": {**{k: v for k, v in os.environ.items() if k.startswith("BENCH_")}, "PYTHONPATH": here}}
    # Unix sockets have short names: a deep scratch folder would not do.
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, runtime_env=environment)
    serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[1])})
    serve.run(Bench.bind(), route_prefix="/predict")

    def leave(*_):
        ray.shutdown()
        os._exit(0)

    signal.signal(signal.SIGTERM, leave)
    while True:
        signal.pause()
