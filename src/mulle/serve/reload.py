"""From a signed deployment spec to loaded, proven revisions; and watching the spec for a newer generation.

Everything slow (digests, signatures, sessions, golden requests) happens in a thread while the old revisions answer. What
fails there changes nothing but `/health` and the metrics: the last good spec goes on serving, also across a restart,
from the data plane's own copy of it.
"""

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from mulle.core.errors import CheckError, ConflictError, MulleError, SpecError
from mulle.core.names import require_name
from mulle.formats import telemetry as names
from mulle.formats.bundle_trust import load_trusted_bundle
from mulle.formats.deployment import DeploymentSpec, Revision, SignedSpec, encode_signed_spec, read_signed_spec
from mulle.formats.signing import require_signature
from mulle.serve.plane.costs import CostCurve
from mulle.serve.plane.dataplane import DataPlane
from mulle.serve.plane.deployment import Serving
from mulle.serve.plane.served import Served, make_served
from mulle.serve.plane.tuning import load_widths, measure_curve, one_request
from mulle.serve.runtimes.onnx import OnnxRuntime, require_golden
from mulle.serve.runtimes.providers import ProviderChoice
from mulle.serve.state import ServerState

LOG = logging.getLogger("mulle.serve")
POLL_S = 0.2
_WHOLE = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class SpecSource:
    """Where specs come from and whom to believe.

    Attributes:
        state_dir: The project's `.mulle`.
        deployment: Whose spec.
        trusted: Public keys in hexadecimal.
        threads: Threads within an operator; 0: found by measuring.
        max_batch: Rows that run together at most.
        provider: Where graphs are computed.
    """

    state_dir: Path
    deployment: str
    trusted: Collection[str]
    threads: int = 1
    max_batch: int = 64
    provider: ProviderChoice = "cpu"

    @property
    def path(self) -> Path:
        """The spec, as the control plane writes it."""
        return self.state_dir / "serving" / f"{require_name(self.deployment, 'a deployment')}.json"

    @property
    def cache(self) -> Path:
        """The data plane's own copy of the last good spec."""
        return self.state_dir / "serving" / "cache" / f"{require_name(self.deployment, 'a deployment')}.json"


def load_bundle(
    folder: Path, *, trusted: Collection[str], threads: int = 1, digest: str | None = None, provider: ProviderChoice = "cpu"
) -> OnnxRuntime:
    """Return the runtime of a bundle that is whole, signed, loadable and reproduces its golden requests.

    Args:
        folder: The bundle.
        trusted: Public keys in hexadecimal.
        threads: Threads within an operator; 0: found by measuring, which takes a few runs of a large model.
        digest: The digest it must have, when known from elsewhere.
        provider: Where to compute.

    Raises:
        SpecError, CheckError: see `formats/bundle_trust.py` and `serve/runtimes/onnx.py`.
        UnavailableError: `provider-missing`.
    """
    manifest = load_trusted_bundle(folder, trusted=trusted, digest=digest)
    if threads:
        runtime = OnnxRuntime(folder, manifest, threads=threads, provider=provider)
    else:
        runtime = load_widths(lambda n: OnnxRuntime(folder, manifest, threads=n, provider=provider), one_request)
    require_golden(folder, runtime)
    if runtime.wide is not None:
        require_golden(folder, runtime.wide)
    return runtime


def serve_folder(folder: Path, source: SpecSource) -> Serving:
    """Return a bundle's folder as revision 1 of a deployment, without registry and spec."""
    runtime = load_bundle(folder, trusted=source.trusted, threads=source.threads, provider=source.provider)
    return Serving(source.deployment, "local", 0, (_prove(runtime, source, revision=1, model_version=1),))


def _prove(runtime: OnnxRuntime, source: SpecSource, *, revision: int, model_version: int, run_id: str = "", weight: int = 100) -> Served:
    """Return a revision that was warmed up and whose cost is known."""
    served = make_served(runtime, CostCurve({1: 1.0}), revision=revision, model_version=model_version, run_id=run_id, weight=weight)
    served.curve = measure_curve(served, max_batch=source.max_batch)
    return served


def read_trusted_spec(path: Path, source: SpecSource) -> SignedSpec:
    """Return the spec at `path` after its signature, name and weights were checked.

    Raises:
        SpecError: missing.
        CheckError: unreadable, or signed by somebody else.
    """
    signed = read_signed_spec(path)
    require_signature(signed.spec.to_bytes(), signed.signature, trusted=source.trusted, what="the deployment spec", where=str(path))
    spec = signed.spec
    numbers = {revision.number for revision in spec.revisions}
    if spec.deployment != source.deployment or set(spec.traffic.weights) - numbers or sum(spec.traffic.weights.values()) != _WHOLE:
        raise SpecError(
            "spec-inconsistent",
            f"the spec names deployment {spec.deployment!r}, revisions {sorted(numbers)}, weights {dict(spec.traffic.weights)}",
            fix="write it again: `mulle models promote`; weights sum to 100 over revisions that are there",
            where=str(path),
        )
    return signed


def load_serving(spec: DeploymentSpec, source: SpecSource, present: Serving | None = None) -> Serving:
    """Return every revision of a spec, loaded and proven; runtimes of bundles already loaded are kept.

    Raises:
        SpecError, CheckError: a revision's bundle cannot be served.
    """
    loaded = {} if present is None else {served.source.bundle_digest: served for served in present.revisions}
    revisions: list[Served] = []
    for revision in spec.revisions:
        known = loaded.get(revision.bundle_digest)
        labels = {
            "revision": revision.number,
            "model_version": revision.model_version,
            "weight": spec.traffic.weights.get(revision.number, 0),
        }
        if known is not None:
            served = make_served(known.runtime, known.curve, run_id=revision.run_id, **labels)
        else:
            runtime = load_bundle(
                _bundle_folder(revision, source),
                trusted=source.trusted,
                threads=source.threads,
                digest=revision.bundle_digest,
                provider=source.provider,
            )
            served = _prove(runtime, source, run_id=revision.run_id, **labels)
            loaded[revision.bundle_digest] = served
        revisions.append(served)
    # The revision with most of the traffic speaks for the deployment in /docs.
    revisions.sort(key=lambda served: (-served.weight, served.number))
    return Serving(spec.deployment, spec.environment, spec.generation, tuple(revisions), spec.traffic.salt)


def load_first(source: SpecSource) -> tuple[Serving, SignedSpec, MulleError | None]:
    """Return what to serve at start, its spec, and why it is not the newest spec if it is the cached one.

    A cached generation newer than the spec's wins: a restored backup does not move traffic backwards.

    Raises:
        SpecError, CheckError: neither the spec nor the cache can be served; the spec's reason is given.
    """
    try:
        fresh = read_trusted_spec(source.path, source)
        cached_generation = _cached_generation(source)
        if fresh.spec.generation < cached_generation:
            raise _stale(fresh.spec.generation, cached_generation, source.path)
        serving = load_serving(fresh.spec, source)
    except MulleError as error:
        if not source.cache.exists():
            raise
        try:
            cached = read_trusted_spec(source.cache, source)
            return load_serving(cached.spec, source), cached, error
        except MulleError as second:
            LOG.warning("the cached spec cannot be served either: %s", second)
        raise
    keep_copy(fresh, source)
    return serving, fresh, None


def keep_copy(signed: SignedSpec, source: SpecSource) -> None:
    """Keep the spec that is being served, for a start without the control plane; a full disk costs only the copy."""
    draft = source.cache.with_name(f".{source.cache.name}.{os.getpid()}")
    try:
        source.cache.parent.mkdir(parents=True, exist_ok=True)
        draft.write_bytes(encode_signed_spec(signed))
        draft.replace(source.cache)
    except OSError as error:
        LOG.warning("the copy of the deployment spec could not be kept: %s", error)
        draft.unlink(missing_ok=True)


class Reloader:
    """Watches the spec and installs newer generations.

    Args:
        source: Where it is.
        plane: Where to install.
        state: Where failures are shown.
        current: The spec being served.
        error: Why that is not the newest; None when it is.
        on_install: Called after each install, on the event loop.
    """

    def __init__(
        self,
        source: SpecSource,
        plane: DataPlane,
        state: ServerState,
        current: SignedSpec,
        *,
        error: MulleError | None = None,
        on_install: Callable[[Serving], None],
    ) -> None:
        self._source = source
        self._plane = plane
        self._state = state
        self._current = current
        self._on_install = on_install
        self._error = error
        self._seen = self._stamp()

    def begin(self) -> None:
        """Tell whether the newest spec is the one being served; call it once the deployment is."""
        self._note(self._error)

    @property
    def changed(self) -> bool:
        """Whether the spec on disk is another one than at the last look."""
        stamp = self._stamp()
        if stamp == self._seen:
            return False
        self._seen = stamp
        return True

    async def reload(self) -> bool:
        """Return whether the spec on disk is being served after an attempt to load it."""
        try:
            signed, serving = await asyncio.get_running_loop().run_in_executor(None, self._load_safely)
        except MulleError as error:
            LOG.warning("the new deployment spec is not being served: %s", error)
            self._note(error)
            self._count("refused")
            return False
        if serving is not None:
            self._plane.install(serving)
            self._current = signed
            self._on_install(serving)
            self._count("installed")
        self._note(None)
        return True

    def _load_safely(self) -> tuple[SignedSpec, Serving | None]:
        try:
            return self._load()
        except MulleError:
            raise
        except Exception as error:
            # Watching must outlive any spec, also one that meets a defect of ours.
            LOG.exception("loading the new deployment spec failed")
            raise CheckError(
                "spec-unloadable",
                f"loading it failed: {type(error).__name__}",
                fix="look into the server's log, and write the spec again",
                where=str(self._source.path),
            ) from error

    def _load(self) -> tuple[SignedSpec, Serving | None]:
        signed = read_trusted_spec(self._source.path, self._source)
        current = self._current.spec
        if signed.spec == current:
            return signed, None
        if signed.spec.generation <= current.generation:
            raise _stale(signed.spec.generation, current.generation, self._source.path)
        serving = load_serving(signed.spec, self._source, self._plane.deployments[self._source.deployment].serving)
        keep_copy(signed, self._source)
        return signed, serving

    def _note(self, error: MulleError | None) -> None:
        self._state.note_reload(self._source.deployment, error)
        self._plane.registry.gauge(names.RELOAD_OK, deployment=self._source.deployment).put(int(error is None))

    def _count(self, outcome: str) -> None:
        self._plane.registry.counter(names.RELOADS, deployment=self._source.deployment, outcome=outcome).add()

    def _stamp(self) -> tuple[int, int, int] | None:
        try:
            status = self._source.path.stat()
        except OSError:
            return None
        return status.st_mtime_ns, status.st_size, status.st_ino


class DeploymentsWatcher:
    """Looks at every spec five times a second, and, where asked to, for specs that come and go.

    Args:
        state_dir: The project's `.mulle`.
        reloaders: Deployment to what reloads it; kept up to date by `load` and `unload`.
        load: Loads and serves a deployment.
        unload: Stops serving one.
        follow: Whether deployments come and go with their specs.
    """

    def __init__(
        self,
        state_dir: Path,
        reloaders: Mapping[str, Reloader],
        *,
        load: Callable[[str], Awaitable[None]],
        unload: Callable[[str], None],
        follow: bool,
    ) -> None:
        self._folder = state_dir / "serving"
        self._reloaders = reloaders
        self._load = load
        self._unload = unload
        self._follow = follow
        self._refused: dict[str, int] = {}

    async def watch(self) -> None:
        """Look until cancelled."""
        while True:
            await asyncio.sleep(POLL_S)
            if self._follow:
                await self._come_and_go()
            for reloader in list(self._reloaders.values()):
                if reloader.changed:
                    await reloader.reload()

    async def _come_and_go(self) -> None:
        try:
            there = {path.stem: path.stat().st_mtime_ns for path in self._folder.glob("*.json")}
        except OSError:
            # A folder that cannot be listed is no reason to stop serving.
            return
        for name in [name for name in self._reloaders if name not in there]:
            # The last one stays: a server without any deployment would be a folder emptied by mistake.
            if len(self._reloaders) > 1:
                LOG.info("deployment %s has no spec any more: it is unloaded", name)
                self._unload(name)
        for name, stamp in there.items():
            if name in self._reloaders or self._refused.get(name) == stamp:
                continue
            try:
                await self._load(name)
                LOG.info("deployment %s is being served", name)
            except MulleError as error:
                self._refused[name] = stamp
                LOG.warning("deployment %s cannot be served: %s", name, error)


def _cached_generation(source: SpecSource) -> int:
    if not source.cache.exists():
        return -1
    try:
        return read_trusted_spec(source.cache, source).spec.generation
    except MulleError as error:
        LOG.warning("the cached spec cannot be read: %s", error)
        return -1


def _stale(found: int, served: int, path: Path) -> ConflictError:
    return ConflictError(
        "spec-stale",
        f"the spec is generation {found}, and generation {served} is being served",
        fix="write it again with `mulle models promote`: each change gets a new generation",
        where=str(path),
    )


def _bundle_folder(revision: Revision, source: SpecSource) -> Path:
    """Return the folder of a revision: an absolute path, or one inside the project or its state folder."""
    path = Path(revision.bundle_path)
    if path.is_absolute():
        return path
    for root in (source.state_dir, source.state_dir.parent):
        folder = (root / path).resolve()
        if folder.is_relative_to(root.resolve()) and folder.is_dir():
            return folder
    raise SpecError(
        "bundle-missing",
        f"revision {revision.number} names a bundle that is not here: {revision.bundle_path[:200]!r}",
        fix="run `mulle models verify`, or seal it again with `mulle run`",
        where=str(source.path),
    )
