"""The prediction log against a list: whatever is appended, cut, rotated and reopened, a window is what was logged."""

import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from mulle.core.schema import MISSING_TEXT, ColumnType
from mulle.formats.prediction_log import LoggedColumn, LogWriter, PredictionBatch, Source, find_prediction, read_predictions

HOUR_NS = 3_600_000_000_000
SOURCES = tuple(
    Source(
        source=0,
        revision=i + 1,
        model="m",
        model_version=i + 1,
        bundle_digest=str(i) * 64,
        task="multiclass",
        classes=tuple("abc"[: i + 2]),
        columns=(LoggedColumn("x", ColumnType.NUMBER), *([LoggedColumn("글", ColumnType.TEXT)] if i else [])),
    )
    for i in range(2)
)
TEXTS = st.one_of(st.none(), st.text(max_size=5).filter(lambda t: t != MISSING_TEXT))


class LogMachine(RuleBasedStateMachine):
    """Two writers at most, one model: a list of (id, time, revision, x, text)."""

    @initialize()
    def begin(self):
        self.root = Path(tempfile.mkdtemp())
        self.now = 480_000 * HOUR_NS
        self.model: list[tuple[str, int, int, float, str | None]] = []
        self.counted: dict[int, int] = {}
        self.torn = 0
        self.writers = [LogWriter(self.root, "d", prefix=1, max_segment_bytes=600)]
        self.next_prefix = 2

    def teardown(self):
        if hasattr(self, "root"):
            for writer in self.writers:
                writer.close(self.now)
            shutil.rmtree(self.root)

    @rule(
        rows=st.lists(st.tuples(st.floats(-5, 5), TEXTS), min_size=1, max_size=6), source=st.sampled_from(SOURCES), which=st.integers(0, 1)
    )
    def append(self, rows, source, which):
        writer = self.writers[which % len(self.writers)]
        self.now += 1
        first = writer.reserve(len(rows))
        texts = np.array([MISSING_TEXT if text is None else text for _, text in rows], dtype=object)
        arrays = {"x": np.array([x for x, _ in rows]), "글": texts}
        writer.append(
            PredictionBatch(
                source=source,
                time_ns=self.now,
                latency_us=1,
                arrays={c.name: arrays[c.name] for c in source.columns},
                outputs=np.zeros((len(rows), len(source.classes)), np.float32),
                first=first,
            )
        )
        has_text = len(source.columns) > 1
        self.model += [
            (writer.id_of(first + i), self.now, source.revision, x, text if has_text else None) for i, (x, text) in enumerate(rows)
        ]

    @rule(hours=st.integers(1, 3))
    def later(self, hours):
        self.now += hours * HOUR_NS

    @rule(revision=st.integers(0, 2))
    def refuse(self, revision):
        self.writers[0].count(revision, "refused", self.now)
        self.counted[revision] = self.counted.get(revision, 0) + 1

    @rule()
    def flush(self):
        for writer in self.writers:
            writer.flush_outcomes(self.now)
            writer.sync()

    @rule()
    def another_process(self):
        if len(self.writers) == 2:
            self.writers.pop().close(self.now)
        self.writers.append(LogWriter(self.root, "d", prefix=self.next_prefix, max_segment_bytes=600))
        self.next_prefix += 1

    @rule(cut=st.integers(1, 15))
    def a_dead_writer_leaves_half_a_frame(self, cut):
        """A process of its own writes one row and dies inside the frame: nothing it acknowledged is lost."""
        writer = LogWriter(self.root, "d", prefix=10_000 + self.torn)
        source = SOURCES[0]
        batch = PredictionBatch(
            source=source,
            time_ns=self.now,
            latency_us=1,
            arrays={"x": np.zeros(1)},
            outputs=np.zeros((1, 2), np.float32),
            first=writer.reserve(1),
        )
        writer.append(batch)
        (path,) = (self.root / "d").glob(f"*-{10_000 + self.torn:016x}-*")
        os.truncate(path, path.stat().st_size - cut)
        self.torn += 1

    @rule(pick=st.integers(0, 10_000))
    def find(self, pick):
        if self.model:
            prediction_id, time_ns, revision, x, text = self.model[pick % len(self.model)]
            found = find_prediction(self.root, prediction_id)
            expected = {"x": x} | ({"글": text} if revision == 2 else {})

            assert found is not None
            assert (time_ns, revision, expected) == (found.time_ns, found.source.revision, found.features)

    @invariant()
    def a_window_is_what_was_logged(self):
        if not hasattr(self, "root"):
            return
        table = read_predictions(self.root, "d")
        texts = table.columns.get("글", np.full(len(table), MISSING_TEXT, dtype=object)).tolist()
        xs = table.columns["x"].tolist() if len(table) else []
        rows = zip(table.ids, table.time_ns.tolist(), table.revision.tolist(), xs, texts, strict=True)
        found = [(i, t, r, x, None if text == MISSING_TEXT else text) for i, t, r, x, text in rows]

        assert self.model == found
        assert (self.torn, 0, 0) == (table.gaps.damage.torn_tails, table.gaps.damage.corrupt_frames, table.gaps.missing_frames)
        assert [row[0] for row in self.model[-3:]] == read_predictions(self.root, "d", last=3).ids.tolist()

    @invariant()
    def nothing_counted_is_lost(self):
        if not hasattr(self, "root"):
            return
        written = {revision: counts.refused for revision, counts in read_predictions(self.root, "d").outcomes.items()}
        pending = {revision: counts.refused for revision, counts in self.writers[0]._counts.items()}
        both = {r: written.get(r, 0) + pending.get(r, 0) for r in written | pending}

        assert self.counted == {r: n for r, n in both.items() if n}


TestPredictionLog = LogMachine.TestCase
TestPredictionLog.settings = settings(max_examples=40, stateful_step_count=20, deadline=None)
