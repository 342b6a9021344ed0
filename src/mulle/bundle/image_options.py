"""`--image size=224x224,mean=0.5,…` as a declaration, completed by what the graph itself says about its input."""

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from mulle.core.errors import SpecError
from mulle.formats.image_spec import ImageInput

PRESETS: Mapping[str, Mapping[str, Any]] = {
    "auto": {},
    "imagenet": {
        "size": (224, 224),
        "resize": "shorter",
        "shorter": 256,
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
    },
}
"""`auto`: what the graph says, pixels from 0 to 1. `imagenet`: as torchvision's classifiers of ImageNet were trained."""
_KEYS = ("size", "resize", "shorter", "filter", "colour", "scale", "mean", "std", "layout", "dtype", "draft")
_TRUTHS = {"yes": True, "true": True, "1": True, "no": False, "false": False, "0": False}
_IMAGE_AXES = 4


def parse_image_options(text: str) -> dict[str, Any]:
    """Return the fields of `ImageInput` a text names: `key=value` by commas, numbers of one value by colons; presets come first.

    Raises:
        SpecError: `adopt-image`, with the part that is wrong.
    """
    found: dict[str, Any] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals:
            if key not in PRESETS:
                raise _wrong(f"{part!r} is neither key=value nor a preset", f"use {' or '.join(PRESETS)}, or for example size=224x224")
            found = {**PRESETS[key], **found}
            continue
        key = "colour" if key == "color" else key
        if key not in _KEYS:
            near = difflib.get_close_matches(key, _KEYS, n=1)
            raise _wrong(f"there is no {key!r}", f"did you mean {near[0]!r}?" if near else f"use {', '.join(_KEYS)}")
        try:
            found[key] = _value(key, value)
        except (ValueError, ZeroDivisionError) as error:
            raise _wrong(f"{part!r} cannot be read", "write it as in size=224x224,mean=0.485:0.456:0.406,scale=1/255,draft=yes") from error
    return {"resize": "shorter", **found} if "shorter" in found else found


def complete_image(options: Mapping[str, Any], shape: Sequence[int | None], dtype: str, *, where: str) -> ImageInput:
    """Return the whole declaration for a graph's input.

    Args:
        options: From `parse_image_options`.
        shape: The input's dimensions with the batch axis; None where free.
        dtype: `float32`, or `uint8` where the graph takes bytes.
        where: The graph's file.

    Raises:
        SpecError: `adopt-image`: something is missing or wrong; `adopt-image-shape`: the graph takes another shape.
    """
    if len(shape) != _IMAGE_AXES:
        raise SpecError(
            "adopt-image-shape",
            f"the graph's input has {len(shape)} dimensions; pictures have four: rows, channels, height and width",
            fix="adopt it with --tensors, or export it for pictures",
            where=where,
        )
    fields: dict[str, Any] = {"dtype": dtype, **options}
    if fields["dtype"] != dtype:
        raise _wrong(f"dtype={fields['dtype']}, and the graph takes {dtype}", f"leave dtype out, or say dtype={dtype}", where)
    if "layout" not in fields:
        fields["layout"] = "NHWC" if shape[1] not in {1, 3} and shape[3] in {1, 3} else "NCHW"
    channels, height, width = shape[1:] if fields["layout"] == "NCHW" else (shape[3], shape[1], shape[2])
    if "colour" not in fields and channels == 1:
        fields["colour"] = "L"
    if "size" not in fields:
        if height is None or width is None:
            raise _wrong("the graph takes pictures of any size", "say which: --image size=224x224", where)
        fields["size"] = (height, width)
    try:
        spec = msgspec.convert(fields, ImageInput)
    except msgspec.ValidationError as error:
        raise _wrong(str(error), "see `mulle adopt --help` and docs/guides/images.md", where) from error
    if (problem := spec.find_problem()) is not None:
        raise _wrong(problem, "correct --image", where)
    if any(have is not None and have != want for have, want in zip(shape[1:], spec.shape, strict=True)):
        wanted = "x".join("?" if side is None else str(side) for side in shape[1:])
        raise SpecError(
            "adopt-image-shape",
            f"the graph takes {wanted}, and --image makes {'x'.join(map(str, spec.shape))} ({spec.layout})",
            fix="correct size, colour or layout, or leave them out: they are read off the graph",
            where=where,
        )
    return spec


def _value(key: str, text: str) -> Any:
    if key == "size":
        sides = [int(side) for side in text.lower().split("x")]
        return (sides[0], sides[0]) if len(sides) == 1 else tuple(sides)
    if key in {"mean", "std"}:
        return tuple(_number(number) for number in text.split(":"))
    if key == "scale":
        return _number(text)
    if key == "shorter":
        return int(text)
    if key == "draft":
        if text.lower() not in _TRUTHS:
            raise ValueError(text)
        return _TRUTHS[text.lower()]
    return text.upper() if key in {"layout", "colour"} else text.lower()


def _number(text: str) -> float:
    above, slash, below = text.partition("/")
    return float(above) / float(below) if slash else float(above)


def _wrong(what: str, fix: str, where: str = "--image") -> SpecError:
    return SpecError("adopt-image", f"the declaration of the picture is wrong: {what}", fix=fix, where=where)
