"""The port to a tracking server that shows our registry: it is told, watched and corrected, never obeyed.

A projection may be used by one process at a time (the outbox holds a lock). Every method may be repeated: it makes
things so and does nothing where they are. What the server had been told last is kept *in the server*, so that an edit
made there can be told from an order not yet carried out. When it does not answer, methods raise `UnavailableError`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from mulle.registry.versions import VersionRecord

ALIASES = ("champion", "challenger")


@dataclass(frozen=True, slots=True)
class Drift:
    """One edit somebody made in the projection."""

    what: str
    expected: str
    found: str

    def to_dict(self) -> dict[str, str]:
        """Return plain JSON."""
        return {"what": self.what, "expected": self.expected, "found": self.found}


class Projection(Protocol):
    """Where versions and aliases are shown to people who work in another tool."""

    def publish_version(self, version: VersionRecord) -> None:
        """Make the version known, with tags that lead back to run, data, commit and bundle."""
        ...

    def publish_aliases(self, model: str, aliases: Mapping[str, int]) -> None:
        """Point `champion` and `challenger` at these version numbers; an alias not named here is removed."""
        ...

    def find_drift(self, model: str, published: Sequence[VersionRecord]) -> tuple[Drift, ...]:
        """Return what differs from what was published last; empty when nobody touched it.

        Args:
            model: The registry name.
            published: The versions it was told of.
        """
        ...


def version_tags(version: VersionRecord) -> dict[str, str]:
    """Return the tags that link a version to where it comes from; empty values are left out."""
    tags = {
        "mulle.version": str(version.number),
        "mulle.bundle": version.bundle_digest,
        "mulle.run": version.run_id,
        "mulle.dataset": version.dataset,
        "mulle.data_version": version.dataset_digest,
        "mulle.commit": version.git_commit,
        "mulle.verdict": version.outcome,
        "mulle.overridden_by": version.overridden_by,
    }
    return {name: value for name, value in tags.items() if value}


def edited_tags(version: VersionRecord, found: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """Return tag to (ours, found) where they differ; tags that are not ours do not count."""
    return {
        name: (value, found.get(name, ""))
        for name, value in version_tags(version).items()
        # Who overrode a verdict is told in a second step: its absence is not an edit.
        if found.get(name) != value and not (name == "mulle.overridden_by" and name not in found)
    }
