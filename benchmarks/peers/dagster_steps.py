"""Dagster: what one more empty op of a job costs, in one process, beside a job of one op."""

import json
import logging
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
    spent = []
    with DagsterInstance.local_temp() as instance:
        make(2).execute_in_process(instance=instance)
        for steps in (make(1), make(n + 1)):
            wall, used = time.perf_counter(), time.process_time()
            steps.execute_in_process(instance=instance)
            spent.append((time.perf_counter() - wall, time.process_time() - used))
    print(json.dumps({"wall_ms": 1000 * (spent[1][0] - spent[0][0]) / n, "cpu_ms": 1000 * (spent[1][1] - spent[0][1]) / n}))
