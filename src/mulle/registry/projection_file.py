"""A projection into one JSON file: for projects without a tracking server, and for tests that kill processes."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mulle.core.errors import UnavailableError
from mulle.registry.projection import ALIASES, Drift, edited_tags, version_tags
from mulle.registry.versions import VersionRecord


class FileProjection:
    """A `Projection` that keeps what it was told in a file anybody may edit.

    Args:
        path: The file; made on first use. Its folder exists.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def publish_version(self, version: VersionRecord) -> None:
        """Write the version's tags."""
        document = self._read()
        model = document.setdefault(version.model, {"versions": {}, "aliases": {}, "told": {}})
        model["versions"][str(version.number)] = version_tags(version)
        self._write(document)

    def publish_aliases(self, model: str, aliases: Mapping[str, int]) -> None:
        """Write the aliases, and beside them that they were told."""
        document = self._read()
        entry = document.setdefault(model, {"versions": {}, "aliases": {}, "told": {}})
        kept = {name: number for name, number in entry["aliases"].items() if name not in ALIASES}
        entry["aliases"] = {**kept, **aliases}
        entry["told"] = dict(aliases)
        self._write(document)

    def find_drift(self, model: str, published: Sequence[VersionRecord]) -> tuple[Drift, ...]:
        """Return the edits made in the file."""
        entry = self._read().get(model, {"versions": {}, "aliases": {}, "told": {}})
        drifts: list[Drift] = []
        for version in published:
            found = entry["versions"].get(str(version.number))
            if found is None:
                drifts.append(Drift(f"version {version.number}", "registered", "removed"))
                continue
            drifts.extend(
                Drift(f"tag {name} of version {version.number}", repr(ours), repr(theirs)[:80])
                for name, (ours, theirs) in edited_tags(version, found).items()
            )
        for alias in ALIASES:
            told, now = entry["told"].get(alias), entry["aliases"].get(alias)
            if told != now:
                drifts.append(Drift(f"alias {alias}", f"version {told}" if told else "unset", f"version {now}" if now else "unset"))
        return tuple(drifts)

    def _read(self) -> dict[str, Any]:
        try:
            return json.loads(self._path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise UnavailableError(
                "projection-unavailable",
                f"the projection cannot be read: {error}",
                fix="remove the file; it is written again",
                where=str(self._path),
            ) from error

    def _write(self, document: Mapping[str, Any]) -> None:
        draft = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        draft.write_text(json.dumps(document, ensure_ascii=False, indent=1, sort_keys=True), encoding="utf-8")
        draft.replace(self._path)
