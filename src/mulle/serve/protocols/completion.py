"""Bodies completed from feature stores, for the routes: which deployment has a policy, and which bodies can be completed."""

from collections.abc import Mapping

from mulle.core.errors import MulleError
from mulle.serve.plane.features import FeatureCompleter, lacking
from mulle.serve.plane.served import Served
from mulle.serve.protocols.codec_json import Body


class BodyCompleter:
    """Completes rows by name; a matrix names nobody and carries everything.

    Args:
        completers: Deployment name to what completes its requests; the others are left alone.
    """

    def __init__(self, completers: Mapping[str, FeatureCompleter]) -> None:
        self._completers = dict(completers)

    async def warm(self) -> dict[str, MulleError]:
        """Return deployment name to why its store is not ready, after making ready those that are; call it before taking traffic."""
        found = {name: await completer.warm() for name, completer in self._completers.items()}
        return {name: error for name, error in found.items() if error is not None}

    async def close(self) -> None:
        """Let go of the stores."""
        for completer in self._completers.values():
            await completer.close()

    def lacks(self, body: Body, served: Served) -> bool:
        """Return whether a row names an entity and lacks a column its store may have."""
        completer = self._completers.get(served.home.name)
        if completer is None or body.rows is None:
            return False
        manifest = served.manifest
        return bool(lacking(body.rows, manifest.columns, manifest.entity, completer.policy))

    async def complete(self, body: Body, served: Served, deadline_ns: int) -> Body:
        """Return the rows with what the store knows.

        Raises:
            SpecError, UnavailableError: by the deployment's policy, see `plane/features.py`.
        """
        completer = self._completers.get(served.home.name)
        if completer is None or body.rows is None:
            return body
        manifest = served.manifest
        done = await completer.complete(body.rows, columns=manifest.columns, entity=manifest.entity, deadline_ns=deadline_ns)
        return Body([dict(row) for row in done.rows], None, None)
