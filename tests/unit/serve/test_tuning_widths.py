"""Whether a large model is held twice: once for many requests, once for a lone one."""

import time
from types import SimpleNamespace

import pytest

from mulle.serve.plane import tuning

MS = 0.001


def runtime_of(costs):
    """Return what loads a runtime whose one request takes so long with so many threads."""

    def make(threads):
        return SimpleNamespace(threads=threads, wide=None, cost_s=costs["one" if threads == 1 else "all"])

    return make


def sleeper(runtime):
    return lambda: time.sleep(runtime.cost_s)


@pytest.mark.parametrize(
    ("costs", "cores", "expected"),
    [
        pytest.param({"one": 0.2 * MS, "all": 0.05 * MS}, 4, None, id="a small model: nobody waits for it anyway"),
        pytest.param({"one": 10 * MS, "all": 5 * MS}, 4, 4, id="a large one that gains half: both ways"),
        pytest.param({"one": 10 * MS, "all": 9.5 * MS}, 4, None, id="a large one that gains little: its memory is not spent twice"),
        pytest.param({"one": 10 * MS, "all": 1 * MS}, 1, None, id="one core: there is no other way"),
    ],
)
def test_a_model_is_held_in_two_widths_only_where_it_pays(monkeypatch, costs, cores, expected):
    """Measured, not believed."""
    monkeypatch.setattr(tuning, "n_cores", lambda: cores)

    runtime = tuning.load_widths(runtime_of(costs), sleeper)

    assert 1 == runtime.threads
    assert expected == (None if runtime.wide is None else runtime.wide.threads)
