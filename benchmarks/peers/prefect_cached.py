"""Prefect: a flow of nine cached tasks; from the second time on there is nothing to do."""

from prefect import flow, task
from prefect.cache_policies import INPUTS


@task(cache_policy=INPUTS, persist_result=True, log_prints=False)
def step(value: int) -> int:
    return value + 1


@flow
def wheel() -> int:
    value = 0
    for _ in range(9):
        value = step(value)
    return value


if __name__ == "__main__":
    wheel()
