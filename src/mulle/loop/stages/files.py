"""What stages leave for each other: JSON, Parquet, ONNX, and arrays without objects. Nothing here is a program."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mulle.core.canonical import digest_bytes
from mulle.core.dataset import DatasetVersion
from mulle.core.errors import CheckError

if TYPE_CHECKING:
    import polars as pl

DATASET = "dataset.json"
SIDES = "sides.parquet"
TRAIN_SIDE, HOLDOUT_SIDE = "train", "holdout"


def write_json(path: Path, value: Any) -> str:
    """Write `value` as readable JSON and return the digest of the bytes."""
    data = json.dumps(value, ensure_ascii=False, indent=1, sort_keys=True, allow_nan=False).encode("utf-8")
    path.write_bytes(data)
    return digest_bytes(data)


def read_json(path: Path) -> Any:
    """Return the JSON at `path`, a file an earlier stage wrote.

    Raises:
        CheckError: somebody damaged it since.
    """
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise CheckError(
            "stage-output-damaged",
            f"{path.name!r} of an earlier stage cannot be read: {type(error).__name__}",
            fix=f"run it again: mulle run --from {path.parent.parent.name}",
            where=str(path),
        ) from error


def write_bytes(path: Path, data: bytes) -> str:
    """Write `data` and return its digest."""
    path.write_bytes(data)
    return digest_bytes(data)


def write_array(path: Path, values: NDArray[Any]) -> None:
    """Write numbers as `.npy`; objects are refused."""
    np.save(path, values, allow_pickle=False)


def read_array(path: Path) -> NDArray[Any]:
    """Return the numbers at `path`."""
    return np.load(path, allow_pickle=False)


def read_version(snapshot: Path) -> DatasetVersion:
    """Return the dataset version the snapshot stage cut."""
    return DatasetVersion.from_dict(read_json(snapshot / DATASET))


def load_rows(snapshot: Path, datasets: Path) -> "pl.DataFrame":
    """Return the table of the dataset version the snapshot stage cut, its digest verified."""
    from mulle.data.dataset import load_dataset

    version = read_version(snapshot)
    return load_dataset(datasets, version.name, version.digest)


def load_side(snapshot: Path, split: Path, datasets: Path, side: str) -> "pl.DataFrame":
    """Return the rows on one side of the split, in their own order."""
    import polars as pl

    rows = load_rows(snapshot, datasets)
    sides = pl.read_parquet(split / SIDES).get_column("side")
    return rows.filter(sides == side)
