# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
"""An encoded picture into a tensor: the one fast path, which serving, training and golden requests share.

Decided here, for every caller alike:

- The EXIF orientation is applied: a photograph is upright, as its viewer shows it.
- Transparency is dropped: the colours beneath it count, as Pillow's `convert("RGB")` says.
- Of 16 bits the upper 8 count; CMYK, palettes and grey become RGB; colour profiles are ignored.
- Of an animation the first frame counts.

The size is read from the header and limited before anything is decoded. Pillow lets go of the interpreter while it
decodes and resizes: threads run side by side.
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mulle.core.errors import SpecError
from mulle.formats.image_spec import ImageInput

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_SCANS = 100
"""Scans of one JPEG: each is a pass over all pixels, and a few bytes can ask for one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageLimits:
    """What is refused before it costs anything.

    Attributes:
        max_bytes: Of the encoded picture.
        max_pixels: Of the decoded picture, and of the picture after resizing; 4 bytes each.
    """

    max_bytes: int = 10 << 20
    max_pixels: int = 25_000_000


DEFAULT_LIMITS = ImageLimits()


def preprocess(
    spec: ImageInput,
    data: bytes | bytearray | memoryview,
    *,
    out: NDArray[Any] | None = None,
    limits: ImageLimits = DEFAULT_LIMITS,
    draft: bool | None = None,
) -> NDArray[Any]:
    """Return the picture as a tensor, shape `spec.shape`, float32 or uint8.

    Args:
        spec: From the bundle's manifest.
        data: JPEG, PNG or WebP; the format is read off the bytes, no name and no media type is believed.
        out: Where to write it, C-contiguous: a row of a batch. None: a new array.
        limits: What to refuse.
        draft: Decode JPEG smaller; None: as `spec` says.

    Raises:
        SpecError: `image-format`, `image-unreadable` (damaged or truncated), `image-too-large`, `image-too-many-pixels`, `image-scans`,
            `image-proportions`, `image-too-small`; `extra-missing`: Pillow is not installed.
    """
    if len(data) > limits.max_bytes:
        raise SpecError(
            "image-too-large",
            f"the picture has {len(data):,} bytes; the limit is {limits.max_bytes:,}",
            fix="send a smaller or more compressed picture",
        )
    image = _decode(spec, data, limits, draft=spec.draft if draft is None else draft)
    try:
        image = _fit(spec, _colour(image, spec), limits)
        pixels = _planes(image) if spec.layout == "NCHW" and spec.colour == "RGB" else np.asarray(image)
    except (OSError, ValueError, MemoryError) as error:
        raise _unreadable(error) from error
    if out is None:
        out = np.empty(spec.shape, np.float32 if spec.dtype == "float32" else np.uint8)
    _write(spec, pixels, out)
    return out


def _decode(spec: ImageInput, data: bytes | bytearray | memoryview, limits: ImageLimits, *, draft: bool) -> "Image":
    head = bytes(data[:32])
    if head[:3] == b"\xff\xd8\xff":
        name = "JPEG"
        scans = bytes(data).count(b"\xff\xda")
        if scans > MAX_SCANS:
            raise SpecError(
                "image-scans", f"the JPEG has {scans:,} scans; the limit is {MAX_SCANS}", fix="save it again, not progressively"
            )
    elif head[:8] == b"\x89PNG\r\n\x1a\n":
        name = "PNG"
    elif head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        name = "WEBP"
        # The decoder takes memory for the whole canvas when it is opened: look first.
        _require_pixels(_webp_size(head), limits)
    else:
        raise SpecError("image-format", f"this is no picture Mulle reads: it begins with {head[:8]!r}", fix="send JPEG, PNG or WebP")
    opener = _plugins()[name]
    try:
        image = opener(BytesIO(data))
        _require_pixels(image.size, limits)
        turned = _orientation(image.info.get("exif"))
        if draft and name == "JPEG" and spec.resize != "none":
            height, width = spec.size if spec.resize == "exact" else (spec.shorter_side, spec.shorter_side)
            image.draft(None, (height, width) if turned >= _SIDEWAYS else (width, height))
        image.load()
        if name == "PNG":
            # Its EXIF may stand after the pixels.
            turned = _orientation(image.info.get("exif"))
        return image if turned == 1 else image.transpose(_transpositions()[turned])
    except SpecError:
        raise
    except Exception as error:  # decoders raise what they like on damaged bytes
        raise _unreadable(error) from error


def _colour(image: "Image", spec: ImageInput) -> "Image":
    wanted = "L" if spec.colour == "L" else "RGB"
    if image.mode == wanted:
        return image
    if image.mode.startswith("I"):
        # 16 bits of grey: Pillow would clip them at 255.
        values = np.clip(np.asarray(image).astype(np.int64), 0, 65535) >> 8
        image = _from_array(values.astype(np.uint8))
    elif image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image if image.mode == wanted else image.convert(wanted)


def _fit(spec: ImageInput, image: "Image", limits: ImageLimits) -> "Image":
    height, width = spec.size
    if spec.resize == "exact":
        return image if image.size == (width, height) else image.resize((width, height), _filters()[spec.filter])
    if spec.resize == "shorter":
        w, h = image.size
        side = spec.shorter_side
        size = (side, int(side * h / w)) if w <= h else (int(side * w / h), side)
        if size[0] * size[1] > limits.max_pixels:
            raise SpecError(
                "image-proportions", f"a picture of {w} × {h} pixels cannot be resized in proportion", fix="cut it to what matters"
            )
        if size != (w, h):
            image = image.resize(size, _filters()[spec.filter])
    w, h = image.size
    if w < width or h < height:
        raise SpecError(
            "image-too-small", f"the picture has {w} × {h} pixels, and the model takes {width} × {height}", fix="send a larger one"
        )
    if (w, h) == (width, height):
        return image
    # Rounded as torchvision does, so that models trained with it see their own pixels.
    left, top = round((w - width) / 2), round((h - height) / 2)
    return image.crop((left, top, left + width, top + height))


def _planes(image: "Image") -> NDArray[np.uint8]:
    """Return an RGB picture as (height, width, 3), in memory line by line and channel by channel: that is copied to planes faster."""
    width, height = image.size
    return np.frombuffer(image.tobytes("raw", "RGB;L"), np.uint8).reshape(height, 3, width).transpose(0, 2, 1)


def _write(spec: ImageInput, pixels: NDArray[np.uint8], out: NDArray[Any]) -> None:
    if pixels.ndim == 2:  # noqa: PLR2004 - one channel has no third axis
        pixels = pixels[:, :, None]
    if spec.colour == "BGR":
        pixels = pixels[:, :, ::-1]
    if spec.layout == "NCHW":
        pixels = pixels.transpose(2, 0, 1)
    # One pass that widens, then two over floats in the cache: faster than one over mixed types.
    out[...] = pixels
    if spec.dtype == "float32":
        factor, offset = _constants(spec)
        out *= factor
        if offset is not None:
            out += offset


@lru_cache(maxsize=64)
def _constants(spec: ImageInput) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
    shape = (-1, 1, 1) if spec.layout == "NCHW" else (-1,)
    factor, offset = (np.array(values, dtype=np.float32).reshape(shape) for values in spec.factors())
    return factor, offset if offset.any() else None


def _require_pixels(size: tuple[int, int], limits: ImageLimits) -> None:
    if size[0] * size[1] > limits.max_pixels:
        raise SpecError(
            "image-too-many-pixels",
            f"the picture has {size[0]:,} × {size[1]:,} pixels; the limit is {limits.max_pixels:,} in all",
            fix="send a smaller picture",
        )


def _webp_size(head: bytes) -> tuple[int, int]:
    """Return width and height of a WebP's canvas from its first 32 bytes; (0, 0) leaves the judgement to the decoder."""
    kind = head[12:16]
    if kind == b"VP8X" and len(head) >= 30:  # noqa: PLR2004 - where the canvas ends
        return 1 + int.from_bytes(head[24:27], "little"), 1 + int.from_bytes(head[27:30], "little")
    if kind == b"VP8L" and len(head) >= 25:  # noqa: PLR2004 - where the sizes end
        bits = int.from_bytes(head[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if kind == b"VP8 " and len(head) >= 30:  # noqa: PLR2004 - where the sizes end
        return int.from_bytes(head[26:28], "little") & 0x3FFF, int.from_bytes(head[28:30], "little") & 0x3FFF
    return 0, 0


_SIDEWAYS = 5
"""Orientations from here on swap width and height."""
_ORIENTATION_TAG, _SHORT = 0x0112, 3
_MAX_TAGS = 512


def _orientation(exif: object) -> int:
    """Return the EXIF orientation, 1 to 8; 1 where there is none, or none that can be read."""
    if not isinstance(exif, bytes) or not exif:
        return 1
    tiff = exif[6:] if exif[:6] == b"Exif\x00\x00" else exif
    order = {b"II*\x00": "<", b"MM\x00*": ">"}.get(tiff[:4])
    if order is None:
        return 1
    try:
        (start,) = struct.unpack_from(f"{order}I", tiff, 4)
        (n_tags,) = struct.unpack_from(f"{order}H", tiff, start)
        for i in range(min(n_tags, _MAX_TAGS)):
            tag, kind, _, value = struct.unpack_from(f"{order}HHIH", tiff, start + 2 + 12 * i)
            if tag == _ORIENTATION_TAG:
                return value if kind == _SHORT and 1 <= value <= 8 else 1  # noqa: PLR2004 - EXIF knows eight
    except struct.error:
        return 1
    return 1


@lru_cache(maxsize=1)
def _plugins() -> "dict[str, Callable[[BytesIO], Image]]":
    """Return the decoders by format; nothing else of Pillow is loaded, and no other format can be asked for.

    Raises:
        SpecError: `extra-missing`.
    """
    try:
        from PIL import JpegImagePlugin, PngImagePlugin, WebPImagePlugin
    except ImportError as error:
        raise SpecError(
            "extra-missing", "pictures need Pillow, which is not installed", fix="pip install 'mulle[images]', then start again"
        ) from error
    return {"JPEG": JpegImagePlugin.JpegImageFile, "PNG": PngImagePlugin.PngImageFile, "WEBP": WebPImagePlugin.WebPImageFile}


@lru_cache(maxsize=1)
def _filters() -> dict[str, Any]:
    from PIL.Image import Resampling

    return {member.name.casefold(): member for member in Resampling}


@lru_cache(maxsize=1)
def _transpositions() -> dict[int, Any]:
    from PIL.Image import Transpose

    return {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }


def _from_array(values: NDArray[np.uint8]) -> "Image":
    from PIL import Image

    return Image.fromarray(values)


def _unreadable(error: Exception) -> SpecError:
    text = " ".join(str(error).split())[:200] or type(error).__name__
    return SpecError("image-unreadable", f"the picture cannot be decoded: {text}", fix="send a whole JPEG, PNG or WebP file")
