"""The fold: what each event does to the state, what it commands, and what it refuses."""

import msgspec
import pytest

from mulle.core.errors import CheckError
from mulle.formats.events import GENESIS, Event, EventDraft, seal_drafts
from mulle.registry.decide import Target, Who, decide_promotion, decide_registration, decide_rollback
from mulle.registry.fold import ProjectAliases, ProjectVersion, WriteSpec, advance, fold
from mulle.registry.versions import RegistryState, VersionRecord

TARGET = Target("이탈", "local", "이탈")


class Log:
    """Events decided one after the other, as the release desk would."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.state = RegistryState()
        self.commands: list[object] = []

    def add(self, drafts) -> "Log":
        events = seal_drafts(drafts, seq=self.state.seq, prev=self.events[-1].hash if self.events else GENESIS)
        self.commands = []
        for event in events:
            self.state, commands = advance(self.state, event)
            self.commands += commands
        self.events += events
        return self

    def register(self, digit: str, outcome: str = "pass", *, override: bool = False, target: Target = TARGET) -> "Log":
        record = VersionRecord(model=target.model, number=0, bundle_digest=digit * 64, bundle_path=f"bundles/{digit * 64}", outcome=outcome)
        return self.add(decide_registration(self.state, record, target, self.who("등록"), override=override)[1])

    def promote(self, number: int, target: Target = TARGET) -> "Log":
        return self.add(decide_promotion(self.state, number, target, self.who("좋다")))

    def rollback(self) -> "Log":
        return self.add(decide_rollback(self.state, TARGET, self.who("나쁘다")))

    def who(self, reason: str) -> Who:
        return Who("민지", 1000 + self.state.seq, reason)

    @property
    def deployment(self):
        return self.state.require_deployment("이탈", "local")

    def pointers(self) -> tuple[int | None, int | None, int]:
        return self.deployment.champion, self.deployment.challenger, self.deployment.generation


def test_the_first_passing_version_becomes_champion_and_later_ones_challenger():
    """Pointers and generation after one, two and three registrations; only a new champion raises the generation."""
    log = Log()

    assert (1, None, 1) == log.register("a").pointers()
    assert [ProjectVersion("이탈", 1), WriteSpec("이탈", "local"), ProjectAliases("이탈")] == log.commands
    assert (1, 2, 1) == log.register("b").pointers()
    assert [ProjectVersion("이탈", 2), ProjectAliases("이탈")] == log.commands
    assert (1, 3, 1) == log.register("c").pointers()


def test_a_version_registered_against_its_verdict_never_becomes_champion_by_itself():
    """It is challenger, says who overrode the gates, and the first that passes becomes champion."""
    log = Log().register("a", "fail", override=True)

    assert (None, 1, 0) == log.pointers()
    assert "민지" == log.state.require_version("이탈", 1).overridden_by
    assert (2, 1, 1) == log.register("b").pointers()


def test_promotion_and_rollback_walk_the_same_path_back():
    """Champions 1, 2, 3; rolling back twice gives 2, then 1, each with a new generation and the revision it had."""
    log = Log().register("a").register("b").register("c")
    log.promote(2).promote(3)
    there = (log.pointers(), log.deployment.previous, [r.model_version for r in log.deployment.revisions])
    log.rollback()
    once = log.pointers()
    log.rollback()

    assert ((3, None, 3), (1, 2), [1, 2, 3]) == there
    assert (2, None, 4) == once
    assert (1, None, 5) == log.pointers()
    assert 1 == log.deployment.revision_of(1).number
    assert ["first", "promoted", "promoted", "rolled-back", "rolled-back"] == [change.how for change in log.deployment.history]
    assert [(None, 1), (1, 2), (2, 3), (3, 2), (2, 1)] == [(change.before, change.after) for change in log.deployment.history]
    assert [WriteSpec("이탈", "local"), ProjectAliases("이탈")] == log.commands


def test_aliases_are_those_of_the_deployment_called_like_the_model():
    """A second deployment has its own champion and moves no alias; without a namesake there is an alias only if it is clear."""
    other = Target("서울", "local", "이탈")
    third = Target("부산", "local", "이탈")
    log = Log().register("a", target=other)
    only = log.state.aliases("이탈", "local")
    log.register("b", target=third)
    unclear = log.state.aliases("이탈", "local")
    log.promote(2)

    assert {"champion": 1} == only
    assert {} == unclear
    assert {"champion": 2} == log.state.aliases("이탈", "local")
    assert {} == log.state.aliases("이탈", "production")


def test_an_event_again_changes_nothing_and_commands_nothing():
    """Folding is idempotent: carrying on after a crash may see events twice."""
    log = Log().register("a").register("b")

    for event in log.events:
        assert (log.state, ()) == advance(log.state, event)
    assert log.state == fold(log.events)
    assert log.state == fold(log.events[2:], fold(log.events[:2]))


def test_drift_is_open_until_repaired():
    """An edit seen in the tracking server is remembered between the two events."""
    log = Log().register("a")
    log.add([EventDraft(time_ns=1, actor="mulle", kind="projection-drift", subject="model/이탈", after=[{"what": "alias"}])])
    opened = dict(log.state.open_drifts)
    log.add([EventDraft(time_ns=2, actor="mulle", kind="projection-repaired", subject="model/이탈")])

    assert {"model/이탈": [{"what": "alias"}]} == opened
    assert {} == log.state.open_drifts
    assert [] == log.commands


def _changed(event: Event, **fields) -> Event:
    return msgspec.structs.replace(event, **fields).sealed()


def _after(event: Event, **fields) -> Event:
    return _changed(event, after={**event.after, **fields})


CHAMPION = {"deployment": "이탈", "environment": "local", "model": "이탈", "champion": 1, "challenger": None, "generation": 2, "reason": ""}


@pytest.mark.parametrize(
    ("spoil", "code"),
    [
        pytest.param(lambda e: _changed(e, seq=e.seq + 1), "events-gap", id="an event before it is missing"),
        pytest.param(lambda e: _changed(e, kind="champion-eaten"), "event-kind-unknown", id="a kind nobody knows"),
        pytest.param(
            lambda e: _changed(e, before={"champion": None, "challenger": None}), "event-misfit", id="it replaces what was not there"
        ),
        pytest.param(lambda e: _changed(e, before=None), "event-misfit", id="it does not say what it replaces"),
        pytest.param(lambda e: _changed(e, subject="deployment/이탈@production"), "event-misfit", id="another subject than it speaks of"),
        pytest.param(lambda e: _after(e, champion=9), "event-misfit", id="a version nobody registered"),
        pytest.param(lambda e: _after(e, generation=7), "event-misfit", id="a generation that jumps"),
        pytest.param(lambda e: _after(e, model="다른"), "event-misfit", id="another model in the same deployment"),
        pytest.param(lambda e: _after(e, extra=1), "event-misfit", id="a field nobody knows"),
        pytest.param(lambda e: _changed(e, kind="rolled-back"), "event-misfit", id="back to what was never champion"),
    ],
)
def test_an_event_that_does_not_fit_stops_the_fold(spoil, code):
    """The fold does not guess: it names the event and stops."""
    log = Log().register("a").register("b")
    before = log.state
    log.promote(2)
    good = log.events[-1]

    with pytest.raises(CheckError) as caught:
        advance(before, spoil(good))

    assert code == caught.value.code


@pytest.mark.parametrize(
    "fields", [pytest.param({"number": 3}, id="a number that jumps"), pytest.param({"model": "다른"}, id="another model than its subject")]
)
def test_a_version_that_does_not_follow_is_refused(fields):
    """Version numbers have no gaps."""
    log = Log().register("a")
    before = log.state
    log.register("b")
    registered = next(event for event in log.events if event.kind == "version-registered" and event.after["number"] == 2)

    with pytest.raises(CheckError) as caught:
        advance(before, _after(registered, **fields))

    assert "event-misfit" == caught.value.code
