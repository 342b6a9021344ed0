"""Pixels of real photographs: bit for bit those of a plain Pillow and numpy pipeline, whatever the file's kind."""

import io
import itertools

import numpy as np
import pytest
from PIL import Image, ImageOps
from sklearn.datasets import load_sample_image

from mulle.core.errors import SpecError
from mulle.formats.image_read import ImageLimits, preprocess
from mulle.formats.image_spec import ImageInput
from mulle.serve.runtimes.images import ImageReader

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PHOTOGRAPHS = {name: Image.fromarray(load_sample_image(f"{name}.jpg")) for name in ("china", "flower")}
UPRIGHT = PHOTOGRAPHS["china"].crop((100, 0, 400, 427))
EXIF_ORIENTATION = 0x0112


def encode(image, kind="JPEG", **options):
    """Return the encoded picture."""
    stream = io.BytesIO()
    image.save(stream, kind, **({"quality": 85} if kind == "JPEG" else {}) | options)
    return stream.getvalue()


def plain(data, spec):
    """Return what a script would do with Pillow and numpy, in the words of their manuals."""
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    image = image.convert("L" if spec.colour == "L" else "RGB")
    height, width = spec.size
    resample = getattr(Image.Resampling, spec.filter.upper())
    if spec.resize == "exact":
        image = image.resize((width, height), resample)
    elif spec.resize == "shorter":
        w, h = image.size
        side = spec.shorter or max(spec.size)
        image = image.resize((side, int(side * h / w)) if w <= h else (int(side * w / h), side), resample)
    top, left = int(round((image.height - height) / 2.0)), int(round((image.width - width) / 2.0))  # noqa: RUF046 - as torchvision writes it
    pixels = np.asarray(image)[top : top + height, left : left + width]
    pixels = pixels.reshape(height, width, -1)
    if spec.colour == "BGR":
        pixels = pixels[:, :, ::-1]
    if spec.dtype == "float32":
        channels = pixels.shape[2]
        mean = np.broadcast_to(spec.mean or (0.0,), channels)
        std = np.broadcast_to(spec.std or (1.0,), channels)
        pixels = pixels.astype(np.float32) * (spec.scale / std).astype(np.float32) + (-mean / std).astype(np.float32)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1) if spec.layout == "NCHW" else pixels)


GEOMETRIES = {
    "exact": {"resize": "exact", "size": (96, 128)},
    "exact, no smaller": {"resize": "exact", "size": (427, 640)},
    "shorter, a square": {"resize": "shorter", "size": (224, 224), "shorter": 256},
    "shorter, an odd cut": {"resize": "shorter", "size": (101, 64), "shorter": 120},
    "shorter by default": {"resize": "shorter", "size": (64, 80)},
    "shorter, enlarged": {"resize": "shorter", "size": (448, 448), "shorter": 500},
    "the centre": {"resize": "none", "size": (301, 200)},
}


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("colour", ["RGB", "BGR", "L"])
@pytest.mark.parametrize(("layout", "dtype"), [*itertools.product(["NCHW", "NHWC"], ["float32", "uint8"])])
def test_every_declaration_gives_plain_pixels(geometry, colour, layout, dtype):
    """Resize, cut, colour, layout and type in all their combinations, on a wide and on an upright photograph."""
    scaled = {"mean": MEAN, "std": STD} if colour != "L" else {"mean": (0.5,), "std": (0.25,)}
    spec = ImageInput(**GEOMETRIES[geometry], colour=colour, layout=layout, dtype=dtype, **(scaled if dtype == "float32" else {}))
    for image in (PHOTOGRAPHS["flower"], UPRIGHT):
        data = encode(image)
        found = preprocess(spec, data)

        assert spec.shape == found.shape
        assert np.array_equal(plain(data, spec), found)


@pytest.mark.parametrize("filtered", ["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"])
def test_every_filter_gives_plain_pixels(filtered):
    """Filters are Pillow's."""
    spec = ImageInput(size=(75, 100), filter=filtered)
    data = encode(PHOTOGRAPHS["china"])

    assert np.array_equal(plain(data, spec), preprocess(spec, data))


def noisy_alpha():
    """Return the flower with a chequered transparency."""
    image = PHOTOGRAPHS["flower"].convert("RGBA")
    alpha = np.indices((image.height, image.width)).sum(axis=0) % 256
    image.putalpha(Image.fromarray(alpha.astype(np.uint8)))
    return image


FILES = {
    "a plain JPEG": lambda: encode(PHOTOGRAPHS["china"]),
    "a progressive JPEG": lambda: encode(PHOTOGRAPHS["china"], progressive=True),
    "a grey JPEG": lambda: encode(PHOTOGRAPHS["china"].convert("L")),
    "a CMYK JPEG": lambda: encode(PHOTOGRAPHS["china"].convert("CMYK")),
    "a JPEG without subsampling": lambda: encode(PHOTOGRAPHS["flower"], subsampling=0),
    "a PNG": lambda: encode(PHOTOGRAPHS["china"].resize((200, 130)), "PNG"),
    "a grey PNG": lambda: encode(PHOTOGRAPHS["china"].convert("L"), "PNG"),
    "a PNG of two colours": lambda: encode(PHOTOGRAPHS["china"].convert("1"), "PNG"),
    "a PNG with a palette": lambda: encode(PHOTOGRAPHS["flower"].quantize(64), "PNG"),
    "a PNG with a transparent colour": lambda: encode(PHOTOGRAPHS["flower"].quantize(64), "PNG", transparency=3),
    "a transparent PNG": lambda: encode(noisy_alpha(), "PNG"),
    "a grey transparent PNG": lambda: encode(noisy_alpha().convert("LA"), "PNG"),
    "a WebP": lambda: encode(PHOTOGRAPHS["china"], "WEBP", quality=80),
    "a lossless transparent WebP": lambda: encode(noisy_alpha().resize((200, 130)), "WEBP", lossless=True),
}


@pytest.mark.parametrize("colour", ["RGB", "L"])
@pytest.mark.parametrize("name", FILES)
def test_every_kind_of_file_gives_plain_pixels(name, colour):
    """Whatever Pillow's `convert` makes of a file is what the model sees; transparency is dropped."""
    spec = ImageInput(size=(64, 64), resize="shorter", colour=colour)
    data = FILES[name]()

    assert np.array_equal(plain(data, spec), preprocess(spec, data))


def test_sixteen_bits_keep_their_upper_eight():
    """A grey picture of 16 bits is not clipped to white."""
    values = (np.arange(64 * 64, dtype=np.uint32) * 16).astype(np.uint16).reshape(64, 64)
    spec = ImageInput(size=(64, 64), colour="L", dtype="uint8")

    assert np.array_equal((values >> 8).astype(np.uint8)[None], preprocess(spec, encode(Image.fromarray(values), "PNG")))


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_of_an_animation_the_first_frame_counts(kind):
    """A moving picture is a picture."""
    frames = [Image.new("RGB", (32, 32), colour) for colour in ((250, 10, 10), (10, 250, 10))]
    data = encode(frames[0], kind, save_all=True, append_images=frames[1:], duration=100, lossless=True)
    spec = ImageInput(size=(32, 32), dtype="uint8", layout="NHWC")

    assert Image.open(io.BytesIO(data)).n_frames == 2
    assert [250, 10, 10] == preprocess(spec, data)[5, 5].tolist()


@pytest.mark.parametrize("orientation", range(10))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_photographs_are_turned_upright(orientation, kind):
    """The EXIF orientation is applied; one that EXIF does not know is none."""
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = orientation
    data = encode(UPRIGHT.resize((150, 210)), kind, exif=exif.tobytes())
    for draft in (False, True):
        # At this size draft mode has nothing to gain, and must change nothing, sideways either.
        spec = ImageInput(size=(200, 140), draft=draft)

        assert np.array_equal(plain(data, spec), preprocess(spec, data))


@pytest.mark.parametrize(
    "exif",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"Exif\x00\x00", id="a name only"),
        pytest.param(b"Exif\x00\x00XX*\x00\x08\x00\x00\x00", id="no byte order"),
        pytest.param(b"Exif\x00\x00II*\x00\xff\xff\xff\xff", id="a directory beyond the end"),
        pytest.param(b"Exif\x00\x00II*\x00\x08\x00\x00\x00\xff\xff", id="tags beyond the end"),
        pytest.param(b"Exif\x00\x00II*\x00\x08\x00\x00\x00\x01\x00\x12\x01\x04\x00\x01\x00\x00\x00\x06\x00\x00\x00\x00", id="another type"),
    ],
)
def test_broken_exif_turns_nothing(exif):
    """A photograph whose EXIF cannot be read is taken as it is."""
    from mulle.formats.image_read import _orientation

    assert 1 == _orientation(exif)


def test_draft_mode_is_close_and_not_the_same():
    """Decoding at a half of the size changes pixels, by little; and only where it was asked for."""
    spec = ImageInput(size=(96, 96), dtype="uint8")
    data = encode(PHOTOGRAPHS["china"], quality=92)
    full, draft = (preprocess(spec, data, draft=draft).astype(int) for draft in (False, True))
    difference = np.abs(full - draft)

    assert np.array_equal(full, preprocess(spec, data))
    assert 0 < difference.mean() < 3
    assert np.array_equal(draft, preprocess(ImageInput(size=(96, 96), dtype="uint8", draft=True), data))


def test_a_reader_fills_one_block():
    """Several pictures become the rows of one block."""
    reader = ImageReader(ImageInput(size=(32, 48), mean=MEAN, std=STD))
    pictures = [encode(image) for image in (*PHOTOGRAPHS.values(), UPRIGHT)]
    block = reader.read(pictures)

    assert (3, 3, 32, 48) == block.shape
    assert all(np.array_equal(plain(data, reader.spec), row) for data, row in zip(pictures, block, strict=True))


def test_a_reader_says_which_picture_is_bad():
    """The first bad picture of a request is named by its place."""
    reader = ImageReader(ImageInput(size=(32, 48)), limits=ImageLimits(max_bytes=1 << 20))
    with pytest.raises(SpecError) as caught:
        reader.read([encode(UPRIGHT), b"GIF89a"])

    assert ("image-format", "picture 1") == (caught.value.code, caught.value.where)


@pytest.mark.parametrize(
    ("fields", "fragment"),
    [
        pytest.param({"size": (0, 5)}, "size", id="no height"),
        pytest.param({"size": (5, 10_000)}, "size", id="too wide"),
        pytest.param({"size": (8, 8), "shorter": 9}, "shorter", id="shorter without being asked for"),
        pytest.param({"size": (8, 9), "resize": "shorter", "shorter": 8}, "shorter", id="shorter than the tensor"),
        pytest.param({"size": (8, 8), "mean": (0.1, 0.2)}, "mean", id="two means for three channels"),
        pytest.param({"size": (8, 8), "std": (float("nan"),)}, "std", id="no number"),
        pytest.param({"size": (8, 8), "std": (0.0,)}, "0", id="divided by nothing"),
        pytest.param({"size": (8, 8), "scale": 0.0}, "0", id="multiplied by nothing"),
        pytest.param({"size": (8, 8), "dtype": "uint8", "mean": (0.5,)}, "uint8", id="normalised bytes"),
    ],
)
def test_a_declaration_that_cannot_be_is_found(fields, fragment):
    """What is wrong is said in one sentence."""
    problem = ImageInput(**fields).find_problem()

    assert problem is not None
    assert fragment in problem
