"""A state machine over the registry: the real log, decisions and fold beside a model of twenty lines."""

import tempfile
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from mulle.core.errors import ConflictError, SpecError
from mulle.formats.events import verify_chain
from mulle.loop.release import load_state, promote, register_version, rollback
from mulle.registry.decide import Target, Who, decide_promotion
from mulle.registry.fold import advance, fold
from mulle.registry.state_memory import MemoryStateStore
from mulle.registry.state_sqlite import SqliteStateStore
from mulle.registry.versions import RegistryState, VersionRecord

TARGETS = [Target("이탈", "local", "이탈"), Target("이탈", "production", "이탈"), Target("서울", "local", "이탈")]
targets = st.sampled_from(TARGETS)
numbers = st.integers(-1, 8)


class Expected:
    """What a deployment should look like: a stack of champions, the last in charge."""

    def __init__(self) -> None:
        self.stack: list[int] = []
        self.challenger: int | None = None
        self.generation = 0

    def set(self, number: int) -> None:
        self.stack.append(number)
        self.generation += 1
        self.challenger = None if self.challenger == number else self.challenger


class RegistryMachine(RuleBasedStateMachine):
    """Registers, promotes, rolls back and races, on memory or SQLite."""

    @initialize(sqlite=st.booleans())
    def start(self, sqlite):
        self.folder = tempfile.TemporaryDirectory()
        self.store = SqliteStateStore(Path(self.folder.name) / "state.db") if sqlite else MemoryStateStore()
        self.bundles: list[tuple[int, bool]] = []
        self.expected = {target: Expected() for target in TARGETS}
        self.clock = 0

    def teardown(self):
        if hasattr(self, "folder"):
            self.store.close()
            self.folder.cleanup()

    def who(self) -> Who:
        self.clock += 1
        return Who("민지", self.clock)

    @rule(where=targets, bundle=st.integers(0, 5), passed=st.booleans(), override=st.booleans())
    def register(self, where, bundle, passed, override):
        record = VersionRecord(
            model=where.model,
            number=0,
            bundle_digest=f"{bundle:064x}",
            bundle_path=f"bundles/{bundle:064x}",
            outcome="pass" if passed else "fail",
        )
        if not passed and not override:
            try:
                register_version(self.store, record, where, self.who())
            except SpecError as error:
                self.last_code = error.code
            else:
                self.last_code = "none"
            assert "version-not-passed" == self.last_code
            return
        done = register_version(self.store, record, where, self.who(), override=override)
        new = (bundle, passed) not in self.bundles
        if new:
            self.bundles.append((bundle, passed))
        number = self.bundles.index((bundle, passed)) + 1
        expected = self.expected[where]
        if passed and not expected.stack:
            expected.set(number)
        elif new:
            expected.challenger = number

        assert (number, new) == (done.version.number, done.created)

    @rule(where=targets, number=numbers)
    def promote(self, where, number):
        known = 1 <= number <= len(self.bundles)
        try:
            move = promote(self.store, number, where, self.who())
        except SpecError:
            assert not known
            return
        expected = self.expected[where]
        changed = expected.stack[-1:] != [number]
        if changed:
            expected.set(number)

        assert known
        assert changed == move.changed

    @rule(where=targets)
    def rollback(self, where):
        expected = self.expected[where]
        possible = len(expected.stack) > 1
        try:
            move = rollback(self.store, where, self.who())
        except SpecError:
            assert not possible
            return
        expected.stack.pop()
        number = expected.stack.pop()
        expected.set(number)

        assert possible
        assert number == move.after

    @precondition(lambda self: len(self.bundles) > 1)
    @rule(where=targets, data=st.data())
    def race(self, where, data):
        """Two decide on the same state; only the first is recorded."""
        state = load_state(self.store)
        a, b = (data.draw(st.integers(1, len(self.bundles))) for _ in range(2))
        first, second = (decide_promotion(state, number, where, self.who()) for number in (a, b))
        if not first or not second:
            return
        self.store.append(first, expected_seq=state.seq)
        self.expected[where].set(a)
        try:
            self.store.append(second, expected_seq=state.seq)
        except ConflictError:
            return
        raise AssertionError("the second decision was recorded on a state that was gone")

    @invariant()
    def the_fold_says_what_happened(self):
        if not hasattr(self, "store"):
            return
        state = load_state(self.store)
        assert len(self.bundles) == len(state.models.get("이탈", ()))
        for target, expected in self.expected.items():
            found = state.deployment(target.deployment, target.environment)
            if found is None:
                assert ([], None) == (expected.stack, expected.challenger)
                continue
            assert expected.stack == [*found.previous, *([] if found.champion is None else [found.champion])]
            assert (expected.challenger, expected.generation) == (found.challenger, found.generation)
            assert len(found.history) == found.generation
            assert found.champion is None or found.revision_of(found.champion) is not None

    @invariant()
    def the_log_replays_to_the_same_state(self):
        if not hasattr(self, "store"):
            return
        events = list(self.store.events())
        state = load_state(self.store)
        middle = len(events) // 2
        assert self.store.head() == verify_chain(events)
        assert state == fold(events[middle:], fold(events[:middle]))
        again = RegistryState()
        for event in events:
            again, _ = advance(again, event)
            again, commands = advance(again, event)
            assert () == commands
        assert state == again


TestRegistry = RegistryMachine.TestCase
TestRegistry.settings = settings(max_examples=40, stateful_step_count=15, deadline=None)
