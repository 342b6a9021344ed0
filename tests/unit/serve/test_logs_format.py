"""Lines for machines and people: what they say, and what they never say."""

import io
import json
import logging
import os
import re
import sys
import time

import pytest

from mulle.core.errors import CheckError, SpecError
from mulle.formats import telemetry as names
from mulle.serve.telemetry.logs import MASK, MAX_TEXT_CHARS, Access, AccessLog, configure_logging
from mulle.serve.telemetry.registry import MetricsRegistry

KEY = "mk_3f2c9a_Zm9vYmFyYmF6cXV4LXNlY3JldA"


@pytest.fixture
def lines(request):
    """Return a function that configures logging and returns the stream it writes to; all is as before afterwards."""
    root = logging.getLogger()
    handlers, level, raising = root.handlers[:], root.level, logging.raiseExceptions
    stream = io.StringIO()

    def configure(fmt, level="info", **options):
        configure_logging(fmt, level, stream=stream, **options)
        return stream

    yield configure
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.raiseExceptions = raising


def test_a_json_line_has_time_level_logger_event_and_fields(lines):
    """One object per line; the time is RFC 3339 in UTC."""
    stream = lines("json", fields={"worker": 1})
    logging.getLogger("mulle.serve").warning("revision %d is served by %s", 7, "물레", extra={"deployment": "shop", "n": 3, "ok": True})
    line = json.loads(stream.getvalue())

    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", line.pop("time"))
    assert {
        "level": "warning",
        "logger": "mulle.serve",
        "event": "revision 7 is served by 물레",
        "worker": 1,
        "deployment": "shop",
        "n": 3,
        "ok": True,
    } == line
    assert 1 == stream.getvalue().count("\n")


def test_a_text_line_says_the_same_to_people(lines):
    """Time, level, event, fields."""
    stream = lines("text", fields={"worker": 1})
    logging.getLogger("mulle.serve").info("ready", extra={"port": 8080, "names": ["a", "b"]})

    assert stream.getvalue().endswith('Z info    ready worker=1 port=8080 names=["a", "b"]\n')


@pytest.mark.parametrize("fmt", ["json", "text"])
@pytest.mark.parametrize(
    "forged",
    [
        pytest.param("a\nlevel=error forged", id="a newline"),
        pytest.param("a\r\x1b[31mred\x07", id="terminal codes"),
        pytest.param("a\u2028b\x85c", id="other ends of lines"),
    ],
)
def test_no_value_begins_a_line_of_its_own(lines, fmt, forged):
    """What a client sent cannot forge a line, nor paint the operator's terminal."""
    stream = lines(fmt)
    logging.getLogger("mulle.serve").warning("no route %s", forged, extra={"path": forged})
    text = stream.getvalue()

    assert 1 == text.count("\n")
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f\x85]", text)
    assert fmt == "text" or forged == json.loads(text)["path"]
    assert fmt == "json" or 1 == len(text.splitlines())


@pytest.mark.parametrize("fmt", ["json", "text"])
@pytest.mark.parametrize(
    ("message", "extra"),
    [
        pytest.param(f"sent {KEY}", {}, id="a key in the sentence"),
        pytest.param("m", {"authorization": f"Bearer {KEY}"}, id="a field with a secret's name"),
        pytest.param("m", {"headers": {"X-Api-Key": KEY, "nested": [f"Bearer {KEY}"]}}, id="within a field"),
        pytest.param("m", {"note": f"Authorization: Bearer {KEY}"}, id="a bearer in a text"),
        pytest.param("m", {"note": ValueError(KEY)}, id="an object that prints it"),
        pytest.param(f"https://user:{KEY}@store.example/x", {}, id="a password in a URL"),
    ],
)
def test_a_secret_is_never_written(lines, fmt, message, extra):
    """Masked, wherever it stands."""
    stream = lines(fmt)
    logging.getLogger("mulle.serve").error(message, extra=extra)

    assert KEY not in stream.getvalue()
    assert KEY[10:] not in stream.getvalue()
    assert MASK in stream.getvalue()


def _raise(error, cause=None):
    raise error from cause


def _fail(kind, message):
    try:
        try:
            _raise(KeyError("the customer's salary is 31337"))
        except KeyError as error:
            _raise(kind(message), error)
    except kind:
        logging.getLogger("mulle.serve").exception("a prediction failed")


@pytest.mark.parametrize("fmt", ["json", "text"])
def test_an_exception_is_told_without_its_values(lines, fmt):
    """Types, frames and causes; the message of an unknown exception may quote a request, and is left out."""
    stream = lines(fmt)
    _fail(ValueError, "could not convert '31337' to float")
    text = stream.getvalue()
    told = json.loads(text)["exception"] if fmt == "json" else text

    assert "31337" not in text
    assert "builtins.ValueError" in told
    assert "caused by builtins.KeyError" in told
    assert re.search(r"test_logs_format.py:\d+ in _fail", told)


def test_our_own_exceptions_and_the_system_s_say_what_happened(lines):
    """Their sentences are written for the operator."""
    stream = lines("json")
    try:
        _raise(
            CheckError("bundle-digest", "the bundle was changed", fix="build it again"), FileNotFoundError(2, "No such file", "graph.onnx")
        )
    except CheckError:
        logging.getLogger("mulle.serve").exception("not loaded")
    told = json.loads(stream.getvalue())["exception"]

    assert "the bundle was changed" in told
    assert "graph.onnx" in told


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        pytest.param({"big": "x" * 1_000_000}, f"({1_000_000} characters)", id="a megabyte is cut"),
        pytest.param({"odd": "\ud800"}, "?", id="no Unicode character"),
        pytest.param({"level": "mine"}, "level_", id="a name of ours gets an underscore"),
        pytest.param({"thing": object}, "object", id="anything has a text"),
        pytest.param({"nan": float("nan")}, "null", id="no number is null"),
        pytest.param({"big": 2**70}, str(2**70), id="an integer beyond 64 bits"),
    ],
)
def test_any_field_can_be_told(lines, extra, expected):
    """Nothing that is logged makes logging fail."""
    stream = lines("json")
    logging.getLogger("mulle.serve").info("m", extra=extra)

    assert expected in stream.getvalue()
    assert "m" == json.loads(stream.getvalue())["event"]
    assert len(stream.getvalue()) < 2 * MAX_TEXT_CHARS


def test_a_sentence_its_arguments_do_not_fit_is_told(lines):
    """A library's mistake costs its arguments, not the line."""
    stream = lines("json")
    sentence = "%d of %d"
    logging.getLogger("library").error(sentence, "one")

    assert f"{sentence} (its arguments do not fit)" == json.loads(stream.getvalue())["event"]


def test_levels_and_the_only_handler(lines):
    """Configured again there is still one handler, with the newer level."""
    lines("text", "debug")
    stream = lines("json", "warning")
    logging.getLogger("mulle.serve").info("not told")
    logging.getLogger("mulle.serve").warning("told")

    assert ["told"] == [json.loads(line)["event"] for line in stream.getvalue().splitlines()]


@pytest.mark.parametrize(("fmt", "level", "code"), [("xml", "info", "log-format"), ("json", "loud", "log-level")])
def test_wrong_settings_are_refused(fmt, level, code):
    """With what would be right."""
    with pytest.raises(SpecError) as caught:
        configure_logging(fmt, level)

    assert (code, True) == (caught.value.code, caught.value.fix.startswith("use one of"))


def _access(**fields):
    return Access(
        **{"time_ns": 1_700_000_000_123_456_789, "method": "POST", "path": "/predict", "status": 200, "duration_ns": 1_234_567, **fields}
    )


def test_the_access_log_has_one_line_per_request_and_no_query(tmp_path):
    """Paths without their query strings, keys masked, empty fields left out."""
    with (tmp_path / "access").open("wb") as file:
        log = AccessLog(file.fileno(), {"worker": 2})
        log.add(_access(path=f"/predict?api_key={KEY}", revision=7, prediction_id="p-1", client="127.0.0.1"))
        log.add(_access(path="/v2/models/" + KEY, status=404))
        log.close()
    first, second = [json.loads(line) for line in (tmp_path / "access").read_text().splitlines()]

    assert ("2023-11-14T22:13:20.123457Z", "/predict", 200, 1.235, 7, "p-1", "127.0.0.1", 2) == tuple(
        first[name] for name in ("time", "path", "status", "duration_ms", "revision", "prediction_id", "client", "worker")
    )
    assert ("/v2/models/" + MASK, False) == (second["path"], "prediction_id" in second)
    assert KEY not in (tmp_path / "access").read_text()


def test_a_pipe_nobody_reads_stops_no_answer():
    """`add` stays quick, the queue bounded, what is too much counted."""
    reader, writer = os.pipe()
    log = AccessLog(writer)
    registry = MetricsRegistry()
    log.tell(registry)
    one = _access(path="/" + "x" * 200)
    start = time.thread_time()
    for _ in range(40_000):
        log.add(one)
    taken_s = time.thread_time() - start
    log.close(timeout_s=0.3)
    n_dropped = log.n_dropped
    os.close(reader)
    log._thread.join(10)
    os.close(writer)

    assert n_dropped > 20_000
    assert f"{names.ACCESS_DROPPED} {log.n_dropped}\n" in registry.render()
    assert taken_s < 40_000 * 20e-6
    assert not log._thread.is_alive()


def test_text_is_written_where_standard_error_is_meanwhile(lines, capsys):
    """The stream is looked up when logging is configured."""
    lines("text")
    configure_logging("text", "info")
    logging.getLogger("mulle.serve").info("hello")

    assert capsys.readouterr().err.endswith("hello\n")
    assert sys.stderr is logging.getLogger().handlers[0].stream
