"""Who becomes champion: the decisions that are refused, and those that need nothing to be done."""

import pytest

from mulle.core.errors import SpecError
from mulle.formats.events import GENESIS, seal_drafts
from mulle.registry.decide import Target, Who, decide_promotion, decide_registration, decide_rollback
from mulle.registry.fold import fold
from mulle.registry.versions import RegistryState, VersionRecord

TARGET = Target("churn", "local", "churn")
WHO = Who("minji", 1)


def record(digit: str, outcome: str = "pass", model: str = "churn") -> VersionRecord:
    return VersionRecord(model=model, number=0, bundle_digest=digit * 64, bundle_path="bundles/x", outcome=outcome)


def after(state: RegistryState, drafts) -> RegistryState:
    return fold(seal_drafts(drafts, seq=state.seq, prev=GENESIS), state)


@pytest.fixture
def one() -> RegistryState:
    """Return a registry with one version, champion of its deployment."""
    return after(RegistryState(), decide_registration(RegistryState(), record("a"), TARGET, WHO)[1])


def test_the_same_bundle_is_the_same_version(one):
    """Registering again, as a resumed run does, records nothing and gives the number it has."""
    assert (1, ()) == decide_registration(one, record("a"), TARGET, WHO)


def test_a_known_version_becomes_champion_where_there_is_none(one):
    """The same bundle meant for another deployment is not a new version there, and serves."""
    number, drafts = decide_registration(one, record("a"), Target("churn", "production", "churn"), WHO)

    assert 1 == number
    assert ["champion-set"] == [draft.kind for draft in drafts]


def test_promoting_the_champion_needs_nothing(one):
    """No event without a change."""
    assert () == decide_promotion(one, 1, TARGET, WHO)


@pytest.mark.parametrize(
    ("decide", "code"),
    [
        pytest.param(
            lambda s: decide_registration(s, record("b", "fail"), TARGET, WHO),
            "version-not-passed",
            id="a failed verdict, nobody overrides",
        ),
        pytest.param(
            lambda s: decide_registration(s, record("b", "inconclusive"), TARGET, WHO), "version-not-passed", id="an inconclusive one"
        ),
        pytest.param(lambda s: decide_promotion(s, 2, TARGET, WHO), "version-unknown", id="a version that is not there"),
        pytest.param(lambda s: decide_promotion(s, 0, TARGET, WHO), "version-unknown", id="version zero"),
        pytest.param(lambda s: decide_promotion(s, -1, TARGET, WHO), "version-unknown", id="a negative version"),
        pytest.param(lambda s: decide_rollback(s, TARGET, WHO), "rollback-none", id="nothing to go back to"),
        pytest.param(
            lambda s: decide_rollback(s, Target("other", "local", "churn"), WHO), "deployment-unknown", id="an unknown deployment"
        ),
        pytest.param(
            lambda s: decide_registration(s, record("b", model="price"), Target("churn", "local", "price"), WHO),
            "deployment-model",
            id="another model into a deployment that is taken",
        ),
    ],
)
def test_a_decision_that_makes_no_sense_is_refused(one, decide, code):
    """Each refusal has its code, and says what to do."""
    with pytest.raises(SpecError) as caught:
        decide(one)

    assert code == caught.value.code
    assert caught.value.fix


def test_an_unknown_version_lists_the_known_ones(one):
    """The error shows what there is."""
    with pytest.raises(SpecError) as caught:
        one.require_version("churn", 7)

    assert "1" == caught.value.facts["versions"]
