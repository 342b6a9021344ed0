"""Heads met before: what may be remembered, and that remembering never changes what a request means."""

import pytest

from mulle.serve.http.heads import Head, HeadCache
from mulle.serve.http.plain import Plain


def head(n_body):
    return Head("POST", "/predict", "", [("host", "a")], n_body=n_body, target=Plain(lambda _: None))


@pytest.mark.parametrize(
    ("data", "n_body", "expected"),
    [
        pytest.param(b"POST / HTTP/1.1\r\nhost: a\r\n\r\nabc", 3, True, id="one whole message"),
        pytest.param(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n", 0, True, id="without a body"),
        pytest.param(b"POST / HTTP/1.1\r\nhost: a\r\n\r\nab", 3, False, id="the body is not whole"),
        pytest.param(b"POST / HTTP/1.1\r\nhost: a\r\n\r\nabcP", 3, False, id="another message begins behind it"),
        pytest.param(b"POST / HTTP/1.1\nhost: a\n\nab\r\n\r\nc", 3, False, id="bare line feeds: the head ended earlier"),
        pytest.param(b"\r\nPOST / HTTP/1.1\r\nhost: a\r\n\r\nabc", 3, False, id="an empty line before it"),
        pytest.param(b"POST / HTTP/1.1\r\nx: a\rb\r\n\r\nabc", 3, False, id="a bare carriage return"),
        pytest.param(b"POST / HTTP/1.1\r\nhost: a\r\n\r\nabc", -1, False, id="only its chunks tell how long it is"),
        pytest.param(b"POST / HTTP/1.1\r\nx: " + b"y" * 3000 + b"\r\n\r\nabc", 3, False, id="a head too long to keep"),
    ],
)
def test_only_heads_whose_end_is_certain_are_remembered(data, n_body, expected):
    """Anything unusual stays with the parser: guessing where a head ends is how requests are smuggled."""
    cache = HeadCache()
    cache.offer(data, head(n_body))

    assert expected == (cache.get(data[: data.find(b"\r\n\r\n")]) is not None)


def test_heads_that_never_repeat_neither_grow_the_cache_nor_push_out_what_is_in_use():
    """Ten thousand different heads, and the one that comes all the time is still there."""
    cache = HeadCache(max_heads=100)
    usual = b"POST /u HTTP/1.1\r\nhost: a\r\n\r\n"
    cache.offer(usual, head(0))
    for i in range(10_000):
        cache.offer(b"POST /%d HTTP/1.1\r\nhost: a\r\n\r\n" % i, head(0))
        if i % 50 == 0:
            assert cache.get(usual[:-4]) is not None

    assert len(cache) <= 200
