"""The keeper: a process beside the server that encodes closed segments, ships them and lets old ones go.

    python -m mulle.serve.journal.keeper --root .mulle/logs [--keep-days 30] [--keep-bytes N] [--sink s3://bucket/prefix] …

It has its own interpreter, because a thread that encodes would hold the server's; and low priority, because answering comes
first. It ends with its parent: when its standard input closes it takes a last look, and at SIGTERM it ends at once. Being
killed at any instruction harms nothing.
"""

import argparse
import fcntl
import logging
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from mulle.core.errors import MulleError, UnavailableError
from mulle.core.names import require_name
from mulle.formats.prediction_frames import ENCODED_SUFFIX, NS_PER_HOUR, SHIPPED_SUFFIX, STEM, SUFFIX
from mulle.formats.segment import lock_closed, unavailable
from mulle.serve.journal.config import INTERVAL_S, LEVEL, LINGER_S, KeeperConfig, command
from mulle.serve.journal.encoder import DRAFT_SUFFIX, encode_segment
from mulle.serve.journal.retention import KeptSegment, plan_retention
from mulle.serve.journal.shipping import Shipper, marker_path
from mulle.serve.journal.sinks import open_sink
from mulle.serve.journal.status import KeeperStatus, read_keeper_status, write_keeper_status

__all__ = ["Keeper", "KeeperConfig", "command", "main", "parse"]
LOG = logging.getLogger("mulle.keeper")
LOCK_NAME = "keeper.lock"
_DRAFT_AGE_NS = 60_000_000_000
_SHIP_BUDGET_S = 10.0
_NICENESS = 19
_NEVER_NS = (1 << 63) - 1


def parse(arguments: Sequence[str]) -> tuple[bool, KeeperConfig]:
    """Return whether one look is asked for, and what to do; usage errors end the process as argparse does."""
    parser = argparse.ArgumentParser(prog="mulle.serve.journal.keeper", description="Encode, ship and retain prediction logs.")
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--deployment", action="append", default=[])
    parser.add_argument("--keep-days", type=float)
    parser.add_argument("--keep-bytes", type=int)
    parser.add_argument("--sink")
    parser.add_argument("--interval", type=float, default=INTERVAL_S)
    parser.add_argument("--linger", type=float, default=LINGER_S)
    parser.add_argument("--once", action="store_true", help="take one look, print what keeper.json says, and end")
    parser.add_argument("--level", type=int, choices=range(1, 10), default=LEVEL)
    found = parser.parse_args(arguments)
    return found.once, KeeperConfig(
        root=found.root,
        deployments=tuple(found.deployment),
        keep_days=found.keep_days,
        keep_bytes=found.keep_bytes,
        sink=found.sink,
        interval_s=found.interval,
        linger_s=found.linger,
        level=found.level,
    )


@dataclass(slots=True)
class Keeper:
    """One keeper of one folder of logs; `look` does all there is to do once.

    Args:
        config: What to do.
        now_ns: The time, nanoseconds since 1970-01-01 UTC.
        monotonic_s: Seconds since an arbitrary moment.
        jitter: A number in [0, 1).

    Raises:
        SpecError: a deployment's name or the sink's URL is not one.
    """

    config: KeeperConfig
    now_ns: Callable[[], int] = time.time_ns
    monotonic_s: Callable[[], float] = time.monotonic
    jitter: Callable[[], float] = random.random
    status: KeeperStatus = field(init=False)
    n_failed: int = field(init=False, default=0)
    _shipper: Shipper | None = field(init=False)
    _refused: dict[Path, str] = field(init=False, default_factory=dict[Path, str])
    _retry_s: float = field(init=False, default=0.0)

    def __post_init__(self) -> None:
        for name in self.config.deployments:
            require_name(name, "a deployment")
        self._shipper = None if self.config.sink is None else Shipper(open_sink(self.config.sink), self.jitter)
        try:
            self.status = read_keeper_status(self.config.root) or KeeperStatus()
        except MulleError:
            self.status = KeeperStatus()
        self.status.pid = os.getpid()
        self.status.sink = "" if self._shipper is None else self._shipper.sink.describe()

    def look(self) -> KeeperStatus:
        """Encode what was closed, ship what was not, let go what is too old; return the counts, also written to `keeper.json`."""
        folders = self._folders()
        for folder in folders:
            self._sweep(folder)
            self._encode(folder)
        if self._shipper is not None:
            self._ship(self._shipper, folders)
        self._retain(folders)
        self.status.time_ns = self.now_ns()
        with suppress(OSError):  # a full disk: the next look tells
            write_keeper_status(self.config.root, self.status)
        return self.status

    def _folders(self) -> list[Path]:
        root = self.config.root
        if self.config.deployments:
            return [root / name for name in self.config.deployments if (root / name).is_dir()]
        return sorted(path for path in root.glob("*") if path.is_dir() and not path.is_symlink() and not path.name.startswith("."))

    def _sweep(self, folder: Path) -> None:
        """Remove drafts of processes that were killed; a young one may be about to be locked, and is not touched."""
        for path in folder.glob(f".{STEM}-*{DRAFT_SUFFIX}"):
            with suppress(OSError, MulleError):
                old = self.now_ns() - path.lstat().st_mtime_ns > _DRAFT_AGE_NS
                lock = lock_closed(path) if old else None
                if lock is not None:
                    path.unlink(missing_ok=True)
                    os.close(lock)

    def _encode(self, folder: Path) -> None:
        if self.monotonic_s() < self._retry_s:
            return
        for raw in _listed(folder, SUFFIX):
            if raw in self._refused:
                continue
            try:
                done = encode_segment(raw, level=self.config.level)
            except MulleError as error:
                # Another version wrote it, or it does not read back: looking again changes nothing before a restart.
                self._refused[raw] = error.code
                self._fail(error, raw)
                continue
            except OSError as error:
                self._fail(unavailable(raw, error), raw)
                self._retry_s = self.monotonic_s() + 2 * self.config.interval_s
                return
            if done is None:
                continue
            self.status.encoded_segments += 1
            self.status.encoded_rows += done.n_rows
            self.status.raw_bytes += done.raw_bytes
            self.status.encoded_bytes += done.encoded_bytes
            LOG.info("encoded %s: %s rows, %s bytes of %s", raw.stem, done.n_rows, done.encoded_bytes, done.raw_bytes)

    def _ship(self, shipper: Shipper, folders: Sequence[Path]) -> None:
        ends_s = self.monotonic_s() + _SHIP_BUDGET_S
        waiting = sorted((path for folder in folders for path in _listed(folder, ENCODED_SUFFIX) if not shipper.holds(path)), key=_age)
        self.status.waiting_segments = len(waiting)
        for path in waiting:
            now_s = self.monotonic_s()
            if now_s < shipper.not_before_s or now_s > ends_s:
                return
            try:
                n_bytes = shipper.ship(path, now_ns=self.now_ns(), monotonic_s=now_s)
            except FileNotFoundError:
                continue
            except (MulleError, OSError) as error:
                self.status.ship_failures += 1
                self._fail(error if isinstance(error, MulleError) else unavailable(path, error), path, count=False)
                continue
            self.status.waiting_segments -= 1
            self.status.shipped_segments += 1
            self.status.shipped_bytes += n_bytes
            LOG.info("shipped %s to %s", path.name, shipper.sink.describe())

    def _retain(self, folders: Sequence[Path]) -> None:
        kept: list[KeptSegment] = []
        places: dict[str, Path] = {}
        closed: list[int] = []
        opened: list[int] = []
        for folder in folders:
            for path in _listed(folder, ENCODED_SUFFIX):
                with suppress(FileNotFoundError):
                    name = f"{folder.name}/{path.name}"
                    may_go = self._shipper is None or self._shipper.holds(path)
                    kept.append(KeptSegment(_hour_ends_ns(path), name, path.stat().st_size, may_go))
                    places[name] = path
            for path in _listed(folder, SUFFIX):
                with suppress(OSError, MulleError):
                    lock = lock_closed(path)
                    (opened if lock is None else closed).append(path.stat().st_size)
                    if lock is not None:
                        os.close(lock)
            for marker in _listed(folder, ENCODED_SUFFIX + SHIPPED_SUFFIX):
                if not marker.with_name(marker.name.removesuffix(SHIPPED_SUFFIX)).exists():
                    marker.unlink(missing_ok=True)
        plan = plan_retention(
            kept,
            now_ns=self.now_ns(),
            keep_days=self.config.keep_days,
            keep_bytes=self.config.keep_bytes,
            other_bytes=sum(closed) + sum(opened),
        )
        gone = [segment for segment in plan if self._delete(places[segment.name], segment)]
        self.status.kept_segments = len(kept) - len(gone)
        self.status.kept_bytes = sum(segment.n_bytes for segment in kept) - sum(segment.n_bytes for segment in gone)
        self.status.pending_segments, self.status.pending_bytes = len(closed), sum(closed)
        self.status.open_bytes = sum(opened)

    def _delete(self, path: Path, segment: KeptSegment) -> bool:
        try:
            path.unlink(missing_ok=True)
            marker_path(path).unlink(missing_ok=True)
            if self._shipper is not None:
                self._shipper.forget(path)
        except OSError as error:
            self._fail(unavailable(path, error), path)
            return False
        self.status.deleted_segments += 1
        self.status.deleted_bytes += segment.n_bytes
        LOG.info("retention let %s go (%s bytes)", segment.name, segment.n_bytes)
        return True

    def _fail(self, error: MulleError, path: Path, *, count: bool = True) -> None:
        self.n_failed += 1
        self.status.failures += count
        self.status.last_error, self.status.last_error_what, self.status.last_error_ns = error.code, error.what, self.now_ns()
        LOG.warning("%s: %s: %s", path.name, error.code, error.what)


def main(arguments: Sequence[str] | None = None) -> int:
    """Keep until the parent is gone; return the exit code."""
    once, config = parse(sys.argv[1:] if arguments is None else arguments)
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    with suppress(OSError):
        os.nice(_NICENESS)
    try:
        config.root.mkdir(parents=True, exist_ok=True)
        keeper = Keeper(config)
        if once:
            sys.stdout.write(msgspec.json.format(msgspec.json.encode(keeper.look())).decode() + "\n")
            return 1 if keeper.n_failed else 0
        return _keep(keeper)
    except OSError as error:
        LOG.error("%s", unavailable(config.root, error))  # noqa: TRY400 - it explains itself
        return UnavailableError.exit_code
    except MulleError as error:
        LOG.error("%s", error)  # noqa: TRY400 - it explains itself
        return error.exit_code


def _keep(keeper: Keeper) -> int:
    config = keeper.config
    gone = threading.Event()
    signal.signal(signal.SIGTERM, _end)
    # Ctrl-C goes to the whole group: the server drains first, and closing our input tells us.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_wait_for_parent, args=(gone, config.linger_s), name="parent", daemon=True).start()
    lock = _lock(config, gone)
    while lock is not None:
        last = gone.is_set()
        try:
            os.utime(lock)  # young enough for `mulle gc` to leave it
            keeper.look()
        except OSError as error:
            LOG.warning("%s", unavailable(config.root, error))
        if last:
            break
        gone.wait(config.interval_s)
    return 0


def _lock(config: KeeperConfig, gone: threading.Event) -> int | None:
    """Return the descriptor of this folder's lock; wait while another keeper has it, None when the parent goes meanwhile.

    Raises:
        OSError: there can be no lock.
    """
    while True:
        descriptor = os.open(config.root / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            if gone.wait(config.interval_s):
                return None
        else:
            return descriptor


def _end(*_: object) -> None:
    # At once: what is half done is a draft, and a draft counts for nothing.
    os._exit(0)


def _wait_for_parent(gone: threading.Event, linger_s: float) -> None:
    while os.read(0, 4096):
        pass
    gone.set()
    time.sleep(linger_s)
    _end()


def _listed(folder: Path, suffix: str) -> list[Path]:
    return sorted(path for path in folder.glob(f"{STEM}-*-*-*{suffix}") if not path.is_symlink())


def _age(path: Path) -> tuple[int, str]:
    return _hour_ends_ns(path), path.name


def _hour_ends_ns(path: Path) -> int:
    """Return the end of the hour a segment is named after; the end of time, so that it stays, where the name is not ours."""
    try:
        moment = datetime.strptime(path.name.split("-")[1], "%Y%m%dT%H").replace(tzinfo=UTC)
    except ValueError:
        return _NEVER_NS
    return int(moment.timestamp()) * 1_000_000_000 + NS_PER_HOUR


if __name__ == "__main__":
    raise SystemExit(main())
