"""Showing a run: a live table on a terminal, plain lines with times elsewhere, nothing for machines."""

import sys
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import IO, TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from rich.table import Table

_QUIET_S = 2.0
_MAX_MESSAGE = 100


class Progress(Protocol):
    """What a run tells while it runs. Calls come from one thread, in order."""

    def run_started(self, run_id: str, stages: Sequence[str]) -> None:
        """A run begins."""
        ...

    def waiting(self, holder: str) -> None:
        """Another process holds the lock."""
        ...

    def stage_started(self, stage: str, why: str) -> None:
        """A stage begins to run."""
        ...

    def stage_report(self, stage: str, message: str, done: float | None, total: float | None, memory_bytes: int) -> None:
        """A running stage says what it does; also called now and then with the last message."""
        ...

    def stage_finished(self, stage: str, status: str, seconds: float, memory_bytes: int, note: str) -> None:
        """A stage is `done`, `cached` or `failed`."""
        ...

    def close(self) -> None:
        """The run is over, however it ended."""
        ...


class SilentProgress:
    """Says nothing: for `--json` and for tests."""

    def run_started(self, run_id: str, stages: Sequence[str]) -> None:
        """See `Progress`."""

    def waiting(self, holder: str) -> None:
        """See `Progress`."""

    def stage_started(self, stage: str, why: str) -> None:
        """See `Progress`."""

    def stage_report(self, stage: str, message: str, done: float | None, total: float | None, memory_bytes: int) -> None:
        """See `Progress`."""

    def stage_finished(self, stage: str, status: str, seconds: float, memory_bytes: int, note: str) -> None:
        """See `Progress`."""

    def close(self) -> None:
        """See `Progress`."""


class PlainProgress:
    """One line per event with the local time: for pipes, files and CI.

    Args:
        out: Where lines go.
        now: The local time.
        clock: Monotonic seconds; a stage's messages are printed at most every two seconds, warnings and notes always.
    """

    def __init__(self, out: IO[str], *, now: Callable[[], datetime] | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._out = out
        self._now = now or (lambda: datetime.now().astimezone())
        self._clock = clock
        self._shown_at = 0.0
        self._last = ""
        self._remarks: set[tuple[str, str]] = set()

    def run_started(self, run_id: str, stages: Sequence[str]) -> None:
        """See `Progress`."""
        self._line(f"run {run_id}: {' → '.join(stages)}")

    def waiting(self, holder: str) -> None:
        """See `Progress`."""
        self._line(f"waiting for {holder}")

    def stage_started(self, stage: str, why: str) -> None:
        """See `Progress`."""
        self._line(f"{stage:<9} runs: {why}")
        self._shown_at, self._last = self._clock(), ""

    def stage_report(self, stage: str, message: str, done: float | None, total: float | None, memory_bytes: int) -> None:
        """See `Progress`."""
        del memory_bytes
        text = with_share(message, done, total)
        if is_remark(text):
            if (stage, text) not in self._remarks:
                self._remarks.add((stage, text))
                self._line(f"{stage:<9} {text}")
        elif text and text != self._last and self._clock() - self._shown_at >= _QUIET_S:
            self._shown_at, self._last = self._clock(), text
            self._line(f"{stage:<9} {text}")

    def stage_finished(self, stage: str, status: str, seconds: float, memory_bytes: int, note: str) -> None:
        """See `Progress`."""
        cost = "" if status == "cached" else f" in {seconds:.2f} s, {mebibytes(memory_bytes)}"
        self._line(f"{stage:<9} {status}{cost}{': ' + note if note else ''}")

    def close(self) -> None:
        """See `Progress`."""
        self._out.flush()

    def _line(self, text: str) -> None:
        self._out.write(f"{self._now():%H:%M:%S} {text}\n")
        self._out.flush()


class LiveProgress:
    """A table that redraws itself on a terminal."""

    def __init__(self, out: IO[str]) -> None:
        from rich.console import Console
        from rich.live import Live

        self._rows: dict[str, dict[str, Any]] = {}
        self._title = ""
        self._remarks: set[tuple[str, str]] = set()
        self._live: Live = Live(console=Console(file=out), refresh_per_second=8, get_renderable=self._table, transient=False)

    def run_started(self, run_id: str, stages: Sequence[str]) -> None:
        """See `Progress`."""
        self._title = f"run {run_id}"
        self._rows = {stage: {"status": "", "seconds": "", "memory": "", "text": "", "since": 0.0} for stage in stages}
        self._live.start()

    def waiting(self, holder: str) -> None:
        """See `Progress`."""
        self._live.console.print(f"waiting for {holder}", markup=False)

    def stage_started(self, stage: str, why: str) -> None:
        """See `Progress`."""
        self._rows[stage].update(status="runs", text=why, since=time.monotonic())

    def stage_report(self, stage: str, message: str, done: float | None, total: float | None, memory_bytes: int) -> None:
        """See `Progress`."""
        row = self._rows[stage]
        if is_remark(message) and (stage, message) not in self._remarks:
            # A row shows one message at a time; what somebody has to know stays above the table.
            self._remarks.add((stage, message))
            self._live.console.print(f"{stage}: {message}", markup=False, highlight=False)
        row["memory"] = mebibytes(memory_bytes) if memory_bytes else row["memory"]
        row["text"] = with_share(message, done, total) or row["text"]

    def stage_finished(self, stage: str, status: str, seconds: float, memory_bytes: int, note: str) -> None:
        """See `Progress`."""
        shown = "" if status == "cached" else f"{seconds:.2f} s"
        self._rows[stage].update(status=status, seconds=shown, memory=mebibytes(memory_bytes) if memory_bytes and shown else "", text=note)

    def close(self) -> None:
        """See `Progress`."""
        self._live.stop()

    def _table(self) -> "Table":
        from rich import box
        from rich.table import Table
        from rich.text import Text

        colours = {"runs": "yellow", "done": "green", "cached": "cyan", "failed": "red"}
        table = Table(title=self._title, box=box.SIMPLE_HEAD, pad_edge=False, title_justify="left", expand=False)
        for name, justify in (("stage", "left"), ("status", "left"), ("time", "right"), ("memory", "right"), ("", "left")):
            table.add_column(name, justify="right" if justify == "right" else "left", no_wrap=True)
        for stage, row in self._rows.items():
            seconds = f"{time.monotonic() - row['since']:.1f} s" if row["status"] == "runs" else row["seconds"]
            status = Text(row["status"], style=colours.get(row["status"], ""))
            table.add_row(stage, status, seconds, row["memory"], Text(row["text"][:_MAX_MESSAGE], overflow="ellipsis"))
        return table


def choose_progress(*, json_wanted: bool) -> Progress:
    """Return the view for standard error: live on a terminal, lines elsewhere, nothing when JSON is wanted."""
    if json_wanted:
        return SilentProgress()
    return LiveProgress(sys.stderr) if sys.stderr.isatty() else PlainProgress(sys.stderr)


def is_remark(message: str) -> bool:
    """Return whether a stage's message is for a person to keep, and not only about how far it is."""
    return message.startswith(("warning: ", "note: "))


def with_share(message: str, done: float | None, total: float | None) -> str:
    """Return a message with how much of it is done, where that is known."""
    if done is None:
        return message
    return f"{message} ({done:g})" if not total else f"{message} ({done:g} of {total:g})"


def mebibytes(n_bytes: float) -> str:
    """Return a number of bytes for people: `128 MiB`."""
    return f"{n_bytes / 2**20:,.0f} MiB"
