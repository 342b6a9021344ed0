"""The cache of finished stages: `.mulle/stages/<stage>/<key>/`, each folder whole or absent.

A stage fills a draft beside the cache. Committing syncs the files, writes `record.json` last, and renames the draft into
place: a kill at any point leaves either nothing or everything. `last` in a stage's folder names the key used most
recently, which is what a new plan is compared with.
"""

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from mulle.core.canonical import digest_value, is_digest
from mulle.loop.paths import StatePaths, folder_unwritable, write_atomic
from mulle.loop.record import RECORD_FILE, StageRecord, read_record

_LAST = "last"


def stage_key(ingredients: dict[str, object]) -> str:
    """Return the key of a stage: SHA-256 of the canonical JSON of everything its result depends on."""
    return digest_value(ingredients)


@dataclass(frozen=True, slots=True)
class StageCache:
    """The cache of one project.

    One process writes at a time (it holds the run lock); any number may read.
    """

    paths: StatePaths

    def folder(self, stage: str, key: str) -> Path:
        """Return where the result of `stage` under `key` lies, or would lie."""
        return self.paths.stages / stage / key

    def find(self, stage: str, key: str) -> StageRecord | None:
        """Return the record of a finished stage whose files are all still there with their sizes; else None."""
        folder = self.folder(stage, key)
        record = read_record(folder)
        if record is None or record.key != key or record.stage != stage:
            return None
        for name, size in record.files.items():
            try:
                if (folder / name).stat().st_size != size:
                    return None
            except OSError:
                return None
        return record

    def last(self, stage: str) -> StageRecord | None:
        """Return the record a stage used most recently, or None."""
        try:
            key = (self.paths.stages / stage / _LAST).read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError):
            return None
        return read_record(self.folder(stage, key)) if is_digest(key) else None

    def remember(self, stage: str, key: str) -> None:
        """Name `key` as the one `stage` used most recently."""
        pointer = self.paths.stages / stage / _LAST
        try:
            if pointer.exists() and pointer.read_text(encoding="ascii") == key:
                return
            write_atomic(pointer, key.encode("ascii"))
        except OSError as error:
            raise folder_unwritable(pointer.parent, error) from error

    def draft(self, stage: str, run_id: str) -> Path:
        """Return a new empty folder for a stage to fill.

        Raises:
            UnavailableError: the state folder cannot be written.
        """
        folder = self.paths.stage_drafts / f"{run_id}.{stage}"
        try:
            folder.mkdir(parents=True)
        except OSError as error:
            raise folder_unwritable(self.paths.root, error) from error
        return folder

    def commit(self, draft: Path, record: StageRecord) -> Path:
        """Make a filled draft the result of its stage and return its folder; a result of the same key is replaced.

        Raises:
            UnavailableError: the disk is full or read-only; nothing half-written stays.
        """
        target = self.folder(record.stage, record.key)
        try:
            for name in record.files:
                _sync(draft / name)
            # The draft is nobody else's, and syncing a file syncs its entry: no second rename, no syncs of folders. A host
            # that crashes right after may lose the rename below, which means: the stage is run again.
            with (draft / RECORD_FILE).open("wb") as file:
                file.write(msgspec.json.encode(record))
                file.flush()
                os.fsync(file.fileno())
            target.parent.mkdir(parents=True, exist_ok=True)
            if target.exists():
                # A folder cannot be renamed over a full one. Between the two steps the stage counts as not run.
                trash = self.paths.stage_drafts / f"{record.key}.old"
                shutil.rmtree(trash, ignore_errors=True)
                target.rename(trash)
                draft.rename(target)
                shutil.rmtree(trash, ignore_errors=True)
            else:
                draft.rename(target)
        except OSError as error:
            raise folder_unwritable(self.paths.root, error) from error
        self.remember(record.stage, record.key)
        return target

    def discard(self, draft: Path) -> None:
        """Remove a draft that came to nothing."""
        shutil.rmtree(draft, ignore_errors=True)

    def sweep(self) -> int:
        """Remove what killed runs left behind and return how many drafts there were."""
        try:
            left = list(self.paths.stage_drafts.iterdir())
        except OSError:
            return 0
        for folder in left:
            shutil.rmtree(folder, ignore_errors=True)
        return len(left)

    def entries(self) -> Iterator[tuple[str, str, Path]]:
        """Yield stage, key and folder of everything in the cache."""
        if not self.paths.stages.is_dir():
            return
        for stage in sorted(self.paths.stages.iterdir()):
            if stage.name.startswith(".") or not stage.is_dir():
                continue
            for folder in sorted(stage.iterdir()):
                if folder.is_dir() and is_digest(folder.name):
                    yield stage.name, folder.name, folder


def list_files(folder: Path) -> dict[str, int]:
    """Return every regular file below `folder`, as a relative path with `/`, and its size in bytes."""
    found: dict[str, int] = {}
    for base, _, names in os.walk(folder):
        for name in names:
            path = Path(base) / name
            if path.is_file() and not path.is_symlink():
                found[path.relative_to(folder).as_posix()] = path.stat().st_size
    return dict(sorted(found.items()))


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
