"""Dagster: what one more empty op of a job costs, in one process, beside a job of one op."""

import json
import logging
import statistics
import sys
import time

from dagster import DagsterInstance, In, Nothing, job, op


def make(n: int):
    @op
    def first() -> None:
        pass

    @op(ins={"before": In(Nothing)})
    def nothing() -> None:
        pass

    @job(name=f"steps_{n}")
    def steps() -> None:
        done = first()
        for i in range(n - 1):
            done = nothing.alias(f"step_{i}")(before=done)

    return steps


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)
    n = int(sys.argv[1])
    walls, cpus = {1: [], n + 1: []}, {1: [], n + 1: []}
    with DagsterInstance.local_temp() as instance:
        jobs = {size: make(size) for size in walls}
        jobs[1].execute_in_process(instance=instance)
        for size in (1, n + 1) * 3:
            wall, used = time.perf_counter(), time.process_time()
            jobs[size].execute_in_process(instance=instance)
            walls[size].append(time.perf_counter() - wall)
            cpus[size].append(time.process_time() - used)
    per_step = [1000 * (statistics.median(one[n + 1]) - statistics.median(one[1])) / n for one in (walls, cpus)]
    print(json.dumps({"wall_ms": per_step[0], "cpu_ms": per_step[1]}))
