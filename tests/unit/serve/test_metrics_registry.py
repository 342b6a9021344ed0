"""Handles, merge rules and the page: what one worker counts and what all of them tell."""

import math
import shutil
import subprocess

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from mulle.formats import telemetry as names
from mulle.formats.telemetry import METRICS
from mulle.serve.telemetry.cells import CHUNK_BYTES
from mulle.serve.telemetry.metrics import MetricsRegistry, watch_process


def _parsed(page):
    """Return what Prometheus' own Python parser makes of a page: (sample, labels) to value."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
    }


def _value(page, name, **labels):
    return _parsed(page).get((name, tuple(sorted(labels.items()))))


def test_the_same_labels_are_the_same_series():
    """Handles bound twice count into one number."""
    registry = MetricsRegistry()
    registry.counter(names.ROWS, deployment="shop", revision="1").add(2)
    registry.counter(names.ROWS, revision="1", deployment="shop").add()

    assert 3.0 == registry.counter(names.ROWS, deployment="shop", revision="1").value
    assert 3.0 == _value(registry.render(), names.ROWS, deployment="shop", revision="1")


def test_the_raw_number_is_the_handle_s():
    """Callers who spare the call store where the handle does."""
    cell = MetricsRegistry().counter(names.REQUEST_BYTES)
    cell.view[cell.index] += 512

    assert 512.0 == cell.value


@pytest.mark.parametrize(
    ("call", "message"),
    [
        pytest.param(lambda r: r.counter("mulle_nothing_total"), "no counter", id="a name nobody declared"),
        pytest.param(lambda r: r.counter(names.IN_FLIGHT), "no counter", id="a gauge as a counter"),
        pytest.param(lambda r: r.histogram(names.ROWS, deployment="d", revision="1"), "no histogram", id="a counter as a histogram"),
        pytest.param(lambda r: r.counter(names.ROWS, deployment="d"), "has the labels", id="a label is missing"),
        pytest.param(lambda r: r.gauge(names.IN_FLIGHT, deployment="d"), r"\(none\)", id="a label too many"),
        pytest.param(lambda r: r.forget(names.ROWS), "no gauge", id="what was counted stays counted"),
    ],
)
def test_what_is_not_declared_is_refused(call, message):
    """Names, kinds and labels are those of the one list."""
    with pytest.raises(ValueError, match=message):
        call(MetricsRegistry())


@pytest.mark.parametrize(
    ("name", "labels", "puts", "expected"),
    [
        pytest.param(names.IN_FLIGHT, {}, (2, 3), {(): 5}, id="in flight: the sum"),
        pytest.param(names.WEIGHT, {"deployment": "d", "revision": "1"}, (90, 90), {(): 90}, id="a weight: not twice as much"),
        pytest.param(names.GENERATION, {"deployment": "d"}, (7, 6), {(): 6}, id="a generation: the worker that is behind"),
        pytest.param(names.RELOAD_OK, {"deployment": "d"}, (1, 0), {(): 0}, id="one refused: not well"),
        pytest.param(names.PROCESS_MEMORY, {}, (10, 20), {(("worker", "0"),): 10, (("worker", "1"),): 20}, id="memory: each its own"),
    ],
)
def test_gauges_merge_as_declared(tmp_path, name, labels, puts, expected):
    """Any worker's page tells all of them, by the metric's own rule."""
    workers = [MetricsRegistry(tmp_path, worker=number) for number in range(2)]
    for worker, x in zip(workers, puts, strict=True):
        worker.gauge(name, **labels).put(x)
    told = [{key: x for key, x in _parsed(worker.render()).items() if key[0] == name} for worker in workers]

    assert told[0] == told[1]
    assert {(name, tuple(sorted((*labels.items(), *extra)))): x for extra, x in expected.items()} == told[0]


def test_the_dead_keep_their_counts_and_lose_their_gauges(tmp_path):
    """A worker that ended is no longer in flight, but has answered what it answered."""
    one, two = MetricsRegistry(tmp_path, worker=0), MetricsRegistry(tmp_path, worker=1)
    two.counter(names.ROWS, deployment="d", revision="1").add(5)
    two.histogram(names.LATENCY, deployment="d", revision="1").observe(0.003)
    two.gauge(names.IN_FLIGHT).put(4)
    one.gauge(names.IN_FLIGHT).put(1)
    two.close()
    page = one.render()

    assert 5.0 == _value(page, names.ROWS, deployment="d", revision="1")
    assert 1.0 == _value(page, f"{names.LATENCY}_count", deployment="d", revision="1")
    assert (1.0, 1.0) == (_value(page, names.IN_FLIGHT), _value(page, names.WORKERS))


def test_a_successor_counts_on_and_puts_its_gauges_anew(tmp_path):
    """Counters go on from the dead one's; what the dead one said of itself is forgotten."""
    first = MetricsRegistry(tmp_path, worker=0)
    first.counter(names.ROWS, deployment="d", revision="1").add(5)
    first.gauge(names.WEIGHT, deployment="d", revision="1").put(100)
    first.close()
    second = MetricsRegistry(tmp_path, worker=0)
    second.counter(names.ROWS, deployment="d", revision="1").add()
    page = second.render()

    assert (6.0, None) == (
        _value(page, names.ROWS, deployment="d", revision="1"),
        _value(page, names.WEIGHT, deployment="d", revision="1"),
    )


def test_a_gauge_can_be_forgotten_and_told_again():
    """An unloaded revision disappears; loaded again it starts from 0, in the same place."""
    registry = MetricsRegistry()
    for revision in ("1", "2"):
        registry.gauge(names.WEIGHT, deployment="d", revision=revision).put(50)
    registry.forget(names.WEIGHT, deployment="d", revision="1")
    page = registry.render()
    again = registry.gauge(names.WEIGHT, deployment="d", revision="1")

    assert (None, 50.0) == tuple(_value(page, names.WEIGHT, deployment="d", revision=revision) for revision in ("1", "2"))
    assert 0.0 == again.value


def test_what_happens_in_a_thread_is_raised_to():
    """A counter told from somebody else's total never goes back."""
    cell = MetricsRegistry().counter(names.LOG_SHIPPED)
    for total in (3, 5, 4):
        cell.raise_to(total)

    assert 5.0 == cell.value


@pytest.mark.parametrize("n", [0, 1, 35, 36, 5000])
@pytest.mark.parametrize("kind", ["list", "array"])
def test_many_observations_are_as_one_by_one(n, kind):
    """Both ways of counting agree with each other and with the definition: at most the bound."""
    rng = np.random.default_rng(n)
    values = np.concatenate([rng.exponential(0.01, n), rng.choice(names.LATENCY_BUCKETS_S, n)])[:n]
    registry = MetricsRegistry()
    one = registry.histogram(names.LATENCY, deployment="d", revision="1")
    many = registry.histogram(names.LATENCY, deployment="d", revision="2")
    for x in values.tolist():
        one.observe(x)
    many.observe_many(values if kind == "array" else values.tolist())
    found = _parsed(registry.render())

    for bound in names.LATENCY_BUCKETS_S:
        le = repr(bound) if bound < 1 else str(int(bound))
        expected = float((values <= bound).sum())
        assert (expected, expected) == tuple(
            found[f"{names.LATENCY}_bucket", tuple(sorted({"deployment": "d", "revision": r, "le": le}.items()))] for r in "12"
        )
    assert math.isclose(many.view[many.first], float(values.sum()), abs_tol=1e-9)
    assert math.isclose(one.view[one.first], float(values.sum()), abs_tol=1e-9)


@pytest.mark.parametrize("n", [1, 100])
def test_no_observation_spoils_the_sum(n):
    """NaN and negative ones are left out, one by one and in bulk."""
    registry = MetricsRegistry()
    histogram = registry.histogram(names.LATENCY, deployment="d", revision="1")
    histogram.observe(math.nan)
    histogram.observe(-1.0)
    histogram.observe_many([math.nan, -1.0, *[0.5] * n])

    assert (n * 0.5, float(n)) == (
        _value(registry.render(), f"{names.LATENCY}_sum", deployment="d", revision="1"),
        _value(registry.render(), f"{names.LATENCY}_count", deployment="d", revision="1"),
    )


@pytest.mark.parametrize(
    ("n_classes", "indices", "expected"),
    [
        pytest.param(2, [0, 1, 1], {"c0": 1, "c1": 2}, id="each class its own"),
        pytest.param(50, [49, 49], {"c49": 2}, id="the last of fifty has its own"),
        pytest.param(1000, [0, 49, 50, 999, 999], {"c0": 1, "c49": 1, "other": 3}, id="beyond fifty: other"),
        pytest.param(0, [], {}, id="a regression has none"),
    ],
)
def test_predictions_by_class_are_bounded(n_classes, indices, expected):
    """At most fifty classes, then `other`; every row is counted once."""
    registry = MetricsRegistry()
    counter = registry.classes("d", "1", [f"c{number}" for number in range(n_classes)])
    counter.add_many(np.array(indices, dtype=np.int64))
    for index in indices:
        counter.add(index)
    found = {dict(key[1])["class"]: x for key, x in _parsed(registry.render()).items() if key[0] == names.PREDICTIONS and x}

    assert {name: 2.0 * n for name, n in expected.items()} == found


def test_a_metric_has_a_bounded_number_of_series():
    """Beyond the bound everything is counted as `other`, and that is told too."""
    registry = MetricsRegistry()
    for number in range(names.MAX_SERIES + 10):
        registry.counter(names.ROWS, deployment="d", revision=str(number)).add()
    page = registry.render()

    assert 10.0 == _value(page, names.ROWS, deployment="other", revision="other")
    assert 10.0 == _value(page, names.SERIES_REFUSED, metric=names.ROWS)
    assert names.MAX_SERIES + 1 == sum(key[0] == names.ROWS for key in _parsed(page))


def test_forgotten_gauges_make_room_for_others():
    """Loading and unloading revisions for years does not use up the bound."""
    registry = MetricsRegistry()
    for number in range(names.MAX_SERIES * 2):
        registry.gauge(names.WEIGHT, deployment="d", revision=str(number)).put(1)
        registry.forget(names.WEIGHT)

    assert None is _value(registry.render(), names.SERIES_REFUSED, metric=names.WEIGHT)


def test_long_labels_are_cut_and_stay_apart():
    """A mebibyte becomes 128 characters, and two that begin alike stay two."""
    registry = MetricsRegistry()
    for end in "ab":
        registry.counter(names.ANOMALIES, deployment="d", column="물레" * 500_000 + end, kind="k").add()
    columns = [dict(key[1])["column"] for key in _parsed(registry.render()) if key[0] == names.ANOMALIES]

    assert [128, 128] == [len(column) for column in columns]
    assert 2 == len(set(columns))


@given(
    series=st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"]), max_size=40),
        st.integers(0, 2**53) | st.floats(0, 1e300, allow_nan=False),
        min_size=1,
        max_size=8,
    )
)
def test_the_page_says_what_was_counted(series):
    """Whatever the labels hold (quotes, backslashes, newlines, Korean): Prometheus' parser gives it back."""
    registry = MetricsRegistry()
    for column, x in series.items():
        registry.counter(names.ANOMALIES, deployment="d", column=column, kind="k").add(x)
    found = {dict(key[1])["column"]: x for key, x in _parsed(registry.render()).items() if key[0] == names.ANOMALIES}

    assert {column: float(x) for column, x in series.items()} == found


@pytest.mark.parametrize(
    "value",
    [
        pytest.param('a"b\\c\nd', id="what the format escapes"),
        pytest.param('"} 1\nmulle_rows_total{x="', id="a forged line"),
        pytest.param("한국어 값", id="Korean"),
        pytest.param("\ud800", id="no Unicode character"),
        pytest.param("\x00\x85\u2028", id="other ends of lines"),
        pytest.param("", id="empty"),
    ],
)
def test_hostile_labels_stay_labels(value, require_service):
    """No value ends its line or its quotes: promtool reads every page."""
    registry = MetricsRegistry()
    registry.counter(names.ANOMALIES, deployment=value, column=value, kind="k").add(3)
    page = registry.render()
    shown = value.encode("utf-8", "replace").decode()

    assert 3.0 == _value(page, names.ANOMALIES, deployment=shown, column=shown, kind="k")
    _require_clean(page, require_service)


def test_every_metric_passes_promtool(require_service):
    """With one series of each; so names, types, units and help texts are as Prometheus wants them."""
    registry = MetricsRegistry()
    watch_process(registry, onnxruntime="1.0")
    for spec in METRICS.values():
        labels = dict.fromkeys(spec.labels, "x")
        if spec.kind == "histogram":
            registry.histogram(spec.name, **labels).observe(0.003)
        elif spec.kind == "gauge":
            registry.gauge(spec.name, **labels).put(1)
        else:
            registry.counter(spec.name, **labels).add()
    page = registry.render()

    assert set(METRICS) == {line.split()[2] for line in page.splitlines() if line.startswith("# TYPE")}
    _require_clean(page, require_service)


def _require_clean(page, require_service):
    require_service(shutil.which("promtool") is not None, "promtool", "apt-get install prometheus")
    done = subprocess.run(["promtool", "check", "metrics"], input=page.encode(), capture_output=True, check=False)
    assert (0, b"") == (done.returncode, done.stderr)


def test_foreign_files_are_counted_and_cost_nothing(tmp_path):
    """Whatever lies in the folder, the page is there; what is named otherwise is somebody else's, and no matter."""
    (tmp_path / "rates").write_text("hello")
    (tmp_path / "folder.cells").mkdir()
    (tmp_path / "worker-9-0.cells").write_bytes(b"\xff" * CHUNK_BYTES * 2)
    registry = MetricsRegistry(tmp_path, worker=0)
    registry.counter(names.CONNECTIONS_ACCEPTED).add(3)
    MetricsRegistry(tmp_path, worker=1).counter(names.CONNECTIONS_ACCEPTED).add(4)
    page = registry.render()

    assert (7.0, 2.0) == (_value(page, names.CONNECTIONS_ACCEPTED), _value(page, names.FILES_IGNORED))


def test_a_folder_that_cannot_be_used_is_said_once(tmp_path, caplog):
    """The worker then tells its own numbers: telemetry never stops answers."""
    registry = MetricsRegistry(tmp_path / "missing", worker=0)
    registry.counter(names.CONNECTIONS_ACCEPTED).add()

    assert 1.0 == _value(registry.render(), names.CONNECTIONS_ACCEPTED)
    assert ["this one tells its own alone" in record.getMessage() for record in caplog.records] == [True]


def test_process_metrics_are_those_of_the_process(tmp_path):
    """CPU and memory are above nothing, and CPU goes on from the process that was replaced."""
    first = MetricsRegistry(tmp_path, worker=3)
    watch_process(first)
    first.counter(names.PROCESS_CPU).add(1000.0)
    first.close()
    second = MetricsRegistry(tmp_path, worker=3)
    watch_process(second)
    page = second.render()

    assert _value(page, names.PROCESS_CPU, worker="3") > 1000.0
    assert _value(page, names.PROCESS_MEMORY, worker="3") > 10_000_000
    assert _value(page, names.PROCESS_FDS, worker="3") > 2
    assert _value(page, names.PROCESS_MAX_FDS, worker="3") > 2


def test_a_total_goes_on_from_the_worker_before(tmp_path):
    """What a process counts for itself starts from 0 with it; the counter does not."""
    for total in (100, 30):
        registry = MetricsRegistry(tmp_path, worker=0)
        told = registry.total(names.REQUEST_BYTES)
        registry.collectors.append(lambda told=told, total=total: told.tell(total))
        registry.render()
        registry.close()
    reader = MetricsRegistry(tmp_path, worker=1)

    assert 130.0 == _value(reader.render(), names.REQUEST_BYTES)


def test_collectors_run_for_the_siblings_too(tmp_path):
    """What is only measured when asked reaches another worker's page by `collect`."""
    one, two = MetricsRegistry(tmp_path, worker=0), MetricsRegistry(tmp_path, worker=1)
    one.collectors.append(lambda: one.gauge(names.CONNECTIONS).put(3))
    before = _value(two.render(), names.CONNECTIONS)
    one.collect()

    assert (None, 3.0) == (before, _value(two.render(), names.CONNECTIONS))


@pytest.mark.parametrize(
    ("route", "expected"),
    [
        pytest.param("/predict", "/predict", id="ours"),
        pytest.param("/predict/../../etc/passwd", "other", id="nobody's"),
        pytest.param("/v2/models/shop/infer", "other", id="a path is not its route"),
    ],
)
def test_routes_are_bounded(route, expected):
    """What is no route of ours is `other`: a scanner adds no series."""
    assert expected == names.route_label(route)
