"""Every kind of bundle in the Open Inference Protocol, on real graphs in a real data plane, without a transport."""

import asyncio
import struct

import numpy as np
import pytest

from mulle.core.errors import MulleError, UnavailableError
from mulle.formats.prediction_log import find_prediction
from mulle.serve.protocols.oip import DATATYPES, InferRequest, InputSpec, RequestedOutput, Tensor, encode_texts
from mulle.serve.protocols.oip_service import OipService
from mulle.serve.protocols.oip_turnstile import Turnstile
from mulle.serve.state import ServerState
from support.bundles import MONTHLY, answers, churn_graph
from support.oip import close_plane, make_plane, make_runtimes, mixed_answer, mixed_request, points
from support.tensors import COLOURS, picture, plain_answer, plain_pixels, tensor_graph, tensor_request

DATATYPE_OF = {"f4": "FP32", "f8": "FP64", "i8": "INT64", "b1": "BOOL"}


@pytest.fixture(scope="module")
def runtimes(tmp_path_factory):
    """Return the runtimes of all small bundles."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MULLE_HOME", str(tmp_path_factory.mktemp("home")))
        return make_runtimes(tmp_path_factory.mktemp("bundles"))


def tensor(name, values, datatype=None):
    """Return a tensor as it arrives: raw."""
    values = np.asarray(values)
    if values.dtype.kind in "OU":
        raw = encode_texts(values.astype(object))
        return Tensor(InputSpec(name, "BYTES", values.shape), memoryview(raw))
    datatype = datatype or DATATYPE_OF[values.dtype.str[1:]]
    return Tensor(InputSpec(name, datatype, values.shape), memoryview(values.astype(DATATYPES[datatype]).tobytes()))


ONE = tensor("features", np.ones((1, 3)))


def ask(root, runtimes, model, *inputs, outputs=None, parameters=None, version="", **transport):
    """Return what a fresh plane answers to one request, by output; and the answer itself."""

    async def work():
        plane = make_plane(root, runtimes)
        try:
            service = OipService(plane, ServerState(ready=True), max_rows=100)
            request = InferRequest(model, version, "id", parameters or {}, list(inputs), outputs)
            return await service.infer(request, **transport)
        finally:
            close_plane(plane)

    answer = asyncio.run(work())
    return {output.name: output.values for output in answer.outputs}, answer


def refused(root, runtimes, model, *inputs, **more):
    """Return the error a request ends with."""
    with pytest.raises(MulleError) as caught:
        ask(root, runtimes, model, *inputs, **more)
    return caught.value


def test_columns_are_tensors_and_the_answer_is_the_graphs(tmp_path, runtimes):
    """Numbers and Korean text; [n] and [n, 1]; the class follows the threshold, and every row has its id."""
    found, answer = ask(
        tmp_path,
        runtimes,
        "churn",
        tensor("tenure", [1.0, 60.0]),
        tensor("monthly", np.array([[70], [20]])),
        tensor("계약", [MONTHLY, "2년"]),
    )
    rows = [{"tenure": 1.0, "monthly": 70.0, "계약": MONTHLY}, {"tenure": 60.0, "monthly": 20.0, "계약": "2년"}]

    assert np.array_equal(answers(churn_graph(), rows), found["probabilities"])
    assert ["Yes", "No"] == found["label"].tolist()
    assert ("churn", "3", "id") == (answer.model, answer.version, answer.id)
    assert answer.parameters["mulle_prediction_id"] == found["prediction_id"][0] != found["prediction_id"][1]


def test_what_is_absent_or_nan_is_missing_where_it_may_be(tmp_path, runtimes):
    """A nullable column may be left out; NaN says the same of a single value."""
    without, _ = ask(tmp_path / "a", runtimes, "churn", tensor("monthly", [70.0, 70.0]))
    with_nan, _ = ask(tmp_path / "b", runtimes, "churn", tensor("monthly", [70.0, 70.0]), tensor("tenure", [np.nan, np.nan]))
    expected = answers(churn_graph(), [{"tenure": None, "monthly": 70.0, "계약": None}] * 2)

    assert np.array_equal(expected, without["probabilities"])
    assert np.array_equal(expected, with_nan["probabilities"])


@pytest.mark.parametrize("n_rows", [1, 3, 40])
@pytest.mark.parametrize("datatype", ["FP32", "FP64", "INT64", "UINT8"])
def test_one_matrix_says_the_same_as_its_columns(tmp_path, runtimes, datatype, n_rows):
    """`features` in any numeric datatype, few rows and many: one answer per row, its own."""
    matrix = np.arange(3 * n_rows).reshape(n_rows, 3) % 5
    found, _ = ask(tmp_path / "a", runtimes, "points", tensor("features", matrix, datatype))
    columns, _ = ask(tmp_path / "b", runtimes, "points", *(tensor(f"x{j}", matrix[:, j], datatype) for j in range(3)))

    assert np.allclose(points(matrix), found["probabilities"], atol=1e-6)
    assert np.array_equal(found["probabilities"], columns["probabilities"])
    assert ["right" if p >= 0.5 else "left" for p in found["probabilities"][:, 1]] == found["label"].tolist()


@pytest.mark.parametrize("n_rows", [1, 30])
def test_booleans_and_dates_take_the_forms_a_client_has(tmp_path, runtimes, n_rows):
    """BOOL or 0 and 1, seconds or ISO 8601; a regression answers `value`."""
    whole = [
        tensor("number", [0.5] * n_rows),
        tensor("flag", [True] * n_rows),
        tensor("day", ["1970-01-03T00:00:00"] * n_rows),
    ]
    found, _ = ask(tmp_path / "a", runtimes, "typed", *whole)
    numbers, _ = ask(
        tmp_path / "b",
        runtimes,
        "typed",
        tensor("number", [0.5] * n_rows, "FP32"),
        tensor("flag", [1.0] * n_rows, "FP32"),
        tensor("day", [172_800] * n_rows),
    )
    matrix, _ = ask(tmp_path / "c", runtimes, "typed", tensor("features", [[0.5, 1.0, 172_800.0]] * n_rows))

    assert [12.5] * n_rows == found["value"].tolist() == numbers["value"].tolist() == matrix["value"].tolist()
    assert {"value", "prediction_id"} == found.keys()


def test_a_tensor_bundle_answers_all_its_outputs_or_those_asked_for(tmp_path, runtimes):
    """Four datatypes in and out, several rows, in the order asked."""
    request = mixed_request(5)
    inputs = [tensor(name, values) for name, values in request.items()]
    found, _ = ask(tmp_path / "a", runtimes, "mixed", *inputs)
    some, _ = ask(tmp_path / "b", runtimes, "mixed", *inputs, outputs=[RequestedOutput("said"), RequestedOutput("y")])

    assert all(np.array_equal(expected, found[name]) for name, expected in mixed_answer(request).items())
    assert ["said", "y"] == list(some)


def test_a_free_dimension_is_the_clients_to_choose(tmp_path, runtimes):
    """Two widths of one input: each gets the graph's own answer."""
    for width in (2, 7):
        request = tensor_request(3, width=width)
        found, _ = ask(tmp_path / str(width), runtimes, "sums", *(tensor(name, values) for name, values in request.items()))
        expected = plain_answer(tensor_graph(), request)

        assert all(np.array_equal(expected[name], found[name]) for name in expected)


def test_pictures_come_as_pixels_or_encoded(tmp_path, runtimes):
    """The graph's own tensor, or BYTES of a PNG: the same class."""
    data = picture((20, 40, 220))
    pixels, _ = ask(tmp_path / "a", runtimes, "colours", tensor("image", plain_pixels(data)[None]))
    raw = memoryview(struct.pack("<I", len(data)) + data)
    encoded, _ = ask(tmp_path / "b", runtimes, "colours", Tensor(InputSpec("image", "BYTES", (1,)), raw))

    assert ["blue"] == pixels["label"].tolist() == encoded["label"].tolist()
    assert np.allclose(pixels["probabilities"], encoded["probabilities"], atol=1e-6)


def test_a_classification_names_the_best_classes(tmp_path, runtimes):
    """`value:index:label`, best first, as many as asked for and there are."""
    data = tensor("image", plain_pixels(picture((20, 40, 220)))[None])
    found, answer = ask(tmp_path, runtimes, "colours", data, outputs=[RequestedOutput("probabilities", classification=2)])
    value, index, label = found["probabilities"][0, 0].split(":")

    assert ("BYTES", (1, 2)) == (answer.outputs[0].datatype, answer.outputs[0].values.shape)
    assert (2, "blue") == (int(index), label)
    assert COLOURS[int(index)] == label
    assert 0.34 < float(value) <= 1.0


@pytest.mark.parametrize(
    ("model", "inputs", "more", "code", "fragment"),
    [
        pytest.param("churn", [tensor("tenur", [1.0])], {}, "oip-input-unknown", "did you mean 'tenure'", id="a misspelt column"),
        pytest.param("churn", [tensor("tenure", [1.0])], {}, "oip-input-missing", "monthly", id="a column the model needs"),
        pytest.param("churn", [], {}, "oip-input-missing", "monthly", id="no inputs at all"),
        pytest.param("typed", [], {}, "oip-input-missing", "number", id="no inputs where all may be missing"),
        pytest.param("churn", [tensor("monthly", [1.0])] * 2, {}, "oip-input-twice", "monthly", id="the same column twice"),
        pytest.param(
            "churn", [tensor("monthly", [1.0]), tensor("tenure", [1.0, 2.0])], {}, "oip-shape", "[1]", id="columns of two lengths"
        ),
        pytest.param("churn", [tensor("monthly", np.ones((1, 2)))], {}, "oip-shape", "[n, 1]", id="a column two wide"),
        pytest.param("churn", [tensor("monthly", ["70"])], {}, "oip-datatype", "FP64", id="text for a number"),
        pytest.param("churn", [tensor("monthly", [1.0]), tensor("계약", [1.0])], {}, "oip-datatype", "BYTES", id="a number for text"),
        pytest.param("churn", [tensor("monthly", [np.nan])], {}, "rows-missing-column", "monthly", id="NaN where the model needs a number"),
        pytest.param("churn", [tensor("monthly", [np.inf])], {}, "rows-not-finite", "inf", id="infinity"),
        pytest.param("churn", [tensor("monthly", np.ones(101))], {}, "rows-too-many", "101", id="too many rows"),
        pytest.param("typed", [tensor("flag", [2.0])], {}, "rows-wrong-type", "true or false", id="a boolean that is two"),
        pytest.param("typed", [tensor("day", ["gestern"])], {}, "rows-bad-datetime", "gestern", id="a date in words"),
        pytest.param("points", [tensor("features", np.ones((1, 4)))], {}, "oip-shape", "x0, x1, x2", id="a matrix one column too wide"),
        pytest.param("points", [tensor("features", np.ones(3))], {}, "oip-shape", "[n, 3]", id="a matrix that is a row"),
        pytest.param("points", [tensor("features", [["1", "2", "3"]])], {}, "oip-datatype", "FP32", id="a matrix of text"),
        pytest.param("points", [tensor("features", [[1.0, np.nan, 1.0]])], {}, "rows-missing-column", "x1", id="a matrix with a hole"),
        pytest.param(
            "points",
            [tensor("features", np.ones((1, 3))), tensor("x0", [1.0])],
            {},
            "oip-input-twice",
            "alone",
            id="matrix and columns at once",
        ),
        pytest.param("churn", [ONE], {}, "oip-input-unknown", "features", id="a matrix for a model with text"),
        pytest.param("mixed", [tensor("x", np.ones((1, 3), np.float32))], {}, "oip-input-missing", "'k'", id="a tensor short"),
        pytest.param("mixed", [tensor("x", np.ones((1, 3)))], {}, "oip-datatype", "FP32", id="a tensor in double precision"),
        pytest.param("mixed", [tensor("x", np.ones((1, 4), np.float32))], {}, "oip-shape", "3]", id="a tensor too wide"),
        pytest.param("mixed", [tensor("x", np.ones((1, 3, 1), np.float32))], {}, "oip-shape", "3]", id="a tensor too deep"),
        pytest.param(
            "mixed",
            [tensor("x", np.ones((1, 3), np.float32)), tensor("k", np.ones(2, np.int64))],
            {},
            "oip-shape",
            "[1]",
            id="tensors of two batches",
        ),
        pytest.param("mixed", [tensor("z", np.ones((1, 3), np.float32))], {}, "oip-input-unknown", "x", id="a tensor the graph lacks"),
        pytest.param("points", [ONE], {"version": "9"}, "revision-unknown", "3", id="another revision"),
        pytest.param("nobody", [], {}, "deployment-unknown", "nobody", id="no such model"),
        pytest.param("", [], {}, "deployment-unknown", "no model", id="an empty name is no default"),
        pytest.param("points", [ONE], {"outputs": [RequestedOutput("labels")]}, "oip-output-unknown", "'label'", id="a misspelt output"),
        pytest.param("points", [ONE], {"outputs": [RequestedOutput("label")] * 2}, "oip-output-twice", "label", id="an output twice"),
        pytest.param(
            "points",
            [ONE],
            {"outputs": [RequestedOutput("label", classification=1)]},
            "oip-parameter",
            "probabilities",
            id="a classification of labels",
        ),
        pytest.param("points", [ONE], {"parameters": {"sequence_id": 4}}, "oip-unsupported", "sequence", id="a sequence"),
        pytest.param("points", [ONE], {"parameters": {"timeout": -1}}, "oip-parameter", "timeout", id="a negative timeout"),
        pytest.param("points", [ONE], {"parameters": {"timeout": True}}, "oip-parameter", "timeout", id="a timeout of true"),
        pytest.param("points", [ONE], {"parameters": {"mulle_unit": "u" * 300}}, "oip-parameter", "unit", id="an endless unit"),
        pytest.param(
            "points",
            [ONE],
            {"parameters": {"mulle_prediction_id": "a b"}},
            "prediction-id-invalid",
            "a b",
            id="an id with a space",
        ),
    ],
)
def test_a_request_that_does_not_fit_is_told_what_would(tmp_path, runtimes, model, inputs, more, code, fragment):
    """Names, shapes, datatypes, values, parameters: each refusal has a code and what to do instead."""
    error = refused(tmp_path, runtimes, model, *inputs, **more)

    assert code == error.code
    assert fragment in str(error)


def test_text_that_is_not_utf8_is_refused_for_a_column(tmp_path, runtimes):
    """A column of text is text; the element is named."""
    broken = Tensor(InputSpec("계약", "BYTES", (1,)), memoryview(b"\x01\0\0\0\xff"))
    error = refused(tmp_path, runtimes, "churn", tensor("monthly", [1.0]), broken)

    assert ("oip-data", True) == (error.code, "element 0 is not UTF-8" in error.what)


def test_an_expired_request_is_not_run(tmp_path, runtimes):
    """A timeout of a microsecond has passed when its turn comes."""
    error = refused(tmp_path, runtimes, "points", tensor("features", np.ones((1, 3))), deadline_ns=1)

    assert isinstance(error, UnavailableError)
    assert "deadline-expired" == error.code


def test_the_clients_own_id_unit_and_entity_are_kept(tmp_path, runtimes):
    """The id is answered and logged; more rows get a number behind it; the entity is an input of its own."""
    found, answer = ask(
        tmp_path,
        runtimes,
        "churn",
        tensor("monthly", [70.0, 71.0]),
        tensor("customer_id", ["가-1", "B-2"]),
        parameters={"mulle_prediction_id": "mine", "mulle_unit": "가-1", "timeout": 60_000_000},
    )
    logged = [find_prediction(tmp_path / "logs", name) for name in ("mine-0", "mine-1")]

    assert "mine-0" == answer.parameters["mulle_prediction_id"]
    assert ["mine-0", "mine-1"] == found["prediction_id"].tolist()
    assert ["가-1", "B-2"] == [prediction.entity for prediction in logged]


def test_requests_through_a_turnstile_get_their_own_answers(tmp_path, runtimes):
    """Two thousand at once, some cancelled on the way: everybody else's answer is there and theirs."""

    async def work():
        plane = make_plane(tmp_path, runtimes)
        service = OipService(plane, ServerState(ready=True), max_rows=100)
        turnstile = service.make_turnstile()

        async def one(i):
            request = InferRequest("points", "", str(i), {}, [tensor("features", [[i / 500, 1.0, 0.0]])])
            return await service.infer(request, turnstile=turnstile)

        found, together = [], []
        for start in range(0, 2_000, 50):
            tasks = [asyncio.create_task(one(i)) for i in range(start, start + 50)]
            await asyncio.sleep(0)
            tasks[7].cancel()
            found += await asyncio.gather(*tasks, return_exceptions=True)
            together.append(turnstile.together)
        close_plane(plane)
        return found, max(together)

    found, together = asyncio.run(work())
    good = [i for i in range(2_000) if i % 50 != 7]

    assert together > 3
    assert all(isinstance(found[i], asyncio.CancelledError) for i in range(2_000) if i % 50 == 7)
    assert [str(i) for i in good] == [found[i].id for i in good]
    assert np.allclose(points([[i / 500, 1.0, 0.0] for i in good]), [found[i].outputs[0].values[0] for i in good], atol=1e-6)


def test_a_lonely_request_is_not_held():
    """One after the other: nearly all of them go on at once, and none is forgotten."""

    async def work():
        passed = []
        turnstile = Turnstile(passed.append)
        held = 0
        for i in range(300):
            turnstile.put(i)
            if i not in passed[-1:]:
                held += 1
                await asyncio.sleep(0.01)
        return passed, held, turnstile.together

    passed, held, together = asyncio.run(work())

    assert list(range(300)) == passed
    assert 1 == together
    assert held <= 3


def test_a_crowd_is_held_together_and_let_go_when_it_has_gone():
    """Eight clients that ask again when answered come to go on together; the last one left passes alone again."""

    async def work():
        loop = asyncio.get_running_loop()
        left, most = {*range(8)}, [1]

        def answer(client):
            most[0] = max(most[0], turnstile.together)
            if client in left:
                loop.call_later(0.001 + client * 1e-4, turnstile.put, client)

        turnstile = Turnstile(answer)
        for client in left:
            turnstile.put(client)
        await asyncio.sleep(0.8)
        left.clear()
        await asyncio.sleep(0.1)
        for _ in range(8):
            turnstile.put(9)
            await asyncio.sleep(0.006)
        return most[0], turnstile.together

    most, alone = asyncio.run(work())

    assert most >= 4
    assert 1 == alone
