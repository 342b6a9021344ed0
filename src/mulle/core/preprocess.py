"""What turns named features into the model's matrix, as plain values: fills for numbers, one column per level for categories.

Fitted in `train`, written into the graph in `bundle`, applied nowhere else: the matrix a model is fitted on and the
one it is served come out of the same graph.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mulle.core.errors import SpecError


@dataclass(frozen=True, slots=True)
class NumericFeature:
    """A number that fills one column.

    Attributes:
        name: The feature.
        fill: What stands for missing; None keeps NaN for models that understand it.
    """

    name: str
    fill: float | None = None

    @property
    def output_names(self) -> tuple[str, ...]:
        """The one column it fills."""
        return (self.name,)


@dataclass(frozen=True, slots=True)
class CategoryFeature:
    """A category that fills one column per level, 1.0 where the row has it; an unknown value is all zeros.

    Attributes:
        name: The feature.
        levels: Distinct texts, in column order. Numbers are levels as `number_level` writes them, booleans as `true`, `false`.
        missing_level: Whether missing has its own column, the last; without it a missing value is all zeros.
    """

    name: str
    levels: tuple[str, ...]
    missing_level: bool = False

    def __post_init__(self) -> None:
        if len(set(self.levels)) != len(self.levels):
            raise SpecError(
                "preprocess-levels",
                f"the feature {self.name!r} has a level twice",
                fix="fit the preprocessing again: `mulle run --from train`",
            )
        if not self.levels and not self.missing_level:
            raise SpecError("preprocess-levels", f"the feature {self.name!r} has no levels", fix="leave the feature out: it says nothing")

    @property
    def output_names(self) -> tuple[str, ...]:
        """The columns it fills: `name=level`, and `name is missing`."""
        return (*(f"{self.name}={level}" for level in self.levels), *([f"{self.name} is missing"] if self.missing_level else []))


@dataclass(frozen=True, slots=True)
class Preprocess:
    """The features in the order of the matrix's columns; names are unique.

    Raises:
        SpecError: no features, a name twice, or a fill that is not finite in float32.
    """

    features: tuple[NumericFeature | CategoryFeature, ...]

    def __post_init__(self) -> None:
        names = [feature.name for feature in self.features]
        if not names or len(set(names)) != len(names):
            problem = "a feature stands in it twice" if names else "it has no features"
            raise SpecError("preprocess-features", f"the preprocessing cannot be used: {problem}", fix="name every feature once")
        for feature in self.features:
            if isinstance(feature, NumericFeature) and feature.fill is not None and not abs(feature.fill) < _FLOAT32_END:
                raise SpecError(
                    "preprocess-fill",
                    f"the feature {feature.name!r} would be filled with {feature.fill!r}",
                    fix="fill with a finite number, or with None to keep missing",
                )

    @property
    def output_names(self) -> tuple[str, ...]:
        """The names of the matrix's columns, in order."""
        return tuple(name for feature in self.features for name in feature.output_names)

    def to_dict(self) -> dict[str, object]:
        """Return plain JSON."""
        rows: list[dict[str, object]] = []
        for feature in self.features:
            if isinstance(feature, NumericFeature):
                rows.append({"kind": "number", "name": feature.name, "fill": feature.fill})
            else:
                rows.append(
                    {"kind": "category", "name": feature.name, "levels": list(feature.levels), "missing_level": feature.missing_level}
                )
        return {"version": 1, "features": rows}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Preprocess":
        """Return the preprocessing that `to_dict` wrote.

        Raises:
            SpecError: another version, or fields that do not fit.
        """
        try:
            if data["version"] != 1:
                raise SpecError("preprocess-unreadable", f"unknown version {data['version']!r} of a preprocessing", fix="upgrade Mulle")
            return cls(tuple(_feature_from(row) for row in data["features"]))
        except (KeyError, TypeError, ValueError) as error:
            raise SpecError(
                "preprocess-unreadable", f"this is not a preprocessing: {error}", fix="fit it again: `mulle run --from train`"
            ) from error


def number_level(value: float) -> str:
    """Return how a number is written as a level: `3`, `2.5`, `1e+20`; minus zero is `0`.

    Distinct numbers give distinct texts, and `float` reads each back exactly.
    """
    return str(int(value)) if value.is_integer() and abs(value) < _WHOLE_END else repr(value)


def level_number(feature: str, level: str) -> float:
    """Return the number a level stands for.

    Raises:
        SpecError: the level is no finite number.
    """
    try:
        value = float(level)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise SpecError(
            "preprocess-levels", f"{level[:80]!r} is not a level of the number category {feature!r}", fix="fit the preprocessing again"
        )
    return value


_FLOAT32_END = 3.4028235677973366e38
_WHOLE_END = 1e15


def _feature_from(row: Mapping[str, Any]) -> NumericFeature | CategoryFeature:
    if row["kind"] == "number":
        return NumericFeature(str(row["name"]), None if row["fill"] is None else float(row["fill"]))
    if row["kind"] == "category":
        return CategoryFeature(str(row["name"]), tuple(str(level) for level in row["levels"]), bool(row["missing_level"]))
    raise ValueError(f"unknown kind {row['kind']!r}")
