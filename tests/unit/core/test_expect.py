"""The recorder of expectations: what it records, and what it refuses at once."""

import re
from datetime import date, datetime

import pytest

from mulle.core.errors import SpecError
from mulle.core.expect import AllowMissing, Between, Expect, HasType, IsIn, LabelShare, Matches, MinRows, NoDuplicateRows, NotNull, Unique
from mulle.core.schema import ColumnType


def record(function):
    """Return the rules `function` records."""
    t = Expect()
    function(t)
    return t.rules


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        pytest.param(
            lambda t: t.column("고객").unique().not_null(), [Unique("고객"), NotNull("고객")], id="calls chain, Korean names are names"
        ),
        pytest.param(lambda t: t.column("x").between(0, None), [Between("x", 0, None)], id="one end may stay open"),
        pytest.param(
            lambda t: t.column("d").between(date(2020, 1, 1), datetime(2021, 1, 1)),  # noqa: DTZ001 - naive is UTC in tables
            [Between("d", date(2020, 1, 1), datetime(2021, 1, 1))],  # noqa: DTZ001
            id="dates and timestamps compare",
        ),
        pytest.param(lambda t: t.column("x").isin([1, 2.5]), [IsIn("x", (1, 2.5))], id="whole and real numbers mix"),
        pytest.param(lambda t: t.column("x").matches("a+"), [Matches("x", "a+")], id="a pattern"),
        pytest.param(lambda t: t.column("x").type("text"), [HasType("x", ColumnType.TEXT)], id="a type"),
        pytest.param(lambda t: t.column("x").allow_missing(0.8), [AllowMissing("x", 0.8)], id="a share that may be missing"),
        pytest.param(
            lambda t: t.min_rows(3).no_duplicate_rows().label_share(0.2, 0.8),
            [MinRows(3), NoDuplicateRows(), LabelShare(0.2, 0.8)],
            id="rules of the table chain too",
        ),
    ],
)
def test_calls_become_rules_in_order(function, expected):
    """Each call leaves one plain rule, whatever line it stands on."""
    found = [type(rule)(**{n: getattr(rule, n) for n in rule.__dataclass_fields__ if n != "where"}) for rule in record(function)]

    assert expected == found


@pytest.mark.parametrize(
    "function",
    [
        pytest.param(lambda t: t.column("x").between(2, 1), id="an empty range"),
        pytest.param(lambda t: t.column("x").between(None, None), id="a range without ends"),
        pytest.param(lambda t: t.column("x").between(float("nan"), 1), id="NaN as an end"),
        pytest.param(lambda t: t.column("x").between(0, date(2020, 1, 1)), id="a number against a date"),
        pytest.param(lambda t: t.column("x").isin([]), id="nothing is allowed"),
        pytest.param(lambda t: t.column("x").isin("ab"), id="one text in place of a list"),
        pytest.param(lambda t: t.column("x").isin(["a", 1]), id="mixed types"),
        pytest.param(lambda t: t.column("x").isin([None]), id="None is missing, not a value"),
        pytest.param(lambda t: t.column("x").matches("("), id="a broken pattern"),
        pytest.param(lambda t: t.column("x").type("integer"), id="a type that is not Mulle's"),
        pytest.param(lambda t: t.column("x").allow_missing(50), id="per cent in place of a share"),
        pytest.param(lambda t: t.column(""), id="a column without a name"),
        pytest.param(lambda t: t.min_rows(0), id="an empty table allowed"),
        pytest.param(lambda t: t.label_share(0.9, 0.1), id="an empty range of shares"),
        pytest.param(lambda t: t.pandera(3), id="no pandera model"),
    ],
)
def test_a_rule_that_cannot_mean_anything_is_refused_with_its_line(function):
    """The error names this file and the line of the call."""
    with pytest.raises(SpecError) as caught:
        record(function)

    assert caught.value.code == "expect-rule"
    assert re.search(r"test_expect\.py:\d+$", caught.value.where)


def test_a_rule_remembers_where_it_was_written():
    """Failures can point into the user's file."""
    (rule,) = record(lambda t: t.column("x").not_null())

    assert rule.where.startswith(__file__)
