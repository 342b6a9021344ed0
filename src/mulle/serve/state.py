"""What the server says about itself: ready or not, what it serves, and why a newer spec is not being served."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mulle.core.errors import MulleError
from mulle.serve.plane.dataplane import Serving


@dataclass(slots=True)
class ServerState:
    """Changed by the server and the reloader, shown by the routes.

    Attributes:
        ready: Whether new requests are welcome; False while draining.
        reload_error: Why the newest spec is not being served; None when it is.
        example: A row that works, for the documentation.
    """

    ready: bool = False
    reload_error: MulleError | None = None
    example: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def to_dict(self, serving: Serving) -> dict[str, Any]:
        """Return what `/health` answers."""
        status = "ok" if self.ready and self.reload_error is None else "degraded" if self.ready else "draining"
        error = self.reload_error
        return {
            "status": status,
            "deployment": serving.deployment,
            "environment": serving.environment,
            "generation": serving.generation,
            "revisions": [
                {
                    "revision": served.number,
                    "model": served.source.model,
                    "model_version": served.source.model_version,
                    "bundle": served.source.bundle_digest,
                    "weight": served.weight,
                }
                for served in serving.revisions
            ],
            "reload_error": None if error is None else {"code": error.code, "what": error.what, "fix": error.fix},
        }
