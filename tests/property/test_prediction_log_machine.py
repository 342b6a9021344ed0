"""The prediction log against a list: whatever is appended, cut, rotated, encoded and let go, a window is what was logged."""

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
from mulle.serve.journal.keeper import Keeper, KeeperConfig

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
ROWS = st.lists(st.tuples(st.floats(-5, 5), TEXTS, st.integers(0, 10**6), st.booleans()), min_size=1, max_size=6)


class LogMachine(RuleBasedStateMachine):
    """Two writers at most, one keeper, one model: a list of (id, time, revision, x, text, latency, writer)."""

    @initialize()
    def begin(self):
        self.root = Path(tempfile.mkdtemp())
        self.now = 480_000 * HOUR_NS
        self.model: list[tuple[str, int, int, float, str | None, int]] = []
        self.stems: dict[str, str] = {}
        self.counted: dict[int, int] = {}
        self.torn = 0
        self.own_ids = 0
        self.writers = [LogWriter(self.root, "d", prefix=1, max_segment_bytes=600)]
        self.next_prefix = 2

    def teardown(self):
        if hasattr(self, "root"):
            for writer in self.writers:
                writer.close(self.now)
            shutil.rmtree(self.root)

    def batch(self, writer, rows, source):
        """Return a batch of these rows, and what the model has to remember of them."""
        first = writer.reserve(len(rows))
        texts = np.array([MISSING_TEXT if text is None else text for _, text, _, _ in rows], dtype=object)
        chosen = [f"own:{self.own_ids + i}" if own else None for i, (_, _, _, own) in enumerate(rows)]
        self.own_ids += len(rows)
        has_text = len(source.columns) > 1
        made = PredictionBatch(
            source=source,
            time_ns=self.now,
            latency_us=np.array([latency for _, _, latency, _ in rows], dtype=np.uint32),
            numbers=np.array([[x] for x, _, _, _ in rows]),
            texts={"글": texts} if has_text else None,
            outputs=np.zeros((len(rows), len(source.classes)), np.float32),
            first=first,
            ids=chosen if any(chosen) else None,
            n_requests=len(rows),
        )
        remembered = [
            (chosen[i] or writer.id_of(first + i), self.now, source.revision, x, text if has_text else None, latency)
            for i, (x, text, latency, _) in enumerate(rows)
        ]
        return made, remembered

    @rule(flush=st.lists(st.tuples(ROWS, st.sampled_from(SOURCES)), min_size=1, max_size=3), which=st.integers(0, 1))
    def append(self, flush, which):
        writer = self.writers[which % len(self.writers)]
        self.now += 1
        made = [self.batch(writer, rows, source) for rows, source in flush]
        writer.append_all([batch for batch, _ in made])
        for _, remembered in made:
            self.model += remembered
            self.stems |= dict.fromkeys((row[0] for row in remembered), writer._segment.path.stem)

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
            mark = writer.written_through()

            assert writer.sync() >= mark

    @rule()
    def another_process(self):
        if len(self.writers) == 2:
            self.writers.pop().close(self.now)
        self.writers.append(LogWriter(self.root, "d", prefix=self.next_prefix, max_segment_bytes=600))
        self.next_prefix += 1

    @rule()
    def a_writer_is_killed(self):
        """Without a word: its counts are gone, its rows are not, and its lock is let go."""
        if len(self.writers) == 2:
            writer = self.writers.pop()
            for segment in (writer._segment, *writer._retired):
                if segment is not None:
                    segment.close()

    @rule(cut=st.integers(1, 15))
    def a_dead_writer_leaves_half_a_frame(self, cut):
        """A process of its own writes one row and dies inside the frame: nothing it acknowledged is lost."""
        writer = LogWriter(self.root, "d", prefix=10_000 + self.torn)
        batch, _ = self.batch(writer, [(0.0, None, 1, False)], SOURCES[0])
        writer.append(batch)
        path = writer._segment.path
        os.truncate(path, path.stat().st_size - cut)
        writer._segment.close()
        self.torn += 1

    @rule()
    def a_keeper_looks(self):
        """Every segment nobody writes to is encoded; the others are left alone."""
        status = Keeper(KeeperConfig(root=self.root), now_ns=lambda: self.now).look()
        still = {segment.path.name for writer in self.writers for segment in (writer._segment, *writer._retired) if segment is not None}

        assert ("", 0) == (status.last_error, status.pending_segments)
        assert still == {path.name for path in (self.root / "d").glob("*.mseg")}

    @rule(days=st.floats(0, 0.3))
    def a_keeper_lets_go(self, days):
        """What is older goes whole, and only what is encoded."""
        before = {path.stem for path in (self.root / "d").glob("*.mcol")}
        Keeper(KeeperConfig(root=self.root, keep_days=days), now_ns=lambda: self.now).look()
        # The look encodes first, so that a segment may come and go in it: what is gone is what has no file now.
        left = {path.stem for path in (self.root / "d").glob("predictions-*")}
        gone = (before | set(self.stems.values())) - left
        self.model = [row for row in self.model if self.stems[row[0]] not in gone]
        edge = self.now - days * 24 * HOUR_NS
        self.torn -= self.torn - len(
            [path for path in (self.root / "d").glob("predictions-*") if int(path.name.split("-")[2], 16) >= 10_000]
        )

        assert not [row for row in self.model if row[1] // HOUR_NS * HOUR_NS + HOUR_NS < edge and self.closed(row[0])]

    def closed(self, prediction_id):
        """Return whether the segment of a row is encoded."""
        return (self.root / "d" / f"{self.stems[prediction_id]}.mcol").exists()

    @rule(pick=st.integers(0, 10_000))
    def find(self, pick):
        if self.model:
            prediction_id, time_ns, revision, x, text, latency = self.model[pick % len(self.model)]
            found = find_prediction(self.root, prediction_id)
            expected = {"x": x} | ({"글": text} if revision == 2 else {})

            assert found is not None
            assert (time_ns, revision, expected, latency) == (found.time_ns, found.source.revision, found.features, found.latency_us)

    @invariant()
    def a_window_is_what_was_logged(self):
        if not hasattr(self, "root"):
            return
        table = read_predictions(self.root, "d")
        texts = table.columns.get("글", np.full(len(table), MISSING_TEXT, dtype=object)).tolist()
        xs = table.columns["x"].tolist() if len(table) else []
        rows = zip(table.ids, table.time_ns.tolist(), table.revision.tolist(), xs, texts, table.latency_us.tolist(), strict=True)
        found = [(i, t, r, x, None if text == MISSING_TEXT else text, latency) for i, t, r, x, text, latency in rows]

        assert self.model == found
        assert (self.torn, 0, 0) == (table.gaps.damage.torn_tails, table.gaps.damage.corrupt_frames, table.gaps.missing_frames)
        assert [row[0] for row in self.model[-3:]] == read_predictions(self.root, "d", last=3).ids.tolist()

    @invariant()
    def a_part_of_a_window_is_that_part(self):
        if not hasattr(self, "root") or not self.model:
            return
        since, until = self.model[len(self.model) // 3][1], self.model[-1][1]
        table = read_predictions(self.root, "d", since_ns=since, until_ns=until)

        assert [row[0] for row in self.model if since <= row[1] < until] == table.ids.tolist()


TestPredictionLog = LogMachine.TestCase
TestPredictionLog.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)


class CountMachine(RuleBasedStateMachine):
    """Outcomes against a dictionary, through flushes and encoding."""

    @initialize()
    def begin(self):
        self.root = Path(tempfile.mkdtemp())
        self.now = 480_000 * HOUR_NS
        self.writer = LogWriter(self.root, "d", prefix=1, max_segment_bytes=300)
        self.counted: dict[tuple[int, str], int] = {}

    def teardown(self):
        if hasattr(self, "root"):
            self.writer.close(self.now)
            shutil.rmtree(self.root)

    @rule(
        revision=st.integers(0, 2),
        outcome=st.sampled_from(["refused", "failed", "unlogged", "shed", "expired", "cancelled"]),
        n=st.integers(1, 9),
    )
    def count(self, revision, outcome, n):
        self.writer.count(revision, outcome, self.now, n)
        self.counted[revision, outcome] = self.counted.get((revision, outcome), 0) + n

    @rule(seconds=st.integers(0, 4000))
    def flush(self, seconds):
        self.now += seconds * 10**9
        self.writer.flush_outcomes(self.now)
        self.writer.sync()

    @rule()
    def encode(self):
        Keeper(KeeperConfig(root=self.root), now_ns=lambda: self.now).look()

    @invariant()
    def nothing_counted_is_lost(self):
        if not hasattr(self, "root"):
            return
        written = read_predictions(self.root, "d").outcomes
        found: dict[tuple[int, str], int] = {}
        for part in (written, self.writer._counts):
            for revision, counts in part.items():
                for outcome in counts.__struct_fields__:
                    found[revision, outcome] = found.get((revision, outcome), 0) + getattr(counts, outcome)

        assert self.counted == {key: n for key, n in found.items() if n}


TestPredictionCounts = CountMachine.TestCase
TestPredictionCounts.settings = settings(max_examples=40, stateful_step_count=20, deadline=None)
