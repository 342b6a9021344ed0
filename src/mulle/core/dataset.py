"""A dataset version as a value: what an immutable snapshot of a source is called and what it holds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from mulle.core.canonical import is_digest
from mulle.core.errors import SpecError
from mulle.core.names import require_name
from mulle.core.schema import Schema


@dataclass(frozen=True, slots=True)
class DatasetVersion:
    """An immutable snapshot of a source.

    Attributes:
        name: The dataset's name, usually the project's.
        digest: SHA-256 over the logical values (see `data/dataset.py: logical_digest`), 64 hexadecimal digits.
        schema: Columns in their order.
        n_rows: Number of rows, >= 0.
        time_range: First and last moment of the time column, ISO 8601 in UTC; None without a time column.
    """

    name: str
    digest: str
    schema: Schema
    n_rows: int
    time_range: tuple[str, str] | None = None

    def to_dict(self) -> dict[str, object]:
        """Return plain JSON."""
        return {
            "name": self.name,
            "digest": self.digest,
            "schema": self.schema.to_list(),
            "n_rows": self.n_rows,
            "time_range": None if self.time_range is None else list(self.time_range),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, object]) -> "DatasetVersion":
        """Return the version that `to_dict` wrote.

        Raises:
            SpecError: a field is missing or does not fit.
        """
        try:
            digest = str(data["digest"])
            columns = cast("Sequence[Mapping[str, object]]", data["schema"])
            span = cast("Sequence[str] | None", data.get("time_range"))
            version = cls(
                name=require_name(str(data["name"]), "a dataset"),
                digest=digest,
                schema=Schema.from_list(columns),
                n_rows=int(cast("int", data["n_rows"])),
                time_range=None if span is None else (str(span[0]), str(span[1])),
            )
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise SpecError(
                "dataset-description",
                f"this does not describe a dataset version: {type(error).__name__} {error}",
                fix="restore dataset.json from where it was written, or run `mulle run --from snapshot`",
            ) from error
        if not is_digest(digest):
            raise SpecError(
                "dataset-description", f"the digest {digest[:80]!r} is malformed", fix="restore dataset.json from where it was written"
            )
        return version
