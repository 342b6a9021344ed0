"""The values everything else is made of: errors, canonical bytes, names, schemas, the project."""

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mulle.core.canonical import canonical_json, digest_bytes, digest_file, digest_value, is_digest
from mulle.core.errors import CheckError, ConflictError, MulleError, SpecError, UnavailableError, UserCodeError
from mulle.core.names import require_name
from mulle.core.project import Project
from mulle.core.schema import Column, ColumnType, Schema
from mulle.core.search_space import choice, integer, log_uniform, uniform

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def test_an_error_prints_what_happened_what_was_compared_and_what_to_do():
    """The text a person reads holds sentence, place, facts and fix, aligned."""
    error = CheckError("gate-latency", "too slow", fix="quantise", where="mulle.toml:14", facts={"measured": "7.8 ms", "allowed": "5.0 ms"})

    expected = "error[gate-latency]: too slow (mulle.toml:14)\n  measured  7.8 ms\n  allowed   5.0 ms\n  fix       quantise"
    assert expected == str(error)


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        pytest.param(SpecError, 2, id="wrong input is usage"),
        pytest.param(UserCodeError, 2, id="a raising user function is usage"),
        pytest.param(CheckError, 1, id="a check that says no is 1"),
        pytest.param(ConflictError, 2, id="a conflict is not a failed check"),
        pytest.param(UnavailableError, 2, id="an outage is not a failed check"),
    ],
)
def test_errors_have_exit_codes(kind, code):
    """Only a check that said no exits with 1."""
    assert code == kind("x", "y", fix="z").exit_code


def test_an_error_survives_the_way_between_processes():
    """Multiprocessing copies exceptions; ours keep every field."""
    error = UserCodeError("c", "w", fix="f", where="a.py:1", facts={"k": "v"})

    copy = pickle.loads(pickle.dumps(error))  # noqa: S301  a copy in memory, not from disk

    assert (type(error), error.to_dict()) == (type(copy), copy.to_dict())


@given(JSON)
def test_canonical_json_is_one_encoding_per_value(value):
    """Decoding and encoding again gives the same bytes, whatever the order of keys."""
    import json

    data = canonical_json(value)

    assert data == canonical_json(json.loads(data))


@pytest.mark.parametrize(
    "value", [float("nan"), float("inf"), b"x", {1, 2}, {"a": object()}], ids=["NaN", "infinity", "bytes", "set", "object"]
)
def test_canonical_json_refuses_what_json_cannot_say(value):
    """A value that would have to be approximated is refused."""
    with pytest.raises(SpecError) as caught:
        canonical_json(value)

    assert caught.value.code == "canonical-json"


def test_digests_of_file_bytes_and_value_agree(tmp_path):
    """One SHA-256, whichever door it came through."""
    (tmp_path / "f").write_bytes(b'{"a":1}')

    assert digest_file(tmp_path / "f") == digest_bytes(b'{"a":1}') == digest_value({"a": 1})
    assert is_digest(digest_value(1))
    assert not is_digest("G" * 64)


@pytest.mark.parametrize("name", ["churn", "이탈-예측", "a", "Ñandú_2.1", "x" * 63])
def test_names_of_any_script_are_taken(name):
    """Letters and digits of every script may name things."""
    assert name == require_name(name, "a project")


@pytest.mark.parametrize(
    "name",
    [
        *("", ".", "..", "../x", "/etc", "a/b", "a\\b", "C:", "a b", "-x", "x" * 64, "con", "NUL", "a..b", "a.", "a\x00"),
        "e\u0301",
        "\u1112\u1161\u11ab",
    ],
    ids=repr,
)
def test_hostile_names_are_refused(name):
    """Nothing that could leave a folder, confuse a shell or have two spellings becomes a name."""
    with pytest.raises(SpecError) as caught:
        require_name(name, "a project")

    assert caught.value.code == "name-invalid"


def test_a_schema_refuses_a_column_twice_and_survives_json():
    """Names are unique; the JSON form comes back equal."""
    schema = Schema((Column("나이", ColumnType.NUMBER), Column("x", ColumnType.TEXT, nullable=False)))

    assert schema == Schema.from_list(schema.to_list())
    assert ("나이",) == schema.select(["나이"]).names
    with pytest.raises(SpecError, match="twice"):
        Schema((Column("x", ColumnType.TEXT), Column("x", ColumnType.NUMBER)))


def test_decorators_return_the_function_unchanged():
    """A project's functions stay plain: callable and testable."""
    project = Project("p", task="binary", target="y")

    def rows() -> int:
        return 7

    assert rows is project.source(rows)
    assert rows is project.model(rows)
    assert 7 == project.models["rows"].function()


def test_a_second_source_is_refused_at_its_line():
    """The error names both functions and points at the second."""
    project = Project("p", task="binary", target="y")
    project.source(lambda: 1)

    def second() -> None: ...

    with pytest.raises(SpecError) as caught:
        project.source(second)

    assert f"{__file__}:{second.__code__.co_firstlineno}" == caught.value.where


def test_a_search_space_must_name_parameters_of_the_function():
    """A typo in the space is found when the project is read, not in the tenth trial."""
    project = Project("p", task="binary", target="y")

    def trees(depth: int = 3) -> int:
        return depth

    with pytest.raises(SpecError, match="dept") as caught:
        project.model(search={"dept": integer(1, 3)})(trees)

    assert "depth" in caught.value.fix


@pytest.mark.parametrize(
    "make",
    [lambda: uniform(1, 1), lambda: integer(3, 2), lambda: log_uniform(0, 1), choice],
    ids=["an empty range", "a turned range", "a logarithm from zero", "no options"],
)
def test_impossible_dimensions_are_refused(make):
    """A dimension that holds nothing is an error where it is written."""
    with pytest.raises(SpecError) as caught:
        make()

    assert caught.value.code == "search-range"


def test_every_error_is_a_mulle_error():
    """One class to catch at the edge."""
    assert {SpecError, CheckError, ConflictError, UnavailableError} == set(MulleError.__subclasses__())
