"""Pictures that mean harm, or are only broken: refused with a word, quickly, and never with anything but a `SpecError`."""

import io
import random
import struct
import subprocess
import sys
import time
import zlib

import numpy as np
import pytest
from PIL import Image

from mulle.core.errors import SpecError
from mulle.formats.image_read import ImageLimits, preprocess
from mulle.formats.image_spec import ImageInput
from support.tensors import picture

SPEC = ImageInput(size=(16, 16))
SHORTER = ImageInput(size=(16, 16), resize="shorter")


def noise(kind, size=(60, 50), **options):
    """Return an encoded picture of noise: every byte of it matters."""
    rng = np.random.default_rng(5)
    stream = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, size=(*size, 3), dtype=np.uint8)).save(stream, kind, **options)
    return stream.getvalue()


def png(width, height, data=b""):
    """Return a PNG whose header claims a size."""

    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def webp(kind, width, height):
    """Return a WebP whose header claims a size."""
    if kind == b"VP8X":
        body = b"\x02\x00\x00\x00" + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    elif kind == b"VP8L":
        body = b"\x2f" + ((width - 1) | (height - 1) << 14).to_bytes(4, "little") + b"\x00" * 5
    else:
        body = b"\x00\x00\x00\x9d\x01\x2a" + struct.pack("<HH", width, height)
    chunk = kind + struct.pack("<I", len(body)) + body
    return b"RIFF" + struct.pack("<I", 4 + len(chunk)) + b"WEBP" + chunk


def jpeg_claiming(width, height):
    """Return a JPEG whose frame header claims a size."""
    data = bytearray(noise("JPEG"))
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = struct.pack(">HH", height, width)
    return bytes(data)


def many_scans():
    """Return a small progressive JPEG whose last scan is repeated 5,000 times."""
    data = noise("JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:-2] + data[last:-2] * 5000 + data[-2:]


@pytest.mark.parametrize(
    ("data", "code"),
    [
        pytest.param(b"", "image-format", id="nothing"),
        pytest.param(b"hello", "image-format", id="text"),
        pytest.param(b"GIF89a" + b"\x00" * 50, "image-format", id="a format that is not taken"),
        pytest.param(b"<svg xmlns='http://www.w3.org/2000/svg'/>", "image-format", id="a document"),
        pytest.param(b"%!PS-Adobe-3.0 EPSF-3.0\n(x) run", "image-format", id="a program"),
        pytest.param(b"\xff\xd8\xff", "image-unreadable", id="a JPEG's first bytes"),
        pytest.param(noise("JPEG")[:-200], "image-unreadable", id="a truncated JPEG"),
        pytest.param(noise("PNG")[:-200], "image-unreadable", id="a truncated PNG"),
        pytest.param(noise("WEBP", lossless=True)[:-200], "image-unreadable", id="a truncated WebP"),
        pytest.param(noise("PNG").replace(b"IDAT", b"IDAX"), "image-unreadable", id="a PNG without pixels"),
        pytest.param(png(100_000, 100_000), "image-too-many-pixels", id="a PNG that unpacks to 30 GB"),
        pytest.param(png(5001, 5000, b"\x00" * (15_004 * 5000)), "image-too-many-pixels", id="a small PNG of 25 megapixels and a row"),
        pytest.param(jpeg_claiming(65_500, 65_500), "image-too-many-pixels", id="a JPEG of four gigapixels"),
        pytest.param(webp(b"VP8X", 1 << 24, 1 << 24), "image-too-many-pixels", id="a WebP canvas of 2⁴⁸ pixels"),
        pytest.param(webp(b"VP8L", 16_383, 16_383), "image-too-many-pixels", id="a lossless WebP of 268 megapixels"),
        pytest.param(webp(b"VP8 ", 16_383, 16_383), "image-too-many-pixels", id="a lossy WebP of 268 megapixels"),
        pytest.param(webp(b"ZZZZ", 5, 5), "image-unreadable", id="a WebP of an unknown kind"),
        pytest.param(many_scans(), "image-scans", id="a JPEG of 5,000 scans"),
        pytest.param(noise("JPEG", size=(700, 700), quality=100) * 20, "image-too-large", id="many bytes"),
    ],
)
def test_pictures_that_must_not_be_decoded_are_named(data, code):
    """Bombs are seen in their headers; broken ones in their bytes."""
    begun = time.perf_counter()
    with pytest.raises(SpecError) as caught:
        preprocess(SPEC, data)

    assert code == caught.value.code
    assert time.perf_counter() - begun < 2


def test_a_thin_picture_is_not_blown_up():
    """Resizing in proportion would make four gigapixels of a line."""
    with pytest.raises(SpecError) as caught:
        preprocess(ImageInput(size=(224, 224), resize="shorter"), picture(size=(65_000, 1)))

    assert "image-proportions" == caught.value.code


@pytest.mark.parametrize(
    ("spec", "size"),
    [
        pytest.param(ImageInput(size=(30, 30), resize="none"), (29, 60), id="too narrow to cut"),
        pytest.param(ImageInput(size=(30, 30), resize="none"), (60, 29), id="too low to cut"),
    ],
)
def test_a_picture_that_is_too_small_is_refused(spec, size):
    """Nothing is invented around a picture."""
    with pytest.raises(SpecError) as caught:
        preprocess(spec, picture(size=size))

    assert "image-too-small" == caught.value.code


def test_limits_are_the_servers_own():
    """A limit is inclusive, and can be lower than the default."""
    data = picture(size=(40, 30))

    assert (3, 16, 16) == preprocess(SPEC, data, limits=ImageLimits(max_pixels=1200, max_bytes=len(data))).shape
    for limits, code in (
        (ImageLimits(max_pixels=1199), "image-too-many-pixels"),
        (ImageLimits(max_bytes=len(data) - 1), "image-too-large"),
    ):
        with pytest.raises(SpecError) as caught:
            preprocess(SPEC, data, limits=limits)

        assert code == caught.value.code


def mend(data):
    """Give the chunks of a PNG the checksums of what they hold now, so that the decoder looks at it."""
    at = 8
    while data[:4] == b"\x89PNG" and at + 12 <= len(data):
        end = at + 8 + int.from_bytes(data[at : at + 4])
        data[end : end + 4] = zlib.crc32(data[at + 4 : end]).to_bytes(4) if end + 4 <= len(data) else data[end : end + 4]
        at = end + 4


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("spec", [SPEC, SHORTER], ids=["exact", "shorter"])
def test_no_change_of_a_byte_gets_past_a_spec_error(kind, spec):
    """Cut off anywhere, changed anywhere: pixels or a `SpecError`, nothing else."""
    exif = Image.Exif()
    exif[0x0112] = 6
    whole = noise(kind, exif=exif.tobytes(), **({"progressive": True} if kind == "JPEG" else {}))
    rng = random.Random(11)  # noqa: S311 - the same table every time
    refused = 0
    for turn in range(400):
        data = bytearray(whole)
        if turn % 4 == 0:
            del data[rng.randrange(len(data)) :]
        else:
            # Headers are short: half of the changes go there.
            limit = 300 if turn % 2 else len(data)
            for _ in range(rng.randint(1, 4)):
                data[rng.randrange(min(limit, len(data)))] = rng.randrange(256)
            mend(data)
        try:
            assert np.isfinite(preprocess(spec, bytes(data))).all()
        except SpecError:
            refused += 1

    assert 50 < refused < 400


def test_without_pillow_the_extra_is_named():
    """A picture model on an install without pictures says what to install."""
    script = (
        "import sys; sys.modules['PIL'] = None\n"
        "from mulle.core.errors import SpecError\n"
        "from mulle.formats.image_read import preprocess\n"
        "from mulle.formats.image_spec import ImageInput\n"
        "try:\n    preprocess(ImageInput(size=(8, 8)), b'\\xff\\xd8\\xff\\xe0')\n"
        "except SpecError as error:\n    print(error.code, error.fix)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)

    assert done.stdout.startswith("extra-missing pip install 'mulle[images]'")


def test_only_three_decoders_are_ever_loaded():
    """Pillow's other forty formats, among them interpreters of programs, stay outside the process."""
    script = (
        "import sys\n"
        "from mulle.formats.image_read import preprocess\n"
        "from mulle.formats.image_spec import ImageInput\n"
        "try:\n    preprocess(ImageInput(size=(8, 8)), b'\\xff\\xd8\\xff\\xe0')\n"
        "except Exception: pass\n"
        "others = ('EpsImagePlugin', 'GifImagePlugin', 'FliImagePlugin', 'Jpeg2KImagePlugin')\n"
        "print([name for name in sys.modules if name.endswith(others)])\n"
        "print('PIL.JpegImagePlugin' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)

    assert ["[]", "True"] == done.stdout.split("\n")[:2]
