"""Pictures over real sockets: forms and plain bodies, many at once, and those that mean harm."""

import io
import random
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image
from urllib3.filepost import encode_multipart_formdata

from support.http_client import RawClient
from support.serving import running
from support.tensors import COLOURS, image_graph, picture, plain_answer, plain_pixels, seal_image

SHADES = ((220, 20, 20), (20, 220, 20), (20, 20, 220))


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Return one server of a picture model for all tests of this page."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MULLE_HOME", str(tmp_path_factory.mktemp("key")))
        root = tmp_path_factory.mktemp("project")
        with running(root, bundle=seal_image(root / ".mulle" / "bundles")) as (started, _):
            yield started


@pytest.fixture
def client(server):
    with RawClient(server.host, server.port) as connection:
        yield connection


def form(*pictures, field="file"):
    """Return body and headers of a form with these files."""
    body, content_type = encode_multipart_formdata([(field, (f"{i}.jpg", data, "image/jpeg")) for i, data in enumerate(pictures)])
    return body, {"content-type": content_type}


def expected_answer(data):
    """Return class and probabilities by plain Pillow and ONNX Runtime."""
    row = plain_answer(image_graph(), {"image": plain_pixels(data)[None]})["probabilities"][0]
    return COLOURS[int(row.argmax())], row


def test_a_form_of_several_pictures_is_answered_in_order(client):
    """Each file is a row: its class, its probabilities, its own id; model and revision beside them."""
    pictures = [picture(shade) for shade in SHADES]
    reply = client.request("POST", "/predict", *form(*pictures))
    found = reply.json
    expected = [expected_answer(data) for data in pictures]

    assert 200 == reply.status
    assert [name for name, _ in expected] == [answer["class"] for answer in found["predictions"]]
    for answer, (name, row) in zip(found["predictions"], expected, strict=True):
        assert np.allclose(row, list(answer["probabilities"].values()), atol=1e-6)
        assert answer["confidence"] == answer["probabilities"][name]
        assert answer["processing_time_ms"] > 0
    assert (3, 1) == (len(set(found["prediction_ids"])), found["revision"])
    assert found["prediction_ids"][0] == reply.headers["mulle-prediction-id"]


def test_a_picture_as_the_body_keeps_the_clients_id(client):
    """Without a form, with the id the client gave."""
    headers = {"content-type": "image/png", "mulle-prediction-id": "photo-7"}
    reply = client.request("POST", "/predict", picture(SHADES[2]), headers)

    assert (200, "blue", ["photo-7"]) == (reply.status, reply.json["predictions"][0]["class"], reply.json["prediction_ids"])


def bomb():
    """Return a small PNG of 36 megapixels."""
    stream = io.BytesIO()
    Image.new("1", (6000, 6000)).save(stream, "PNG")
    return stream.getvalue()


@pytest.mark.parametrize(
    ("body", "headers", "status", "code"),
    [
        pytest.param(*form(bomb()), 413, "image-too-many-pixels", id="a bomb"),
        pytest.param(*form(picture()[:90]), 422, "image-unreadable", id="a truncated picture"),
        pytest.param(*form(b"GIF89a..."), 415, "image-format", id="another format"),
        pytest.param(*form(picture(), field="photo"), 422, "form-field", id="another field"),
        pytest.param(b"--x\r\n", {"content-type": "multipart/form-data; boundary=x"}, None, "form-malformed", id="a cut form"),
        pytest.param(picture(), {"content-type": "multipart/form-data"}, None, "form-malformed", id="a form without a boundary"),
        pytest.param(b"", {"content-type": "image/jpeg"}, None, "form-empty", id="nothing"),
        pytest.param(b"[{}]", {"content-type": "application/json"}, 415, "body-media-type", id="rows"),
    ],
)
def test_what_is_no_picture_is_refused_by_name(client, body, headers, status, code):
    """A 4xx with its own code, and the connection goes on."""
    reply = client.request("POST", "/predict", body, headers)
    after = client.request("POST", "/predict", picture(SHADES[0]), {"content-type": "image/png"})

    assert code == reply.code
    assert 400 <= reply.status < 500
    assert status in {None, reply.status}
    assert (200, "red") == (after.status, after.json["predictions"][0]["class"])


def test_many_at_once_each_get_their_own_answer(server):
    """Sixteen clients, every fifth picture broken: whoever sent a good one gets its class, whoever sent a bad one a 4xx."""

    def ask(seed):
        rng = random.Random(seed)  # noqa: S311 - the same table every time
        wrong = []
        with RawClient(server.host, server.port) as client:
            for turn in range(25):
                place = rng.randrange(3)
                data = picture(SHADES[place], kind=rng.choice(["PNG", "JPEG", "WEBP"]))
                broken = turn % 5 == 4
                reply = client.request("POST", "/predict", *form(data[: len(data) // 2] if broken else data))
                right = 422 == reply.status if broken else reply.status == 200 and reply.json["predictions"][0]["class"] == COLOURS[place]
                if not right:
                    wrong.append((turn, reply.status, reply.body[:200]))
        return wrong

    with ThreadPoolExecutor(16) as pool:
        found = [problem for problems in pool.map(ask, range(16)) for problem in problems]

    assert [] == found


def test_damaged_uploads_are_never_a_server_error(client):
    """Forms and pictures changed at random: 200 or 4xx, nothing else."""
    rng = random.Random(2)  # noqa: S311 - the same table every time
    statuses = set()
    for turn in range(150):
        body, headers = form(picture(SHADES[turn % 3], kind="JPEG" if turn % 2 else "PNG"))
        data = bytearray(body)
        for _ in range(rng.randint(1, 4)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        statuses.add(client.request("POST", "/predict", bytes(data), headers).status)

    assert 200 in statuses
    assert all(status == 200 or 400 <= status < 500 for status in statuses)
