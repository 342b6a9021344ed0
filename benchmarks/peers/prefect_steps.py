"""Prefect: what one more empty task of a flow costs, beside a flow without any; the server is warm."""

import json
import resource
import sys
import time

from prefect import flow, task


@task
def nothing() -> None:
    pass


@flow
def many(n: int) -> None:
    for _ in range(n):
        nothing()


def cpu() -> float:
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


if __name__ == "__main__":
    n = int(sys.argv[1])
    many(1)
    spent = []
    for size in (0, n):
        wall, used = time.perf_counter(), cpu()
        many(size)
        spent.append((time.perf_counter() - wall, cpu() - used))
    print(json.dumps({"wall_ms": 1000 * (spent[1][0] - spent[0][0]) / n, "cpu_ms": 1000 * (spent[1][1] - spent[0][1]) / n}))
