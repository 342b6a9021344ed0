"""The file of feature rows: what is written is read, and nothing else."""

import numpy as np
import pytest

from mulle.core.errors import CheckError, SpecError
from mulle.core.schema import Column, ColumnType
from mulle.formats.feature_rows import MAGIC, FeatureRow, FeatureTable, read_feature_rows, write_feature_rows

COLUMNS = (
    Column("tenure", ColumnType.NUMBER),
    Column("since", ColumnType.DATETIME),
    Column("active", ColumnType.BOOLEAN),
    Column("계약", ColumnType.TEXT),
)


def write(path, rows, columns=COLUMNS):
    return write_feature_rows(path, rows, service="customers", entity="customer_id", columns=columns, now_ns=7)


def code_of(data):
    """Return the code of the error that reading `data` raises."""
    with pytest.raises(CheckError) as caught:
        FeatureTable(data)
    return caught.value.code


def test_what_is_written_is_read(tmp_path):
    """Five thousand rows, every one found again; datetimes come back as seconds."""
    path = tmp_path / "customers.features"
    rows = [FeatureRow(f"고객-{i}", {"tenure": i / 3, "since": "1970-01-02", "active": i % 2, "계약": "월별"}, i) for i in range(5000)]
    written = write(path, rows)
    table = read_feature_rows(path)

    assert (5000, 5000, "customers", "customer_id", 7) == (written, len(table), table.service, table.entity, table.written_ns)
    assert [column.name for column in COLUMNS] == [column.name for column in table.columns]
    assert all(
        table.get(f"고객-{i}") == FeatureRow(f"고객-{i}", {"tenure": i / 3, "since": 86400.0, "active": bool(i % 2), "계약": "월별"}, i)
        for i in range(5000)
    )
    assert None is table.get("고객-5000")
    assert {row.entity for row in rows} == {row.entity for row in table}
    assert [path.name] == [file.name for file in tmp_path.iterdir()]


def test_absent_null_and_nan_are_missing(tmp_path):
    """One kind of missing, and numbers of numpy are numbers."""
    path = tmp_path / "f"
    write(path, [FeatureRow("a", {"tenure": float("nan"), "계약": None}), FeatureRow("b", {"tenure": np.float32(0.5), "active": True})])
    table = read_feature_rows(path)

    assert {"tenure": None, "since": None, "active": None, "계약": None} == table.get("a").values
    assert {"tenure": 0.5, "since": None, "active": True, "계약": None} == table.get("b").values


def test_a_file_without_rows_is_a_file(tmp_path):
    """A service nobody has materialised yet knows nobody."""
    write(tmp_path / "f", [])
    table = read_feature_rows(tmp_path / "f")

    assert (0, None, []) == (len(table), table.get("a"), list(table))


@pytest.mark.parametrize(
    ("rows", "code"),
    [
        pytest.param([FeatureRow("a", {}), FeatureRow("b", {}), FeatureRow("a", {})], "features-entity-twice", id="an entity twice"),
        pytest.param([FeatureRow("", {})], "features-entity", id="an entity without a name"),
        pytest.param([FeatureRow("a" * 513, {})], "features-entity", id="an entity of 513 characters"),
        pytest.param([FeatureRow("\ud800", {})], "features-entity", id="half a character"),
        pytest.param([FeatureRow("a", {"tenure": "3"})], "rows-wrong-type", id="a number in quotes"),
        pytest.param([FeatureRow("a", {"tenure": float("inf")})], "rows-not-finite", id="an infinite number"),
        pytest.param([FeatureRow("a", {"since": "yesterday"})], "rows-bad-datetime", id="a word for a day"),
        pytest.param([FeatureRow("a", {"tenur": 3})], "rows-unknown-column", id="a column the service does not have"),
    ],
)
def test_rows_that_could_not_be_scored_are_not_written(tmp_path, rows, code):
    """Refused with the entity's name, and the old file stays as it was."""
    path = tmp_path / "f"
    write(path, [FeatureRow("old", {})])
    before = path.read_bytes()
    with pytest.raises(SpecError) as caught:
        write(path, [FeatureRow("fine", {}), *rows])

    assert code == caught.value.code
    assert before == path.read_bytes()
    assert not code.startswith("rows-") or "'a'" in caught.value.what


def test_a_column_that_may_not_be_missing_is_not(tmp_path):
    """The writer's own promise is checked."""
    with pytest.raises(SpecError, match="'a'"):
        write(tmp_path / "f", [FeatureRow("a", {"tenure": None})], [Column("tenure", ColumnType.NUMBER, nullable=False)])


def test_every_damaged_byte_is_noticed(tmp_path):
    """One bit anywhere, or any end missing: refused, never read as something else."""
    path = tmp_path / "f"
    write(path, [FeatureRow("a", {"tenure": 1}), FeatureRow("b", {"tenure": 2})])
    whole = path.read_bytes()
    damaged = [whole[:i] + bytes([whole[i] ^ 1]) + whole[i + 1 :] for i in range(len(whole))]
    damaged += [whole[:n] for n in range(len(whole))] + [whole + b"\0", b"", MAGIC, MAGIC + b"\xff" * 60]

    assert {"features-unreadable"} == {code_of(data) for data in damaged}
