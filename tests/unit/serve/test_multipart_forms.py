"""Uploaded forms: what browsers and curl send, and what those send who mean harm."""

import contextlib
import json
import random
import time
import uuid
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest
from urllib3.filepost import encode_multipart_formdata

from mulle.core.errors import SpecError
from mulle.serve.protocols.multipart import PictureForms, parse_form, render_image_answer
from support.tensors import picture, seal_image

TYPE = "multipart/form-data; boundary=abc"


def form(*parts, boundary=b"abc", end=b"--\r\n"):
    """Return a body of parts given as header block and content."""
    lines = b"".join(b"--" + boundary + b"\r\n" + head + b"\r\n\r\n" + content + b"\r\n" for head, content in parts)
    return lines + b"--" + boundary + end


def head(name=b"file", more=b'; filename="a.jpg"', extra=b"\r\nContent-Type: image/jpeg"):
    """Return the header block of a file."""
    return b'Content-Disposition: form-data; name="' + name + b'"' + more + extra


@pytest.mark.parametrize("field", ["file", "image", "files", "images"])
def test_forms_of_a_real_client_are_read(field):
    """What another library encodes comes out byte for byte, several files in their order."""
    contents = [picture(), picture((1, 2, 3), kind="JPEG"), b"\r\n--" + b"\x00\r\n\r\n" * 9]
    body, content_type = encode_multipart_formdata([(field, (f"사진 {i}.jpg", data, "image/jpeg")) for i, data in enumerate(contents)])

    assert contents == PictureForms().read(body, content_type, max_rows=10)


@pytest.mark.parametrize("content_type", ["image/jpeg", "image/png", "IMAGE/WEBP", "image/jpeg; charset=binary"])
def test_a_picture_may_be_the_body(content_type):
    """Without a form the body is one picture."""
    assert [b"\xff\xd8data"] == PictureForms().read(b"\xff\xd8data", content_type, max_rows=1)


@pytest.mark.parametrize(
    ("body", "content_type", "expected"),
    [
        pytest.param(form((head(), b"x")), TYPE, [b"x"], id="the least"),
        pytest.param(form((head(), b"x"), end=b"--"), TYPE, [b"x"], id="no line break at the end"),
        pytest.param(form((head(), b"x")) + b"later", TYPE, [b"x"], id="text after the end"),
        pytest.param(form((head(), b"x"), boundary=b"a b'c"), 'multipart/form-data; boundary="a b\'c"', [b"x"], id="a quoted boundary"),
        pytest.param(form((head(), b"x")), "Multipart/Form-Data; charset=utf-8; BOUNDARY=abc;", [b"x"], id="capitals and more"),
        pytest.param(form((head(), b"x")).replace(b"--abc\r\n", b"--abc \t\r\n"), TYPE, [b"x"], id="spaces behind a boundary"),
        pytest.param(form((head(), b"x--abc\r\n--ab\r--abc-")), TYPE, [b"x--abc\r\n--ab\r--abc-"], id="almost a boundary in the data"),
        pytest.param(form((head(), b"x\r\n")), TYPE, [b"x\r\n"], id="a line break of the file's own"),
        pytest.param(form((head(more=b""), b"x")), TYPE, [b"x"], id="no file name"),
        pytest.param(form((head(more=b'; filename="../../etc/passwd"'), b"x")), TYPE, [b"x"], id="a path for a name"),
        pytest.param(form((head(more=b'; filename="a; name=\\"other\\""'), b"x")), TYPE, [b"x"], id="a name inside the file name"),
        pytest.param(form((head(more=b"; filename*=UTF-8''%2e%2e%2fx"), b"x")), TYPE, [b"x"], id="an extended file name"),
        pytest.param(form((head(more=b'; filename="\xec\x82\xac.jpg"'), b"x")), TYPE, [b"x"], id="a Korean file name"),
        pytest.param(form((head(extra=b"\r\nContent-Transfer-Encoding: BINARY"), b"x")), TYPE, [b"x"], id="encoded as it is"),
        pytest.param(form((b"content-disposition:form-data;name=file", b"x")), TYPE, [b"x"], id="no quotes, no spaces"),
        pytest.param(form((head(), b"x"), (head(b"image"), b"y")), TYPE, [b"x", b"y"], id="two fields"),
        pytest.param(
            form((head(extra=b"\r\nContent-Type: multipart/mixed; boundary=in"), b"--in\r\n\r\ny\r\n--in--")),
            TYPE,
            [b"--in\r\n\r\ny\r\n--in--"],
            id="a form within the form is data",
        ),
    ],
)
def test_unusual_forms_are_read(body, content_type, expected):
    """What the standards allow is understood; file names change nothing."""
    assert expected == parse_form(body, content_type)


@pytest.mark.parametrize(
    ("body", "content_type", "code", "fragment"),
    [
        pytest.param(b"", TYPE, "form-malformed", "begin", id="empty"),
        pytest.param(b"hello", TYPE, "form-malformed", "begin", id="no form at all"),
        pytest.param(b"hello\r\n" + form((head(), b"x")), TYPE, "form-malformed", "begin", id="text before the first boundary"),
        pytest.param(form((head(), b"x")), "multipart/form-data", "form-malformed", "no usable", id="no boundary named"),
        pytest.param(form((head(), b"x")), "multipart/form-data; boundary=", "form-malformed", "no usable", id="an empty boundary"),
        pytest.param(form((head(), b"x")), TYPE + "; boundary=abc", "form-malformed", "more than one", id="two boundaries"),
        pytest.param(
            form((head(), b"x")), "multipart/form-data; boundary=" + "a" * 71, "form-malformed", "no usable", id="a long boundary"
        ),
        pytest.param(
            form((head(), b"x")), "multipart/form-data; boundary=a\r\nb", "form-malformed", "parameters", id="a boundary with a line break"
        ),
        pytest.param(form((head(), b"x")), 'multipart/form-data; boundary="abc', "form-malformed", "parameters", id="an open quote"),
        pytest.param(
            form((head(), b"x")), "multipart/form-data; boundary=물레", "form-malformed", "no usable", id="a boundary outside ASCII"
        ),
        pytest.param(form((head(), b"x"))[:-4], TYPE, "form-malformed", "alone", id="cut off behind the content"),
        pytest.param(form((head(), b"x" * 500))[:-200], TYPE, "form-malformed", "cut off", id="cut off within the content"),
        pytest.param(form((head(), b"x"))[:40], TYPE, "form-malformed", "does not end", id="cut off within the header"),
        pytest.param(b"--abc\r\n" + b"a: b\r\n" * 2000, TYPE, "form-malformed", "does not end", id="a huge header"),
        pytest.param(form((head(), b"x\r\n--abcdef\r\n")), TYPE, "form-malformed", "alone", id="a longer boundary"),
        pytest.param(form((head(), b"x")).replace(b"\r\n", b"\n"), TYPE, "form-malformed", "alone", id="bare line feeds"),
        pytest.param(form((b"Content-Type: image/jpeg", b"x")), TYPE, "form-malformed", "not named", id="no disposition"),
        pytest.param(form((b"", b"x")), TYPE, "form-malformed", "not named", id="no header"),
        pytest.param(form((head(more=b'; name="image"'), b"x")), TYPE, "form-malformed", "once", id="two names"),
        pytest.param(form((head() + b"\r\n" + head(), b"x")), TYPE, "form-malformed", "once", id="two dispositions"),
        pytest.param(form((b'Content-Disposition: attachment; name="file"', b"x")), TYPE, "form-malformed", "once", id="no form-data"),
        pytest.param(form((head().replace(b"; filename", b";\r\n filename"), b"x")), TYPE, "form-malformed", "", id="a folded header"),
        pytest.param(
            form((b"Content-Disposition : form-data; name=file", b"x")),
            TYPE,
            "form-malformed",
            "cannot be read",
            id="a space before the colon",
        ),
        pytest.param(form((head(more=b"\x00"), b"x")), TYPE, "form-malformed", "cannot be read", id="a zero byte"),
        pytest.param(form((head(more=b'; filename="a'), b"x")), TYPE, "form-malformed", "parameters", id="an open quote in a header"),
        pytest.param(
            form((head(extra=b"\r\nContent-Transfer-Encoding: base64"), b"eA==")), TYPE, "form-malformed", "base64", id="an encoding"
        ),
        pytest.param(form((head(b"fiel"), b"x")), TYPE, "form-field", "fiel", id="a misspelt field"),
        pytest.param(
            form((head(), b"x"), (head(b"comment", b"", b""), b"y")), TYPE, "form-field", "comment", id="a field that is no picture"
        ),
        pytest.param(form(), TYPE, "form-empty", "no file", id="no parts"),
        pytest.param(form((head(more=b'; filename=""'), b"")), TYPE, "form-empty", "part 0", id="no file chosen"),
        pytest.param(b"--abc\r\n" + head() + b"\r\n\r\n--abc--", TYPE, "form-empty", "part 0", id="a content without its line break"),
        pytest.param(form(*[(head(), b"x")] * 65), TYPE, "rows-too-many", "64", id="too many files"),
    ],
)
def test_forms_that_cannot_be_read_are_named(body, content_type, code, fragment):
    """Each is refused by its own word, and none is half read."""
    with pytest.raises(SpecError) as caught:
        parse_form(body, content_type)

    assert code == caught.value.code
    assert fragment in caught.value.what


def test_an_empty_body_is_no_picture():
    """A body that is to be a picture has bytes."""
    with pytest.raises(SpecError) as caught:
        PictureForms().read(b"", "image/jpeg", max_rows=5)

    assert "form-empty" == caught.value.code


def test_the_rows_of_a_request_bound_its_files():
    """The lower limit counts."""
    body = form(*[(head(), b"x")] * 3)
    with pytest.raises(SpecError) as caught:
        PictureForms().read(body, TYPE, max_rows=2)

    assert "rows-too-many" == caught.value.code
    assert [b"x"] * 3 == PictureForms(max_pictures=3).read(body, TYPE, max_rows=100)


FLOODS = {
    "dashes": b"-" * 4_000_000,
    "almost boundaries": b"\r\n--ab" * 700_000,
    "line breaks": b"\r\n" * 2_000_000,
    "carriage returns": b"\r" * 4_000_000,
    "tiny parts": (b"--abc\r\n" + head() + b"\r\n\r\nx\r\n") * 40_000,
    "parts without headers": b"--abc\r\n\r\n\r\n" * 400_000,
    "parameters": b'--abc\r\nContent-Disposition: form-data; name="file"' + b"; a=b" * 800_000,
    "backslashes": b'--abc\r\nContent-Disposition: form-data; name="' + b"\\" * 4_000_000,
    "a content of quotes": form((head(), b'"' * 4_000_000)),
}


@pytest.mark.parametrize("name", FLOODS)
@pytest.mark.parametrize("start", [b"", b"--abc\r\n" + head() + b"\r\n\r\n"], ids=["from the start", "as content"])
def test_floods_take_linear_time(name, start):
    """Four megabytes of anything are read or refused at once."""
    begun = time.perf_counter()
    with contextlib.suppress(SpecError):
        parse_form(start + FLOODS[name], TYPE)

    assert time.perf_counter() - begun < 0.5


def test_whatever_is_changed_a_form_is_read_or_refused():
    """Random bytes in random places: bytes or a `SpecError`, nothing else."""
    rng = random.Random(3)  # noqa: S311 - the same table every time
    whole = form((head(), b"first"), (head(b"image"), b"second \r\n--ab"))
    read = 0
    for _ in range(3000):
        data = bytearray(whole)
        for _ in range(rng.randint(1, 3)):
            data[rng.randrange(len(data))] = rng.choice(b'\r\n-:;="\\ \x00abc\xff')
        try:
            files = parse_form(bytes(data), TYPE)
        except SpecError:
            continue
        read += 1
        assert 1 <= len(files) <= 2

    assert 100 < read < 2900


def test_any_content_survives_a_form():
    """Contents of random bytes come back whole, whatever they contain but the boundary."""
    rng = random.Random(4)  # noqa: S311 - the same table every time
    for _ in range(300):
        boundary = uuid.UUID(int=rng.getrandbits(128)).hex
        contents = [bytes(rng.choices(b"\r\n-" + boundary[:2].encode(), k=rng.randint(1, 60))) for _ in range(rng.randint(1, 4))]
        body = form(*[(head(), content) for content in contents], boundary=boundary.encode())

        assert contents == parse_form(body, f"multipart/form-data; boundary={boundary}")


@pytest.fixture
def manifest(tmp_path):
    """Return the manifest of a picture model of three classes."""
    return seal_image(tmp_path).manifest


def test_a_picture_is_answered_with_its_class(manifest):
    """Class, confidence, every probability of a few classes, and the time; numbers print short."""
    scores = np.array([[0.1, 0.7, 0.2], [0.8, 0.1, 0.1]], np.float32)

    assert [
        {"class": "green", "confidence": 0.7, "probabilities": {"red": 0.1, "green": 0.7, "blue": 0.2}, "processing_time_ms": 12.346},
        {"class": "red", "confidence": 0.8, "probabilities": {"red": 0.8, "green": 0.1, "blue": 0.1}, "processing_time_ms": 12.346},
    ] == render_image_answer(manifest, scores, 12.3456)


def test_of_many_classes_the_five_most_probable_are_named(manifest):
    """A thousand classes do not make an answer of a thousand lines; ties keep the order of the classes."""
    names = tuple(f"c{i}" for i in range(30))
    scores = np.full((1, 30), 0.01, np.float32)
    scores[0, [7, 3]] = 0.5, 0.21
    answer = render_image_answer(msgspec.structs.replace(manifest, classes=names), scores, 1.0)[0]

    assert ("c7", 0.5) == (answer["class"], answer["confidence"])
    assert ["c7", "c3", "c0", "c1", "c2"] == list(answer["probabilities"])


def test_the_threshold_decides_between_two_classes(manifest):
    """As for rows: confidence is the probability of the class that was given."""
    two = msgspec.structs.replace(manifest, task="binary", classes=("no", "yes"), positive="yes", threshold=0.3)
    answer = render_image_answer(two, np.array([[0.6, 0.4]], np.float32), 1.0)[0]

    assert ("yes", 0.4) == (answer["class"], answer["confidence"])


def test_the_whole_answer_is_ascii_and_shaped_like_that_of_rows(manifest):
    """A body whose length in characters is its length in bytes, with ids, model and revision beside the predictions."""
    korean = msgspec.structs.replace(manifest, classes=("빨강", "초록", "파랑"))
    served = SimpleNamespace(manifest=korean, source=SimpleNamespace(model="색", model_version=3), number=7)
    job = SimpleNamespace(served=served, scores=np.array([[0.2, 0.3, 0.5]], np.float32))
    body = PictureForms().render(job, ["id-1"], 2.0)
    answer = json.loads(body)

    assert body.isascii()
    assert "파랑" == answer.pop("predictions")[0]["class"]
    assert {"prediction_ids": ["id-1"], "model": "색", "model_version": 3, "revision": 7} == answer
