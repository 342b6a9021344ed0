"""A project's folder may be moved, renamed or copied: MLflow keeps absolute paths of its artefacts, and they must come along.

Everything else under `.mulle/` refers to its neighbours by name. Without this, a moved project would go on writing its
artefacts into the folder it once was, and a copy into its original.
"""

import json
import sqlite3
from contextlib import closing

from mulle.core.errors import UnavailableError
from mulle.loop.paths import StatePaths, folder_unwritable, write_atomic

PLACE = "place.json"
_ADDRESSES = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)
_PATIENCE_S = 20.0


def follow_move(paths: StatePaths) -> int:
    """Return how many addresses in MLflow's own SQLite file were changed because its folder is elsewhere now.

    Where the folder was last is kept beside the file; when it has not moved, this costs one small read.

    Args:
        paths: Of a project whose `mlflow` folder exists.

    Raises:
        UnavailableError: the file is held by somebody, or cannot be written.
    """
    place, here = paths.mlflow / PLACE, str(paths.mlflow)
    try:
        before = str(json.loads(place.read_bytes())["folder"])
    except (OSError, ValueError, KeyError, TypeError):
        before = ""
    if before == here:
        return 0
    changed = _rewrite(paths, before, here) if before and paths.mlflow_db.exists() else 0
    try:
        write_atomic(place, json.dumps({"folder": here}, ensure_ascii=False).encode("utf-8"))
    except OSError as error:
        raise folder_unwritable(paths.mlflow, error) from error
    return changed


def _rewrite(paths: StatePaths, before: str, here: str) -> int:
    changed = 0
    try:
        with closing(sqlite3.connect(paths.mlflow_db, timeout=_PATIENCE_S)) as database, database:
            for table, column in _ADDRESSES:
                known = {str(row[1]) for row in database.execute(f"PRAGMA table_info({table})")}
                if column in known:
                    # Names of tables and columns are the constants above; what comes from outside is bound.
                    query = f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE substr({column}, 1, ?) = ?"  # noqa: S608 - constants
                    changed += database.execute(query, (here, len(before) + 1, len(before) + 1, f"{before}/")).rowcount
    except sqlite3.Error as error:
        raise UnavailableError(
            "tracking-moved",
            f"this project's folder was {before!r} before, and MLflow's database cannot be told: {error}",
            fix="end whatever uses it (`mulle up`, an MLflow server), then run the same command again",
            where=str(paths.mlflow_db),
        ) from error
    return changed
