"""The quick way through a body against the careful one: whatever the quick way answers, the careful way would have."""

import json
import math
from types import SimpleNamespace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from mulle.core.errors import SpecError
from mulle.core.schema import MISSING_TEXT, ColumnType
from mulle.formats.bundle import ColumnInfo, Graph, GraphInput, Manifest
from mulle.serve.protocols.codec_fast import FastCodec, Renderer, few_short_floats, short_floats
from mulle.serve.protocols.codec_json import encode_body, parse_predict, render_predictions

KINDS = {
    ColumnType.NUMBER: st.one_of(st.floats(allow_nan=False, allow_infinity=False), st.integers(-(10**30), 10**30)),
    ColumnType.BOOLEAN: st.one_of(st.booleans(), st.sampled_from([0, 1, 2])),
    ColumnType.DATETIME: st.one_of(st.floats(0, 4e9), st.sampled_from(["2026-11-20", "nonsense"])),
    ColumnType.TEXT: st.one_of(st.text(max_size=6), st.sampled_from([MISSING_TEXT, "\ud800", "월별"])),
}
NAMES = st.text(min_size=1, max_size=5).filter(lambda name: not any("\ud800" <= c <= "\udfff" for c in name))
ODD = st.one_of(st.none(), st.booleans(), st.text(max_size=3), st.integers(-5, 5), st.lists(st.none(), max_size=1))


@st.composite
def questions(draw):
    """A model's columns, and a body that mostly fits them."""
    names = draw(st.lists(NAMES, min_size=1, max_size=4, unique=True))
    columns = tuple(ColumnInfo(name, draw(st.sampled_from(list(KINDS))), nullable=draw(st.booleans())) for name in names)

    def value(column):
        return draw(st.one_of(KINDS[column.type], KINDS[column.type], KINDS[column.type], st.none(), ODD))

    rows = []
    for _ in range(draw(st.integers(0, 3))):
        row = {column.name: value(column) for column in columns if draw(st.integers(0, 9))}
        if not draw(st.integers(0, 9)):
            row[draw(st.sampled_from(["nobody", "prediction_id", "who"]))] = "x1"
        rows.append(row)
    matrix = [[value(column) for column in columns][: draw(st.sampled_from([9, 9, 9, 1]))] for _ in rows]
    body = draw(st.sampled_from([rows, {"rows": rows}, rows[0] if rows else {}, {"features": matrix}]))
    return columns, json.dumps(body, ensure_ascii=draw(st.booleans())).encode("utf-8", "surrogatepass")


def manifest(columns):
    graph = Graph(inputs=tuple(GraphInput(c.name, "double", (c.name,)) for c in columns), output="p")
    return Manifest(model="m", task="regression", graph=graph, columns=columns, files={}, entity="who")


@settings(max_examples=500, deadline=None)
@given(questions())
def test_the_quick_way_never_disagrees_with_the_careful_one(question):
    """Same rows, same values, bit for bit; and what the careful way refuses, the quick way leaves to it."""
    columns, body = question
    rows = FastCodec(manifest(columns)).decode(body)
    if not rows:
        return
    try:
        encoded = encode_body(parse_predict(body, max_rows=100), manifest(columns))
    except SpecError as error:
        raise AssertionError(f"the quick way took {body!r}, the careful one says {error}") from error

    assert encoded.ids is None
    assert encoded.entity is None
    for j, column in enumerate(columns):
        careful = encoded.arrays[column.name].tolist()
        quick = [row[j] for row in rows]
        if column.type is ColumnType.TEXT:
            assert careful == [MISSING_TEXT if v is None else v for v in quick]
        else:
            same = [(math.isnan(a) and b is None) or a == float(b) for a, b in zip(careful, quick, strict=True)]
            assert all(same), (careful, quick)


def test_the_bodies_nearly_everybody_sends_take_the_quick_way():
    """A slow path nobody leaves would pass every other test here."""
    columns = (ColumnInfo("tenure", ColumnType.NUMBER), ColumnInfo("계약", ColumnType.TEXT))
    codec = FastCodec(manifest(columns))
    bodies = ['[{"tenure": 1, "계약": "월별"}]', '{"rows":[{"tenure": null}]}', '{"tenure": 2.5}', '{"features": [[1, "a"], [2, null]]}']

    taken = [codec.decode(body.encode()) for body in bodies]

    assert [[(1.0, "월별")], [(None, None)], [(2.5, None)], [(1.0, "a"), (2.0, None)]] == taken


FLOAT32 = st.floats(width=32, allow_nan=False, allow_infinity=False)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.one_of(FLOAT32, st.floats(0, 1, width=32)), min_size=1, max_size=20))
def test_printed_scores_read_back_as_the_same_float32(values):
    """Short is a courtesy; exact is the promise."""
    scores = np.array(values, dtype=np.float32)[:, None]
    printed = [repr(row[0]) for row in short_floats(scores).tolist()]

    assert scores[:, 0].tobytes() == np.array([float(text) for text in printed]).astype(np.float32).tobytes()
    assert printed == [repr(row[0]) for row in few_short_floats(scores.tolist())]


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.text(min_size=1, max_size=6).filter(lambda t: t.isprintable()), min_size=2, max_size=4, unique=True),
    st.integers(1, 3),
    st.randoms(use_true_random=False),
)
def test_a_prepared_answer_is_what_the_careful_renderer_says(classes, n_rows, random):
    """Any class names, quotes and Korean included: the same JSON document, and ASCII, so that its length is its length."""
    raw = np.array([[random.random() + 1e-3 for _ in classes] for _ in range(n_rows)])
    scores = (raw / raw.sum(axis=1, keepdims=True)).astype(np.float32)
    model = Manifest(
        model="m",
        task="multiclass" if len(classes) > 2 else "binary",
        graph=Graph(inputs=(), output="p"),
        columns=(),
        files={},
        classes=tuple(classes),
        positive=classes[0] if len(classes) == 2 else None,
    )
    indices = [classes.index(row["label"]) for row in render_predictions(model, scores)]
    served = SimpleNamespace(label_indices=lambda _: np.array(indices), few_labels=lambda _: indices)
    batch = SimpleNamespace(memo=None, scores=scores, served=served)
    renderer = Renderer(model, model="m", model_version=3, revision=7)

    body = renderer.body(renderer.rows(batch), [f"id{i}" for i in range(n_rows)])

    expected = render_predictions(model, scores)
    found = json.loads(body)
    assert body.isascii()
    assert [row["label"] for row in expected] == [row["label"] for row in found["predictions"]]
    for wanted, got in zip(expected, found["predictions"], strict=True):
        assert list(wanted["probabilities"]) == list(got["probabilities"])
        same = np.float32(list(wanted["probabilities"].values())) == np.float32(list(got["probabilities"].values()))
        assert same.all()
    assert {"model": "m", "model_version": 3, "revision": 7} == {k: found[k] for k in ("model", "model_version", "revision")}
