"""Columns as Mulle knows them: four types, and how each of them travels in a tensor.

| type       | in a table                | in the served graph                              | missing in the graph |
|------------|---------------------------|--------------------------------------------------|----------------------|
| `number`   | any integer or float      | double                                           | NaN                  |
| `boolean`  | boolean                   | double, 0.0 or 1.0                               | NaN                  |
| `datetime` | date or timestamp         | double, seconds since 1970-01-01 UTC             | NaN                  |
| `text`     | string                    | string                                           | `MISSING_TEXT`       |

Null and NaN are one thing in Mulle: *missing*. Every tensor of the served graph has shape (n, 1).
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum

from mulle.core.errors import SpecError

MISSING_TEXT = "\ufdd0"
"""Stands for a missing text in a string tensor: a Unicode noncharacter, reserved for use inside a process."""


class ColumnType(StrEnum):
    """What a column holds."""

    NUMBER = "number"
    BOOLEAN = "boolean"
    DATETIME = "datetime"
    TEXT = "text"


@dataclass(frozen=True, slots=True)
class Column:
    """One named column of a table."""

    name: str
    type: ColumnType
    nullable: bool = True


@dataclass(frozen=True, slots=True)
class Schema:
    """The columns of a table in their order; names are unique."""

    columns: tuple[Column, ...]

    def __post_init__(self) -> None:
        seen: set[str] = set()
        for column in self.columns:
            if column.name in seen:
                raise SpecError(
                    "schema-duplicate-column",
                    f"the column {column.name!r} appears twice",
                    fix="rename one of the two columns in the source",
                )
            seen.add(column.name)

    def __iter__(self) -> Iterator[Column]:
        return iter(self.columns)

    def __len__(self) -> int:
        return len(self.columns)

    def __contains__(self, name: object) -> bool:
        return any(column.name == name for column in self.columns)

    @property
    def names(self) -> tuple[str, ...]:
        """The column names in order."""
        return tuple(column.name for column in self.columns)

    def get(self, name: str) -> Column | None:
        """Return the column called `name`, or None."""
        return next((column for column in self.columns if column.name == name), None)

    def select(self, names: Iterable[str]) -> "Schema":
        """Return the columns called `names`, in this schema's order."""
        wanted = set(names)
        return Schema(tuple(column for column in self.columns if column.name in wanted))

    def to_list(self) -> list[dict[str, object]]:
        """Return plain JSON: one object per column."""
        return [{"name": c.name, "type": c.type.value, "nullable": c.nullable} for c in self.columns]

    @classmethod
    def from_list(cls, rows: Iterable[Mapping[str, object]]) -> "Schema":
        """Return the schema that `to_list` wrote."""
        return cls(tuple(Column(str(r["name"]), ColumnType(str(r["type"])), bool(r["nullable"])) for r in rows))
