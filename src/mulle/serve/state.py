"""What the server says about itself: ready or not, what it serves, and why a newer spec is not being served."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from mulle.core.errors import MulleError
from mulle.serve.plane.deployment import Serving


@dataclass(slots=True)
class ServerState:
    """Changed by the server and the reloaders, shown by the routes.

    Attributes:
        ready: Whether new requests are welcome; False while draining.
        reload_errors: Deployment to why its newest spec is not being served.
        examples: Deployment to a row that works, for the documentation.
    """

    ready: bool = False
    reload_errors: dict[str, MulleError] = field(default_factory=dict[str, MulleError])
    examples: dict[str, Mapping[str, Any]] = field(default_factory=dict[str, "Mapping[str, Any]"])

    def note_reload(self, deployment: str, error: MulleError | None) -> None:
        """Keep why a deployment's newest spec is not being served, or that it is."""
        if error is None:
            self.reload_errors.pop(deployment, None)
        else:
            self.reload_errors[deployment] = error

    @property
    def status(self) -> str:
        """`ok`, `degraded` (the last good spec is served, not the newest) or `draining`."""
        return "draining" if not self.ready else "degraded" if self.reload_errors else "ok"

    def to_dict(self, servings: Iterable[Serving]) -> dict[str, Any]:
        """Return what `/health` answers; the first deployment stands at the top, as it does where there is only one."""
        all_of_them = [self._describe(serving) for serving in servings]
        first = all_of_them[0] if all_of_them else {}
        return {"status": self.status, **first, **({"deployments": all_of_them} if len(all_of_them) > 1 else {})}

    def _describe(self, serving: Serving) -> dict[str, Any]:
        error = self.reload_errors.get(serving.deployment)
        return {
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
                    "threads": served.runtime.threads,
                    "threads_alone": (served.runtime.wide or served.runtime).threads,
                    "provider": served.runtime.provider,
                    "batch": served.curve.best_batch(1 << 10),
                    "us_per_row": round(served.curve.row_ns(1 << 10) / 1000, 2),
                }
                for served in serving.revisions
            ],
            "reload_error": None if error is None else {"code": error.code, "what": error.what, "fix": error.fix},
        }
