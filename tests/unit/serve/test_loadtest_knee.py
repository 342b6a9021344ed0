"""The search for the knee: pure decisions, and a made-up server with a known limit."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mulle.serve.loadtest.histogram import Histogram
from mulle.serve.loadtest.knee import RESOLUTION, find_knee, judge, next_rate
from mulle.serve.loadtest.result import Load, Result

LOAD = Load(host="127.0.0.1", port=1, requests=(b"x",), connections=8, duration_s=10.0)


def result(rate=1000.0, *, ms=1.0, n=10_000, errors=0, sent=1.0, completed=1.0, held=0, lag_ms=0.01, cpu=0.2, interrupted=False):
    """Return a result in which every answer took `ms`."""
    latency, lag = Histogram(), Histogram()
    latency.record(int(ms * 1e6))
    lag.record(int(lag_ms * 1e6))
    return Result(
        connections=8,
        asked_rate=rate,
        arrivals="constant",
        pipeline=1,
        measured_s=10.0,
        by_status={200: {bucket: n - errors for bucket, _ in latency.filled()}},
        errors={"timeout": errors} if errors else {},
        n_sent=int(10 * (rate or 0) * sent),
        n_held=held,
        n_completed=int(n * completed),
        n_late=0,
        n_reconnects=0,
        bytes_in=1,
        bytes_out=1,
        lag={bucket: n for bucket, _ in lag.filled()},
        cpu_s=10 * cpu,
        interrupted=interrupted,
    )


def server(limit, *, ms=2.0):
    """Return a run against a server that is quick up to `limit` per second and hopeless beyond."""
    asked = []

    def run(load):
        asked.append(load.rate)
        if load.rate is None:
            return msgspec.structs.replace(result(limit), asked_rate=None, n_completed=int(10 * limit))
        good = load.rate <= limit
        n = int(10 * load.rate)
        return result(load.rate, ms=ms if good else 900.0, n=n, held=0 if good else n, completed=1.0 if good else 0.5)

    return run, asked


@pytest.mark.parametrize(
    ("found", "expected", "said"),
    [
        pytest.param(result(ms=4.9), "met", "allowed 5.00 ms", id="inside the objective"),
        pytest.param(result(ms=5.2), "slow", "p99 5.", id="outside it"),
        pytest.param(result(errors=10), "errors", "0.10%", id="one in a thousand failed"),
        pytest.param(result(errors=9), "met", "p99", id="fewer failed"),
        pytest.param(result(completed=0.9, held=5000), "slow", "a queue grows", id="quick, but the queue grows"),
        pytest.param(result(ms=9.0, cpu=0.99), "unmeasured", "the generator was late", id="the generator had no time"),
        pytest.param(result(ms=9.0, lag_ms=8.0), "unmeasured", "the generator was late", id="the machine held the generator up"),
        pytest.param(result(ms=9.0, lag_ms=8.0, held=5000), "slow", "no connection was free", id="the server held it up"),
    ],
)
def test_a_step_is_judged_by_its_numbers(found, expected, said):
    """A verdict names the numbers compared, and blames the generator only for its own lateness."""
    verdict, why = judge(found, 5.0)

    assert expected == verdict
    assert said in why


@given(st.floats(1.0, 1e6), st.floats(1.0, 1e6))
def test_the_search_ends_at_the_limit(limit, first):
    """Whatever the limit and the start, the search ends, within its resolution below the limit."""
    tried = []
    while (rate := next_rate(tried, first)) is not None:
        assert rate not in [one for one, _ in tried]
        tried.append((rate, rate <= limit))
    good = max((rate for rate, met in tried if met), default=0.0)
    bad = min((rate for rate, met in tried if not met), default=float("inf"))

    assert len(tried) <= 24
    assert good <= limit
    assert len(tried) == 24 or bad <= max(2.0, good * (1 + RESOLUTION) * 1.01)


def test_the_knee_is_just_below_the_limit():
    """Given an objective the search asks a closed loop once, then rates; misses are asked twice."""
    run, asked = server(5000.0)
    told = []
    knee = find_knee(LOAD, run, slo_ms=10.0, on_step=told.append)

    assert 5000 / (1 + 2 * RESOLUTION) <= knee.rate <= 5000
    assert ("server", True, None) == (knee.limit, knee.slo_given, knee.unloaded)
    assert tuple(told) == knee.steps
    assert [None] == [rate for rate in asked if rate is None]
    assert all(asked.count(step.rate) == (1 if step.verdict == "met" else 2) for step in knee.steps)


def test_without_an_objective_it_is_five_times_the_unloaded_p99():
    """A light load comes first; five times its p99 is then kept."""
    run, asked = server(5000.0, ms=3.0)
    knee = find_knee(LOAD, run, slo_ms=None)

    assert pytest.approx(15.0, rel=0.01) == knee.slo_ms
    assert (False, 100.0) == (knee.slo_given, asked[1])
    assert knee.to_dict()["unloaded_latency_ms"]["n"] == 1000


def test_one_hiccup_is_no_knee():
    """A rate that misses once and keeps the second time is good."""
    run, _ = server(5000.0)
    missed = []

    def hiccup(load):
        if load.rate == 2500.0 and not missed:
            missed.append(load.rate)
            return result(2500.0, ms=900.0)
        return run(load)

    knee = find_knee(LOAD, hiccup, slo_ms=10.0)

    assert [2500.0] == missed
    assert knee.rate > 4500


def test_a_generator_at_its_limit_gives_a_lower_bound():
    """What could not be asked was not measured: the knee says that it is a bound."""

    def run(load):
        if load.rate is None:
            return msgspec.structs.replace(result(4000.0), asked_rate=None, n_completed=40_000)
        return result(load.rate, cpu=0.99 if load.rate > 3000 else 0.5, ms=99.0 if load.rate > 3000 else 1.0)

    knee = find_knee(LOAD, run, slo_ms=10.0)

    assert ("generator", 2000.0) == (knee.limit, knee.rate)
    assert "unmeasured" == knee.steps[-1].verdict


def test_a_server_that_never_keeps_it_has_no_knee():
    """Rates are halved until one request per second; then there is no knee."""
    knee = find_knee(LOAD, lambda load: result(load.rate or 100.0, ms=50.0), slo_ms=10.0)

    assert knee.rate is None
    assert knee.steps[-1].rate <= 2


def test_an_interrupted_search_keeps_what_it_has():
    """Ctrl-C ends the search; the best rate so far stands."""
    run, _ = server(5000.0)

    def interrupted(load):
        found = run(load)
        found.interrupted = load.rate is not None and load.rate > 4000
        return found

    knee = find_knee(LOAD, interrupted, slo_ms=10.0)

    assert ("interrupted", 2500.0) == (knee.limit, max(step.rate for step in knee.steps[:-1]))
