"""MLflow's own file follows a project's folder when that is moved or copied."""

import sqlite3
from contextlib import closing

import pytest

from mulle.core.errors import UnavailableError
from mulle.loop.moved import follow_move
from mulle.loop.paths import StatePaths


def place(folder, *rows):
    """Return the paths of a state folder with a database that names `rows` as artefacts of runs."""
    paths = StatePaths(folder / ".mulle")
    paths.mlflow.mkdir(parents=True)
    with closing(sqlite3.connect(paths.mlflow_db)) as database, database:
        database.execute("CREATE TABLE runs (artifact_uri TEXT)")
        database.executemany("INSERT INTO runs VALUES (?)", [(row,) for row in rows])
    return paths


def addresses(paths):
    """Return what the database names."""
    with closing(sqlite3.connect(paths.mlflow_db)) as database:
        return [row[0] for row in database.execute("SELECT artifact_uri FROM runs ORDER BY rowid")]


def test_a_moved_folder_takes_its_addresses_along(tmp_path):
    """Addresses below the old folder follow, letter for letter; those elsewhere, and of a neighbour with a longer name, stay."""
    old = tmp_path / "이전 %_"
    inside = f"{old}/.mulle/mlflow/artifacts/이탈/1"
    others = ["s3://bucket/x", f"{old}/.mulle/mlflow-2/x", "/elsewhere"]
    paths = place(old, inside, *others)
    first = follow_move(paths)
    moved = StatePaths(old.rename(tmp_path / "새 곳") / ".mulle")
    changed = follow_move(moved), follow_move(moved)

    assert (0, (1, 0)) == (first, changed)
    assert [inside.replace(str(old), str(tmp_path / "새 곳")), *others] == addresses(moved)


def test_a_folder_that_stays_is_left_alone(tmp_path):
    """Before there is a database, and afterwards, nothing is to be done."""
    paths = StatePaths(tmp_path / ".mulle")
    paths.mlflow.mkdir(parents=True)

    assert [0, 0] == [follow_move(paths), follow_move(paths)]
    assert not paths.mlflow_db.exists()


def test_a_database_that_cannot_be_told_is_named(tmp_path):
    """The move is not forgotten: the next command tries again."""
    paths = place(tmp_path / "a", f"{tmp_path}/a/.mulle/mlflow/x")
    follow_move(paths)
    moved = StatePaths((tmp_path / "a").rename(tmp_path / "b") / ".mulle")
    whole = moved.mlflow_db.read_bytes()
    moved.mlflow_db.write_bytes(b"not a database, but long enough to be taken for one" * 20)
    with pytest.raises(UnavailableError) as caught:
        follow_move(moved)
    moved.mlflow_db.write_bytes(whole)

    assert caught.value.code == "tracking-moved"
    assert 1 == follow_move(moved)
