"""How a picture becomes a tensor, as data: everything a decoder must know, and nothing it could run.

The order is fixed: decode (first frame) → turn by EXIF → colour → resize → cut the centre → `pixel * factor + offset` per channel → layout.
`formats/image_read.py` does it, for serving and for training alike.
"""

import math
from typing import Literal, TypeAlias

import msgspec

Resize: TypeAlias = Literal["exact", "shorter", "none"]
Filter: TypeAlias = Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"]
Colour: TypeAlias = Literal["RGB", "BGR", "L"]
Layout: TypeAlias = Literal["NCHW", "NHWC"]

MAX_SIDE = 8192
"""Pixels of a tensor's side, and of the side a picture is resized to."""


class ImageInput(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The picture a model takes.

    Attributes:
        size: Height and width of the tensor, in pixels.
        resize: `exact`: to `size`, whatever becomes of the proportions. `shorter`: until the shorter side has `shorter` pixels, the longer
            rounded down; then the centre of `size`. `none`: the centre of `size`; smaller pictures are refused.
        shorter: Pixels of the shorter side for `shorter`; None: the larger of `size`.
        filter: How pixels are resampled, in Pillow's words; all but `nearest` average over what they shrink.
        colour: The order of the channels; `L` is one channel of luma (ITU-R 601-2).
        scale: Each 8-bit value is multiplied by this first.
        mean: Then, per channel, subtracted; none, one, or one per channel.
        std: Then, per channel, divided by; none, one, or one per channel.
        layout: `NCHW` or `NHWC`.
        dtype: `float`, or `uint8`: the pixels as they are, without `scale`, `mean` and `std`.
        draft: Decode JPEG at a half, quarter or eighth of its size where that is still large enough: faster, and slightly other pixels.
    """

    size: tuple[int, int]
    resize: Resize = "exact"
    shorter: int | None = None
    filter: Filter = "bilinear"
    colour: Colour = "RGB"
    scale: float = 1 / 255
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    layout: Layout = "NCHW"
    dtype: Literal["float32", "uint8"] = "float32"
    draft: bool = False

    @property
    def channels(self) -> int:
        """How many channels the tensor has: 1 or 3."""
        return 1 if self.colour == "L" else 3

    @property
    def shape(self) -> tuple[int, ...]:
        """The tensor's dimensions after the batch axis."""
        return (self.channels, *self.size) if self.layout == "NCHW" else (*self.size, self.channels)

    @property
    def tensor_type(self) -> Literal["float", "uint8"]:
        """The tensor's element type, in the manifest's words."""
        return "float" if self.dtype == "float32" else "uint8"

    @property
    def shorter_side(self) -> int:
        """Pixels of the shorter side after `resize = "shorter"`."""
        return max(self.size) if self.shorter is None else self.shorter

    def find_problem(self) -> str | None:
        """Return what is wrong with these values, or None."""
        if not all(1 <= side <= MAX_SIDE for side in self.size):
            return f"size must be 1 to {MAX_SIDE} pixels, not {self.size[0]}x{self.size[1]}"
        if self.shorter is not None and (self.resize != "shorter" or not max(self.size) <= self.shorter <= MAX_SIDE):
            return f"shorter={self.shorter} needs resize=shorter, and {max(self.size)} to {MAX_SIDE} pixels"
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in {0, 1, self.channels} or not all(map(math.isfinite, values)):
                return f"{name} takes one number, or one for each of {self.channels} channels"
        if not math.isfinite(self.scale) or self.scale == 0 or 0 in self.std:
            return "scale and std must not be 0"
        plain = math.isclose(self.scale, 1 / 255) and not self.mean and not self.std
        if self.dtype == "uint8" and not plain:
            return "uint8 pixels are passed as they are: leave scale, mean and std out"
        return None

    def factors(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Return `factor` and `offset` per channel: a pixel p becomes p * factor + offset."""
        mean = self.mean * (self.channels // len(self.mean)) if self.mean else (0.0,) * self.channels
        std = self.std * (self.channels // len(self.std)) if self.std else (1.0,) * self.channels
        return tuple(self.scale / s for s in std), tuple(-m / s for m, s in zip(mean, std, strict=True))
