"""Prediction logs as a server leaves them: segments written, closed, killed, spoiled."""

from pathlib import Path

import numpy as np

from mulle.core.schema import MISSING_TEXT, ColumnType
from mulle.formats.prediction_log import LoggedColumn, LogWriter, PredictionBatch, PredictionTable, Source

HOUR_NS = 3_600_000_000_000
T0 = 500_000 * HOUR_NS
COLUMNS = (LoggedColumn("tenure", ColumnType.NUMBER), LoggedColumn("계약", ColumnType.TEXT), LoggedColumn("fee", ColumnType.NUMBER))


def source(revision: int = 1) -> Source:
    """Return a revision of a binary model."""
    return Source(
        source=0,
        revision=revision,
        model="이탈",
        model_version=revision,
        bundle_digest=f"{revision:x}" * 64,
        task="binary",
        classes=("No", "Yes"),
        entity="고객",
        columns=COLUMNS,
    )


def batch(writer: LogWriter, n: int, *, time_ns: int = T0, revision: int = 1, n_own_ids: int = 0) -> PredictionBatch:
    """Return a batch of `n` rows whose values tell their number in the writer's sequence."""
    first = writer.reserve(n)
    numbers = np.arange(first, first + n, dtype=np.float64)
    outputs = np.stack([numbers / (numbers + 1), 1 / (numbers + 1)], axis=1).astype(np.float32)
    return PredictionBatch(
        source=source(revision),
        time_ns=time_ns,
        latency_us=(numbers * 3).astype(np.uint32),
        numbers=np.stack([numbers, np.where(numbers % 2, np.nan, -numbers)], axis=1),
        texts={"계약": np.array([MISSING_TEXT if i % 5 == 0 else f"월{i % 3}" for i in numbers.astype(int)], dtype=object)},
        outputs=outputs,
        first=first,
        ids=[f"own:{writer.prefix}:{first + i}" if i < n_own_ids else None for i in range(n)] if n_own_ids else None,
        entity=[None if i % 4 == 0 else f"손님{i % 7}" for i in range(n)],
        n_requests=n,
    )


def write_segment(root: Path, *, prefix: int = 1, n_flushes: int = 6, n_rows: int = 5, time_ns: int = T0, name: str = "churn") -> Path:
    """Write one closed segment with two revisions, counted outcomes and clients' ids; return its path."""
    writer = LogWriter(root, name, prefix=prefix)
    for i in range(n_flushes):
        at = time_ns + i * 1_000_000_000
        batches = [batch(writer, n_rows, time_ns=at, revision=1 + j % 2, n_own_ids=j % 2) for j in range(3)]
        writer.append_all(batches)
        writer.count(1, "refused", at)
        writer.flush_outcomes(at)
    path = next((root / name).glob(f"predictions-*-{prefix:016x}-00000.mseg"))
    writer.close(time_ns + n_flushes * 1_000_000_000)
    return path


def facts_of(table: PredictionTable) -> dict[str, object]:
    """Return everything a window says, as plain values that can be compared."""
    return {
        "ids": table.ids.tolist(),
        "time": table.time_ns.tolist(),
        "revision": table.revision.tolist(),
        "status": table.status.tolist(),
        "latency": table.latency_us.tolist(),
        "entity": table.entity.tolist(),
        "columns": {name: [repr(value) for value in values.tolist()] for name, values in table.columns.items()},
        "outputs": table.outputs.tolist(),
        "sources": table.sources,
        "source_index": table.source_index.tolist(),
        "outcomes": table.outcomes,
        "gaps": table.gaps.to_dict() | {"files": len(table.gaps.damage.files)},
    }
