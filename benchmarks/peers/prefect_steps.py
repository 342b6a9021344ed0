"""Prefect: what one more empty task of a flow costs, beside a flow without any; the server is warm."""

import json
import os
import statistics
import sys
import time
from pathlib import Path

from prefect import flow, task

SETTLE_S = 1.5


@task
def nothing() -> None:
    pass


@flow
def many(n: int) -> None:
    for _ in range(n):
        nothing()


def cpu() -> float:
    """Return the CPU seconds of this process and of the server it started, once both have come to rest (Linux)."""
    time.sleep(SETTLE_S)
    ticks = 0
    family = [os.getpid()]
    for pid in family:
        for thread in Path(f"/proc/{pid}/task").glob("*/children"):
            family += [int(child) for child in thread.read_text(encoding="ascii").split()]
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    n = int(sys.argv[1])
    many(1)
    cpus = {0: [], n: []}
    for size in (0, n) * 3:
        used = cpu()
        many(size)
        cpus[size].append(cpu() - used)
    print(json.dumps({"cpu_ms": 1000 * (statistics.median(cpus[n]) - statistics.median(cpus[0])) / n}))
