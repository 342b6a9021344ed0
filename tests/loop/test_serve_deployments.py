"""Several deployments in one server: each answers for itself, and they come and go with their specs."""

import asyncio
import os

import pytest

from mulle.serve.config import ServeConfig
from mulle.serve.server import server_in_thread
from mulle.serve.worker import Worker
from support.bundles import seal_churn, trusted_key, write_spec
from support.http_client import RawClient
from support.serving import config, wait_until

ROW = {"tenure": 1, "monthly": 70}


def ask(client, path, **headers):
    return client.request("POST", path, [ROW], {name.replace("_", "-"): value for name, value in headers.items()})


@pytest.fixture
def two(tmp_path):
    """A server of deployments `churn` and `이탈`, the second shifted so that its answers differ."""
    state = tmp_path / ".mulle"
    for i, name in enumerate(("churn", "이탈")):
        write_spec(state, [seal_churn(state / "bundles", shift=float(i))], generation=1, deployment=name)
    with server_in_thread(config(state, also=("이탈",), all_deployments=True)) as started, RawClient(started.host, started.port) as client:
        yield state, client


def test_each_deployment_answers_with_its_own_model(two):
    """The first is meant where a path names none; a name is looked up after decoding it once."""
    _, client = two
    first, named, other = (
        ask(client, path) for path in ("/predict", "/deployments/churn/predict", "/deployments/%EC%9D%B4%ED%83%88/predict")
    )

    assert [200, 200, 200] == [reply.status for reply in (first, named, other)]
    assert first.json["predictions"] == named.json["predictions"]
    assert first.json["predictions"] != other.json["predictions"]


@pytest.mark.parametrize(
    "path", ["/deployments/nobody/predict", "/deployments/%2e%2e/predict", "/deployments/churn%00/predict"], ids=["unknown", "dots", "NUL"]
)
def test_an_unknown_deployment_is_not_found(two, path):
    """404 in the one error shape, whatever the name tries."""
    reply = ask(two[1], path)

    assert (404, "deployment-unknown") == (reply.status, reply.code)


def test_health_and_metrics_tell_every_deployment_apart(two):
    """Counters carry the deployment's name."""
    _, client = two
    ask(client, "/deployments/churn/predict")
    health = client.request("GET", "/health").json
    metrics = client.request("GET", "/metrics").body.decode()

    assert ["churn", "이탈"] == [one["deployment"] for one in health["deployments"]]
    assert 'mulle_deployment_generation{deployment="이탈"} 1' in metrics


def test_a_deployment_comes_and_goes_with_its_spec(two):
    """A new spec is loaded while the others answer; a removed one is unloaded; what came before is untouched."""
    state, client = two
    write_spec(state, [seal_churn(state / "bundles", shift=2.0)], generation=1, deployment="third")

    assert wait_until(lambda: ask(client, "/deployments/third/predict").status == 200, 10)
    (state / "serving" / "third.json").unlink()
    assert wait_until(lambda: ask(client, "/deployments/third/predict").status == 404, 10)
    assert 200 == ask(client, "/predict").status


def test_a_spec_that_cannot_be_served_leaves_the_others_alone(two):
    """A broken newcomer is logged, and nobody else notices."""
    state, client = two
    (state / "serving" / "broken.json").write_text("{", encoding="utf-8")
    wait_until(lambda: False, 0.7)

    assert 404 == ask(client, "/deployments/broken/predict").status
    assert 200 == ask(client, "/predict").status


def resident_kib():
    with open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123 - a pseudo-file
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 1024


async def _cycle(worker, name, n):
    for _ in range(n):
        worker.load(name)
        worker.unload(name)


@pytest.mark.slow
def test_memory_returns_after_two_hundred_loads_and_unloads(tmp_path):
    """What a model took it gives back: the second hundred cycles may not grow by more than a few pages each."""
    state = tmp_path / ".mulle"
    write_spec(state, [seal_churn(state / "bundles")], generation=1)
    write_spec(state, [seal_churn(state / "bundles", shift=1.0)], generation=1, deployment="guest")

    async def live():
        worker = Worker(ServeConfig(state_dir=state, deployment="churn", trusted=[trusted_key()], threads=1))
        await _cycle(worker, "guest", 100)
        middle = resident_kib()
        await _cycle(worker, "guest", 100)
        after = resident_kib()
        worker.close()
        return after - middle

    grown = asyncio.run(live())

    assert grown < 100 * 8, f"{grown} KiB in a hundred cycles"
