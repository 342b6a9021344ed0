"""From a project's settings to what its server needs: the join between `mulle.toml` and the data plane."""

from pathlib import Path
from typing import TYPE_CHECKING

from mulle.loop.api_keys import key_source
from mulle.loop.trust import trusted_keys

if TYPE_CHECKING:
    from mulle.loop.settings import Settings
    from mulle.serve.config import ServeConfig

_MB = 1 << 20


def serve_config(settings: "Settings", state_dir: Path, *, deployment: str | None = None, bundle: Path | None = None) -> "ServeConfig":
    """Return the server's configuration as `mulle.toml` has it.

    Args:
        settings: Of the chosen environment.
        state_dir: The project's `.mulle`.
        deployment: Another deployment than the project's own.
        bundle: Serve this folder instead of what the deployment's spec names.

    Raises:
        SpecError: a reference leads nowhere, an origin or a policy is not one, or the environment trusts nobody.
    """
    from mulle.formats.prediction_policy import LogPolicy
    from mulle.loop.settings import duration_s
    from mulle.loop.wiring import resolve_reference
    from mulle.serve.config import ServeConfig
    from mulle.serve.http.checks import Limits
    from mulle.serve.http.cors import cors_policy
    from mulle.serve.journal.config import KeeperConfig
    from mulle.serve.plane.features import FeaturePolicy

    serving, log, telemetry = settings.serving, settings.serving.log, settings.serving.telemetry
    name = deployment or settings.deployment
    features = serving.features
    policies = (
        {}
        if features is None
        else {
            name: FeaturePolicy(
                service=features.service,
                columns=None if features.columns is None else frozenset(features.columns),
                missing=features.missing,
                defaults=features.defaults,
                budget_s=features.budget_ms / 1000,
                max_age_s=None if features.max_age is None else duration_s(features.max_age),
            )
        }
    )
    return ServeConfig(
        state_dir=state_dir,
        deployment=name,
        trusted=trusted_keys(settings),
        bundle=bundle,
        host=serving.host,
        port=serving.port,
        grpc_port=serving.grpc_port,
        keys=key_source(settings, state_dir),
        cors=cors_policy(serving.cors_origins),
        limits=Limits(body_bytes=serving.max_body_mb * _MB, connections=serving.max_connections),
        max_rows=serving.max_rows,
        workers=serving.workers,
        threads=serving.threads,
        max_batch=serving.max_batch,
        max_wait_ms=serving.max_wait_ms,
        on_overload=serving.on_overload,
        provider=serving.provider,
        drain_timeout_s=float(duration_s(serving.drain_timeout)),
        log=LogPolicy(
            durability=log.durability,
            on_full=log.on_full,
            max_backlog_bytes=log.max_backlog_mb * _MB,
            sample=log.sample,
            redact=frozenset(log.redact),
        ),
        keeper=KeeperConfig(
            root=state_dir / "logs",
            keep_days=log.keep_days,
            keep_bytes=None if log.keep_mb is None else log.keep_mb * _MB,
            sink=resolve_reference(log.sink, settings.project_dir),
        ),
        features=policies,
        otlp=resolve_reference(telemetry.otlp, settings.project_dir),
        trace_sample=telemetry.trace_sample,
        access_log=telemetry.access_log,
    )


def bundle_config(bundle: Path, state_dir: Path, *, deployment: str) -> "ServeConfig":
    """Return the configuration of a folder served outside any project."""
    from mulle.serve.config import ServeConfig
    from mulle.serve.journal.config import KeeperConfig

    return ServeConfig(
        state_dir=state_dir,
        deployment=deployment,
        trusted=trusted_keys(None),
        bundle=bundle,
        keys=key_source(None, state_dir),
        keeper=KeeperConfig(root=state_dir / "logs"),
    )
