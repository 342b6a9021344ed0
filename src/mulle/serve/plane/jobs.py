"""A job is one request's work for one revision; a batch is what several jobs became together."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mulle.core.errors import MulleError

if TYPE_CHECKING:
    from mulle.serve.plane.served import Served

ROWS, ARRAYS, TENSORS, IMAGES = "rows", "arrays", "tensors", "images"


class Job:
    """One request's work; it has exactly one outcome, told by `finish` on the loop.

    Attributes:
        served: The revision that answers.
        kind: How the input is given: `rows` (tuples of plain values in the order of the columns, checked: numbers, None, text),
            `arrays` (raw column name to shape (n,), as `formats/rows.py` makes them), `tensors` (graph input name to shape
            (n, …)), `images` (encoded pictures).
        inputs: The input.
        key: Jobs of one kind with the same key may share a batch; None: runs alone.
        n_rows: Rows of the input.
        n_bytes: What it keeps in memory while it waits, roughly.
        started_ns: Monotonic moment the request was complete.
        deadline_ns: Monotonic moment from which nobody wants the answer; 0: none.
        ids: The client's own ids, one per row, checked; None: numbered.
        entity: The entity's value per row.
        batch: Where the outcome is, from row `at` on; None when `error` is set.
        error: Why there is no answer.
        cancelled: Set by the transport when nobody waits any more.
    """

    __slots__ = (
        "at",
        "batch",
        "cancelled",
        "deadline_ns",
        "entity",
        "error",
        "ids",
        "inputs",
        "key",
        "kind",
        "n_bytes",
        "n_rows",
        "served",
        "started_ns",
    )

    def __init__(
        self,
        served: "Served",
        kind: str,
        data: Any,
        n_rows: int,
        started_ns: int,
        *,
        key: object = ROWS,
        n_bytes: int = 0,
        deadline_ns: int = 0,
        ids: Sequence[str] | None = None,
        entity: Sequence[str | None] | None = None,
    ) -> None:
        self.served = served
        self.kind = kind
        self.inputs = data
        self.n_rows = n_rows
        self.started_ns = started_ns
        self.key = key
        self.n_bytes = n_bytes
        self.deadline_ns = deadline_ns
        self.ids = ids
        self.entity = entity
        self.batch: Batch | None = None
        self.at = 0
        self.error: MulleError | None = None
        self.cancelled = False

    @property
    def scores(self) -> NDArray[np.float32]:
        """Shape (n_rows, k): probabilities in the order of the classes, or predictions."""
        if self.batch is None:
            raise LookupError("a job without an answer was asked for its scores")
        return self.batch.scores[self.at : self.at + self.n_rows]

    @property
    def outputs(self) -> dict[str, NDArray[Any]]:
        """Graph output name to shape (n_rows, …), of a tensor graph."""
        if self.batch is None:
            raise LookupError("a job without an answer was asked for its outputs")
        return {name: array[self.at : self.at + self.n_rows] for name, array in self.batch.outputs.items()}

    def prediction_ids(self) -> Sequence[str]:
        """Return the id of each row."""
        if self.ids is not None:
            return self.ids
        if self.batch is None:
            raise LookupError("a job without an answer was asked for its ids")
        first = self.batch.first + self.at
        return [self.batch.id_of(first + i) for i in range(self.n_rows)]

    def cancel(self) -> None:
        """Take note that nobody waits any more: the job leaves the queue when its turn comes."""
        self.cancelled = True

    def finish_together(self, batch: "Batch") -> "list[Job]":
        """Finish all jobs of a batch this one is the first of, as far as that is quicker together; return those that are left."""
        return batch.jobs

    def finish(self) -> None:
        """Take note that `batch` or `error` is there; called once, on the loop. Must not raise."""
        raise NotImplementedError


class CallbackJob(Job):
    """A job that calls a function when it has its outcome."""

    __slots__ = ("callback",)
    callback: Callable[["CallbackJob"], None]

    def finish(self) -> None:
        """Tell."""
        self.callback(self)


class Batch:
    """What jobs that ran together became.

    Attributes:
        served: The revision.
        jobs: In the order of their rows; empty once each has been told.
        n_rows: Of all of them.
        scores: Shape (n_rows, k); of a tensor graph (n_rows, 0).
        outputs: Of a tensor graph.
        numbers: Shape (n_rows, m), what was asked, as it is logged.
        texts: Text column to shape (n_rows,).
        first: Number of the first row.
        id_of: Gives the id of a number.
        id_prefix: What every such id begins with; twelve hexadecimal digits of the number follow.
        client_ids: Whether a client brought ids of its own.
        started_ns: When each job's request was complete, as it was logged.
        began_ns: Monotonic moment it began to run.
        took_ns: How long it ran.
        memo: Of the codecs: what they worked out once for all jobs.
    """

    __slots__ = (
        "began_ns",
        "client_ids",
        "first",
        "id_of",
        "id_prefix",
        "jobs",
        "memo",
        "n_rows",
        "numbers",
        "outputs",
        "scores",
        "served",
        "started_ns",
        "texts",
        "took_ns",
    )

    def __init__(
        self,
        served: "Served",
        jobs: list[Any],
        scores: NDArray[np.float32],
        *,
        numbers: NDArray[np.float64] | None = None,
        texts: Mapping[str, NDArray[Any]] | None = None,
        outputs: Mapping[str, NDArray[Any]] | None = None,
    ) -> None:
        self.served = served
        self.jobs: list[Job] = jobs
        self.scores = scores
        self.n_rows = int(scores.shape[0])
        self.numbers = numbers
        self.texts = texts
        self.outputs: Mapping[str, NDArray[Any]] = outputs or {}
        self.first = 0
        self.started_ns: list[int] = []
        self.id_of: Callable[[int], str] = str
        self.id_prefix = ""
        self.began_ns = 0
        self.client_ids = False
        self.took_ns = 0
        self.memo: Any = None
