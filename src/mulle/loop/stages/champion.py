"""Whom a candidate has to face: read cheaply while planning, from the deployment spec."""

from collections.abc import Mapping
from typing import Any

from mulle.core.errors import MulleError
from mulle.formats.bundle import GRAPH, read_manifest
from mulle.loop.paths import state_paths
from mulle.loop.settings.model import Settings


def champion_of(settings: Settings, outputs: Mapping[str, Mapping[str, str]]) -> Any:
    """Return the champion this candidate has to face, as part of the key: bundle digest and where it lies; None without one.

    A candidate that *is* the champion (the same graph) faces nobody: so a run with nothing changed stays a run with
    nothing changed after its own version became champion.
    """
    from mulle.formats.deployment import read_signed_spec

    path = state_paths(settings.project_dir).spec(settings.deployment)
    if not path.exists():
        return None
    try:
        spec = read_signed_spec(path).spec
        serving = max(spec.traffic.weights, key=lambda number: spec.traffic.weights[number])
        revision = next(r for r in spec.revisions if r.number == serving)
        folder = state_paths(settings.project_dir).bundles / revision.bundle_digest
        graph = read_manifest(folder).files[GRAPH].sha256
    except (MulleError, KeyError, StopIteration, ValueError):
        # A broken projection is reported by the commands that need it; here it means: nobody to compare with.
        return None
    if graph == outputs.get("export", {}).get("graph"):
        return None
    return {"digest": revision.bundle_digest, "version": revision.model_version, "graph": graph}
