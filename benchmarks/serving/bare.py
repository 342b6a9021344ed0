"""The limits without any server: `python -m serving.bare FOLDER MODEL WHAT CORES SECONDS` prints runs per second and CPU.

WHAT is `run` (the same tensor again and again), `run32` (32 rows) or `pixels` (decode, resize, run). Every core is a process of its
own with one intra-op thread: the most a machine can do.
"""

import json
import multiprocessing
import resource
import subprocess
import sys
import time
from pathlib import Path

from measure import SkippedError, quiet_environment

from serving.models import Workload, session, to_tensor

BENCHMARKS = Path(__file__).resolve().parent.parent
BLOCK = 8


def bare_loop(work: Workload, model: str, what: str, *, cores: int, seconds: float) -> dict[str, float]:
    """Return `rate` (runs per second), `rows` (rows per second) and `cpu_us` per run, measured in processes of their own.

    Raises:
        SkippedError: it failed.
    """
    done = subprocess.run(
        [sys.executable, "-m", "serving.bare", str(work.folder), model, what, str(cores), str(seconds)],
        cwd=BENCHMARKS,
        env=quiet_environment(),
        capture_output=True,
        text=True,
        timeout=seconds + 60,
        check=False,
    )
    if done.returncode:
        raise SkippedError(f"the bare loop failed: {done.stderr.strip().splitlines()[-1:]}")
    return json.loads(done.stdout)


def _loop(folder: str, model: str, what: str, seconds: float, ready: object, queue: object) -> None:
    import numpy as np

    home = Path(folder)
    found = session(home / f"{model}.onnx")
    name = found.get_inputs()[0].name
    photos = [path.read_bytes() for path in sorted((home / "photos").glob("*.jpg"))]
    if model == "T":
        rows = np.random.default_rng(7).normal(size=(32 if what == "run32" else 1, 30)).astype(np.float32)
        tensors = [rows]
    else:
        tensors = [to_tensor(photo) for photo in photos[:4]]

    def once(i: int) -> None:
        tensor = to_tensor(photos[i % len(photos)]) if what == "pixels" else tensors[i % len(tensors)]
        found.run(["probabilities"], {name: tensor})

    for i in range(BLOCK):
        once(i)
    ready.wait()  # type: ignore[attr-defined]
    usage = resource.getrusage(resource.RUSAGE_SELF)
    before, n = time.perf_counter(), 0
    while time.perf_counter() - before < seconds:
        for i in range(BLOCK):
            once(n + i)
        n += BLOCK
    took = time.perf_counter() - before
    after = resource.getrusage(resource.RUSAGE_SELF)
    queue.put((n / took, n, after.ru_utime + after.ru_stime - usage.ru_utime - usage.ru_stime))  # type: ignore[attr-defined]


def _main() -> None:
    folder, model, what, cores, seconds = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), float(sys.argv[5])
    context = multiprocessing.get_context("spawn")
    ready, queue = context.Barrier(cores), context.Queue()
    workers = [context.Process(target=_loop, args=(folder, model, what, seconds, ready, queue)) for _ in range(cores)]
    for worker in workers:
        worker.start()
    found = [queue.get(timeout=seconds + 40) for _ in workers]
    for worker in workers:
        worker.join()
    rate = sum(one[0] for one in found)
    cpu_us = 1e6 * sum(one[2] for one in found) / sum(one[1] for one in found)
    print(json.dumps({"rate": rate, "rows": rate * (32 if what == "run32" else 1), "cpu_us": cpu_us}))


if __name__ == "__main__":
    _main()
