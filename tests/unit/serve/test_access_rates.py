"""Rate limits: the arithmetic for any times, and one number that several processes share."""

import math
import subprocess
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mulle.core.errors import UnavailableError
from mulle.serve.access.rates import N_ROWS, Limiter, RateTable, gcra

KEY = "0123456789ab"
HAMMER = """
import sys, time
from pathlib import Path
from mulle.serve.access.rates import RateTable
limiter = RateTable(Path(sys.argv[1])).limiter("0123456789ab", float(sys.argv[2]), int(sys.argv[3]))
print("ready", flush=True)
sys.stdin.readline()
end = time.monotonic() + 1.0
n = 0
while (now := time.monotonic()) < end:
    n += limiter.wait_s(now) == 0.0
print(n, flush=True)
"""

steps = st.lists(st.floats(0, 2, allow_nan=False), min_size=1, max_size=200)
rates = st.floats(0.01, 10_000, allow_nan=False)


def limiter(rate, burst):
    """Return a limiter with a number of its own."""
    return RateTable(None).limiter(KEY, rate, burst)


@given(steps, rates, st.integers(1, 50), st.floats(0, 1e6))
def test_no_window_sees_more_than_burst_and_rate(gaps, rate, burst, start):
    """Between any two moments at most burst + rate · t requests are admitted, whatever the times of asking."""
    limit, now, admitted = limiter(rate, burst), start, []
    for gap in gaps:
        now += gap / rate
        if limit.wait_s(now) == 0.0:
            admitted.append(now)
    worst = max(
        (j - i + 1 - rate * (admitted[j] - admitted[i]) for i in range(len(admitted)) for j in range(i, len(admitted))),
        default=0.0,
    )

    assert worst <= burst + 0.01 + 1e-9 * rate * start


@given(steps, rates, st.integers(1, 50))
def test_the_written_out_form_is_the_formula(gaps, rate, burst):
    """The hot path gives what the plain function gives, to the last bit."""
    limit, tat, now = limiter(rate, burst), 0.0, 1000.0
    for gap in gaps:
        now += gap / rate
        tat, wait = gcra(tat, now, 1 / rate, (burst + 0.001) / rate)

        assert wait == limit.wait_s(now)


@given(rates, st.integers(1, 50), st.floats(1, 1e6))
def test_whoever_waits_as_told_is_admitted(rate, burst, now):
    """After the burst is used up, the wait that is named is enough; one burst comes at once and no more."""
    limit = limiter(rate, burst)
    at_once = sum(limit.wait_s(now) == 0.0 for _ in range(burst + 5))
    wait = limit.wait_s(now)

    assert burst == at_once
    assert 0 < wait <= 1 / rate
    assert 0.0 == limit.wait_s(now + wait * (1 + 1e-9) + 1e-9 * now)


@pytest.mark.parametrize(
    "kept",
    [
        pytest.param(math.nan, id="no number"),
        pytest.param(1e18, id="a time beyond any bucket: a file from before a reboot"),
        pytest.param(-5.0, id="a time before the start"),
        pytest.param(math.inf, id="for ever"),
    ],
)
def test_a_number_that_makes_no_sense_locks_nobody_out(kept):
    """What is found in the file and cannot be true counts as an idle key."""
    view = memoryview(bytearray(8)).cast("d")
    view[0] = kept
    limit = Limiter(view, 0, 10.0, 1)

    assert 0.0 == limit.wait_s(100.0)
    assert 0 < limit.wait_s(100.0) <= 0.1
    assert (100.1, 0.0) == gcra(kept, 100.0, 0.1, 0.1001)


def test_two_workers_share_a_key_and_two_keys_share_nothing(tmp_path):
    """The same id means the same number in every table over one file; another id another one."""
    one, two = RateTable(tmp_path / "rates"), RateTable(tmp_path / "rates")
    first, second, other = one.limiter(KEY, 1.0, 2), two.limiter(KEY, 1.0, 2), two.limiter("ffffffffffff", 1.0, 2)

    assert (0.0, 0.0) == (first.wait_s(5.0), second.wait_s(5.0))
    assert first.wait_s(5.0) > 0
    assert second.wait_s(5.0) > 0
    assert 0.0 == other.wait_s(5.0)


def test_without_a_burst_one_second_comes_at_once():
    """The default burst is what the rate brings in a second, and never less than one request."""
    table = RateTable(None)
    quick, slow = table.limiter(KEY, 20.0, None), table.limiter("ffffffffffff", 0.1, None)

    assert [20, 1] == [sum(limit.wait_s(1.0) == 0.0 for _ in range(50)) for limit in (quick, slow)]


@pytest.mark.alone
def test_four_processes_admit_little_more_than_one(tmp_path):
    """Four processes that do nothing but ask, on one key: never more than four times the limit, as proved."""
    rate, burst = 200.0, 50
    command = [sys.executable, "-c", HAMMER, str(tmp_path / "rates"), str(rate), str(burst)]
    processes = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    try:
        assert ["ready\n"] * 4 == [process.stdout.readline() for process in processes]
        start = time.monotonic()
        for process in processes:
            process.stdin.write("\n")
            process.stdin.flush()
        counts = [int(process.stdout.readline()) for process in processes]
        allowed = burst + rate * (time.monotonic() - start)
    finally:
        for process in processes:
            process.communicate(timeout=60)

    assert 0.5 * allowed <= sum(counts) <= 4 * allowed


def test_a_worker_that_was_kept_waiting_gives_nothing_back():
    """A worker that looked at the clock before another admitted requests sees a time ahead of its own, and believes it."""
    view = memoryview(bytearray(8)).cast("d")
    ahead, behind = (Limiter(view, 0, 100.0, 5) for _ in range(2))
    admitted = sum(ahead.wait_s(100.0) == 0.0 for _ in range(10))
    kept = view[0]

    assert 5 == admitted
    assert behind.wait_s(99.5) > 0.5
    assert kept == view[0]


@pytest.mark.parametrize(
    "content",
    [pytest.param(b"x" * 100, id="another file"), pytest.param(b"MULLRATE" + bytes([9] * 8), id="another version")],
)
def test_a_file_that_is_no_table_is_refused(tmp_path, content):
    """Nothing is counted in, and nothing is written over, what belongs to somebody else."""
    path = tmp_path / "rates"
    path.write_bytes(content)
    with pytest.raises(UnavailableError) as raised:
        RateTable(path)

    assert ("rates-file", content) == (raised.value.code, path.read_bytes())


def test_a_full_table_still_limits(caplog):
    """When every row is taken, a key is limited within its worker, and the log says so."""
    table = RateTable(None)
    for i in range(N_ROWS):
        table.limiter(f"{i:012x}", 1.0, 1)
    limit = table.limiter("ffffffffffff", 1.0, 1)

    assert [True, False] == [limit.wait_s(1.0) == 0.0 for _ in range(2)]
    assert "full" in caplog.text
