"""Online features: a request that carries only who it is about is completed from a store, within a time budget.

`FeatureSource` is the port; `FileFeatureSource` reads files of `formats/feature_rows.py`. `complete` is the join, pure:

- what the request says wins over what the store says, null included: null is "missing for certain", an absent key is a question;
- a column is filled only where the model has it and the request lacks it;
- what neither of the two knows follows the deployment's policy: `refuse` the request, leave it `null`, or take a `default`.
  An unknown entity, a column the row lacks, a row older than `max_age_s`, and a store that is late or broken are all that one case.

What came from the store is part of the row from then on: encoded, checked, scored and logged like any value a client sent.
Only requests that lack columns ever come here, so that the others pay nothing.
"""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias

from mulle.core.clock import Clock
from mulle.core.errors import MulleError, SpecError, UnavailableError
from mulle.core.names import require_name
from mulle.formats.bundle import ColumnInfo
from mulle.formats.feature_rows import SUFFIX, FeatureTable, read_feature_rows
from mulle.formats.rows import shown

LOG = logging.getLogger("mulle.serve")
MissingPolicy: TypeAlias = Literal["refuse", "null", "default"]
_NS = 1_000_000_000
_COMPLAIN_NS = 10 * _NS


@dataclass(frozen=True, slots=True)
class FeatureRows:
    """What a store knows about some entities, in their order.

    Attributes:
        rows: One mapping of column name to JSON value per entity (null where the store knows that it is missing), or None:
            the store does not know the entity. The mappings belong to the store: do not change them.
        ages_s: How old each row is, seconds; None where the store cannot tell.
    """

    rows: Sequence[Mapping[str, Any] | None]
    ages_s: Sequence[float | None]


class FeatureSource(Protocol):
    """A store of the newest feature values by entity.

    One instance belongs to one event loop; its methods may be called again before an earlier call has ended. It never
    blocks the loop, keeps no reference to its arguments, and gives each entity its own values whatever else it is asked.
    """

    async def columns(self, service: str) -> frozenset[str]:
        """Return the columns a feature service supplies, after making ready to be asked for them.

        Called before a deployment takes traffic, so that its first request does not pay for connecting or loading.

        Raises:
            SpecError: there is no such service, or its name is not a name.
            CheckError, UnavailableError: its store cannot be read.
        """
        ...

    async def fetch(self, service: str, entities: Sequence[str], *, deadline_ns: int) -> FeatureRows:
        """Return what is known about `entities`: exactly one row each, in their order, the same entity twice included.

        Args:
            service: The feature service.
            entities: Keys, as the caller sent them.
            deadline_ns: Monotonic moment after which nobody waits for the answer; 0: none. The caller keeps it itself.

        Raises:
            SpecError, CheckError, UnavailableError: as `columns`.
        """
        ...

    async def close(self) -> None:
        """Let go of connections and files; harmless when called twice."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class FeaturePolicy:
    """How a deployment is completed.

    Attributes:
        service: The feature service that is asked.
        columns: Which columns come from the store; None: any the request lacks.
        missing: What to do where neither request nor store has a value.
        defaults: Column to value, for `default`; a column without one stays absent.
        budget_s: How long the store may take.
        max_age_s: Older rows count as missing; None: any age will do.
        cache_rows: Entities remembered; 0: none.
        cache_s: For how long they are.
        max_fetches: Fetches under way; a request above them is treated as if the store was late.
    """

    service: str
    columns: frozenset[str] | None = None
    missing: MissingPolicy = "refuse"
    defaults: Mapping[str, Any] = field(default_factory=dict[str, Any])
    budget_s: float = 0.02
    max_age_s: float | None = None
    cache_rows: int = 0
    cache_s: float = 1.0
    max_fetches: int = 256

    def __post_init__(self) -> None:
        require_name(self.service, "a feature service")
        if self.budget_s <= 0 or self.max_fetches < 1 or self.cache_rows < 0 or (self.cache_rows and self.cache_s <= 0):
            raise SpecError("features-policy", "the time budget, the number of fetches and the cache must be positive", fix="raise them")
        if bool(self.defaults) != (self.missing == "default"):
            raise SpecError(
                "features-policy",
                f"the policy is {self.missing!r} with {len(self.defaults)} defaults",
                fix='give defaults with missing = "default", and only there',
            )


@dataclass(frozen=True, slots=True)
class Completion:
    """Rows as they are scored, and what it took.

    Attributes:
        rows: One mapping per row; rows that lacked nothing are the request's own.
        n_asked: Rows the store was asked for.
        n_filled: Values that came from the store.
        n_missing: Values that neither had, and the policy settled.
        n_stale: Rows of the store that were too old to use.
        late: Whether the store did not answer in time, or failed.
        oldest_s: Age of the oldest row used, seconds; None: none, or not known.
    """

    rows: list[Mapping[str, Any]]
    n_asked: int
    n_filled: int
    n_missing: int
    n_stale: int
    late: bool
    oldest_s: float | None


def lacking(rows: Sequence[Mapping[str, Any]], columns: Sequence[ColumnInfo], entity: str | None, policy: FeaturePolicy) -> list[int]:
    """Return the rows (their numbers) that name an entity and lack a column the store may have; cheap: no value is looked at."""
    if entity is None:
        return []
    wanted = _wanted(columns, entity, policy).keys()
    return [i for i, row in enumerate(rows) if row.get(entity) is not None and not wanted <= row.keys()]


def complete(
    rows: Sequence[Mapping[str, Any]],
    lacks: Collection[int],
    fetched: FeatureRows | None,
    *,
    columns: Sequence[ColumnInfo],
    entity: str,
    policy: FeaturePolicy,
) -> Completion:
    """Return the rows with what the store knows filled in; pure.

    Args:
        rows: Of the request, as `parse_predict` gives them.
        lacks: From `lacking`, in order.
        fetched: The store's answer for these rows; None: it was late or failed.
        columns: The raw columns of the model.
        entity: The name of the key.
        policy: Of the deployment.

    Raises:
        SpecError: `features-missing`: the policy is to refuse, and a value is nowhere.
        UnavailableError: `features-late`: the policy is to refuse, and the store did not answer.
    """
    if fetched is None and policy.missing == "refuse" and lacks:
        raise UnavailableError(
            "features-late",
            f"the feature store did not answer within {policy.budget_s * 1000:g} ms",
            fix="try again, or send every column",
            where=f"feature service {policy.service!r}",
        )
    wanted = _wanted(columns, entity, policy)
    out = list(rows)
    n_filled = n_missing = n_stale = 0
    ages: list[float] = []
    for place, i in enumerate(lacks):
        stored = None if fetched is None else fetched.rows[place]
        age = None if fetched is None else fetched.ages_s[place]
        stale = stored is not None and policy.max_age_s is not None and (age is None or age > policy.max_age_s)
        n_stale += stale
        row = dict(rows[i])
        n_before = n_filled
        for name in wanted:
            if name in row:
                continue
            if stored is not None and not stale and name in stored:
                row[name] = stored[name]
                n_filled += 1
                continue
            n_missing += 1
            if policy.missing == "refuse":
                raise _missing(name, i, row[entity], known=stored is not None, stale=stale)
            if policy.missing == "null":
                row[name] = None
            elif name in policy.defaults:
                row[name] = policy.defaults[name]
        if age is not None and n_filled > n_before:
            ages.append(age)
        out[i] = row
    return Completion(out, len(lacks), n_filled, n_missing, n_stale, fetched is None and bool(lacks), max(ages, default=None))


class FeatureCompleter:
    """Completes the requests of one deployment: the join, its time budget and a bounded memory. For one event loop.

    Args:
        source: The store.
        policy: Of the deployment.
        clock: The time.
    """

    def __init__(self, source: FeatureSource, policy: FeaturePolicy, *, clock: Clock) -> None:
        self.policy = policy
        self._source = source
        self._clock = clock
        self._n_fetches = 0
        self._cache: OrderedDict[str, tuple[int, Mapping[str, Any] | None, float | None]] = OrderedDict()
        self._left: set[asyncio.Task[FeatureRows]] = set()
        self._quiet_until_ns = 0

    async def complete(
        self, rows: Sequence[Mapping[str, Any]], *, columns: Sequence[ColumnInfo], entity: str | None, deadline_ns: int = 0
    ) -> Completion:
        """Return the rows with what the store knows filled in, no later than the budget or the request's own deadline.

        Args:
            rows: Of the request.
            columns: The raw columns of the revision that answers.
            entity: The name of its key; None: nothing can be looked up.
            deadline_ns: Monotonic; 0: none.

        Raises:
            SpecError, UnavailableError: see `complete`.
        """
        lacks = lacking(rows, columns, entity, self.policy)
        if not lacks or entity is None:
            return Completion(list(rows), 0, 0, 0, 0, late=False, oldest_s=None)
        keys = [_key(rows[i][entity]) for i in lacks]
        fetched = await self._fetch(keys, deadline_ns)
        return complete(rows, lacks, fetched, columns=columns, entity=entity, policy=self.policy)

    async def warm(self) -> MulleError | None:
        """Return why the store is not as the policy says, after making it ready; None when it is.

        Never raises: a store that is down at the start is one that is down, and the policy says what then.
        """
        try:
            supplied = await self._source.columns(self.policy.service)
        except MulleError as error:
            return error
        lacking_columns = sorted((self.policy.columns or frozenset()) - supplied)
        if not lacking_columns:
            return None
        return SpecError(
            "features-policy",
            f"the feature service {self.policy.service!r} does not supply {lacking_columns[0]!r}",
            fix=f"name its columns: {', '.join(sorted(supplied))[:300]}",
        )

    async def close(self) -> None:
        """Let go of the store."""
        await self._source.close()

    async def _fetch(self, keys: Sequence[str], deadline_ns: int) -> FeatureRows | None:
        """Return what is known, from memory or from the store; None: the store was late, failed or is being asked too much."""
        now_ns = self._clock.monotonic_ns()
        known = {key: found for key in keys if (found := self._recall(key, now_ns)) is not None}
        asked = [key for key in dict.fromkeys(keys) if key not in known]
        if asked:
            until_ns = now_ns + int(self.policy.budget_s * _NS)
            if deadline_ns:
                until_ns = min(until_ns, deadline_ns)
            answer = await self._ask(asked, until_ns, now_ns)
            if answer is None:
                return None
            fetched_ns = self._clock.monotonic_ns()
            for key, row, age in zip(asked, answer.rows, answer.ages_s, strict=True):
                known[key] = (row, age)
                self._remember(key, fetched_ns, row, age)
        found = [known[key] for key in keys]
        return FeatureRows([row for row, _ in found], [age for _, age in found])

    async def _ask(self, keys: Sequence[str], until_ns: int, now_ns: int) -> FeatureRows | None:
        if self._n_fetches >= self.policy.max_fetches or until_ns <= now_ns:
            return None
        self._n_fetches += 1
        task = asyncio.ensure_future(self._source.fetch(self.policy.service, keys, deadline_ns=until_ns))
        self._left.add(task)
        task.add_done_callback(self._ended)
        try:
            await asyncio.wait({task}, timeout=(until_ns - now_ns) / _NS)
        finally:
            # A source that does not listen to its cancellation keeps its place among the fetches, and holds nobody up.
            if not task.done():
                task.cancel()
        if not task.done() or task.cancelled() or task.exception() is not None:
            return None
        answer = task.result()
        if len(answer.rows) != len(keys) or len(answer.ages_s) != len(keys):
            LOG.error("the feature store answered %d rows for %d entities", len(answer.rows), len(keys))
            return None
        return answer

    def _ended(self, task: asyncio.Task[FeatureRows]) -> None:
        self._left.discard(task)
        self._n_fetches -= 1
        error = None if task.cancelled() else task.exception()
        now_ns = self._clock.monotonic_ns()
        # A store that is down fails every request: the log hears of it now and then, the metrics every time.
        if error is not None and now_ns >= self._quiet_until_ns:
            self._quiet_until_ns = now_ns + _COMPLAIN_NS
            LOG.warning("features could not be fetched: %s", error, exc_info=None if isinstance(error, MulleError) else error)

    def _recall(self, key: str, now_ns: int) -> tuple[Mapping[str, Any] | None, float | None] | None:
        found = self._cache.get(key)
        if found is None:
            return None
        fetched_ns, row, age = found
        waited_s = (now_ns - fetched_ns) / _NS
        if waited_s > self.policy.cache_s:
            del self._cache[key]
            return None
        return row, None if age is None else age + waited_s

    def _remember(self, key: str, now_ns: int, row: Mapping[str, Any] | None, age: float | None) -> None:
        if not self.policy.cache_rows:
            return
        self._cache[key] = (now_ns, row, age)
        self._cache.move_to_end(key)
        while len(self._cache) > self.policy.cache_rows:
            self._cache.popitem(last=False)


@dataclass(slots=True)
class _Loaded:
    table: FeatureTable
    stamp: tuple[int, int, int]
    looked_ns: int
    task: asyncio.Task[None] | None = None


class FileFeatureSource:
    """Feature rows in a folder, one file `<service>.features` each, held in memory and read again when it changes.

    A changed file is read and verified in a thread while the old rows are answered; one that cannot be read changes nothing
    but the log. See `FeatureSource` for what its methods promise.

    Args:
        folder: Where the files are.
        clock: The time.
        poll_s: How often, at most, a file is looked at.
    """

    def __init__(self, folder: Path, *, clock: Clock, poll_s: float = 1.0) -> None:
        self._folder = folder
        self._clock = clock
        self._poll_ns = int(poll_s * _NS)
        self._loaded: dict[str, _Loaded] = {}
        self._loading: dict[str, asyncio.Task[_Loaded]] = {}

    async def columns(self, service: str) -> frozenset[str]:
        """Return the columns of the service's file, after reading it."""
        return frozenset(column.name for column in (await self._table(service)).columns)

    async def fetch(self, service: str, entities: Sequence[str], *, deadline_ns: int) -> FeatureRows:
        """Return the newest row of each entity; a row without a time of its own is as old as its file."""
        del deadline_ns  # nothing here waits, but for the first reading
        table = await self._table(service)
        now_ns = self._clock.now_ns()
        found = [table.get(entity) for entity in entities]
        ages = [None if row is None else max(0, now_ns - (row.time_ns or table.written_ns)) / _NS for row in found]
        return FeatureRows([None if row is None else row.values for row in found], ages)

    async def close(self) -> None:
        """Forget the files."""
        for task in [*self._loading.values(), *(loaded.task for loaded in self._loaded.values() if loaded.task is not None)]:
            task.cancel()
        self._loading.clear()
        self._loaded.clear()

    async def _table(self, service: str) -> FeatureTable:
        loaded = self._loaded.get(service)
        if loaded is None:
            task = self._loading.get(service)
            if task is None:
                task = asyncio.ensure_future(self._load(service))
                self._loading[service] = task
                task.add_done_callback(lambda done: self._take(service, done))
            # Shielded: the first caller's time-out must not throw away what the second one waits for.
            return (await asyncio.shield(task)).table
        now_ns = self._clock.monotonic_ns()
        if now_ns - loaded.looked_ns >= self._poll_ns and loaded.task is None:
            loaded.looked_ns = now_ns
            loaded.task = asyncio.ensure_future(self._refresh(service, loaded))
        return loaded.table

    def _take(self, service: str, done: "asyncio.Task[_Loaded]") -> None:
        if self._loading.get(service) is done:
            del self._loading[service]
            if not done.cancelled() and done.exception() is None:
                self._loaded[service] = done.result()

    async def _load(self, service: str) -> _Loaded:
        path = self._path(service)
        table, stamp = await asyncio.get_running_loop().run_in_executor(None, _read, path, service)
        return _Loaded(table, stamp, self._clock.monotonic_ns())

    async def _refresh(self, service: str, loaded: _Loaded) -> None:
        try:
            loop = asyncio.get_running_loop()
            stamp = await loop.run_in_executor(None, _stamp, self._path(service))
            if stamp != loaded.stamp:
                # Remembered first: a file that cannot be read is complained about once, not every second.
                loaded.stamp = stamp
                loaded.table, loaded.stamp = await loop.run_in_executor(None, _read, self._path(service), service)
        except (MulleError, OSError) as error:
            LOG.warning("the newer feature rows of %s cannot be used, the old ones stay: %s", service, error)
        finally:
            loaded.task = None

    def _path(self, service: str) -> Path:
        return self._folder / f"{require_name(service, 'a feature service')}{SUFFIX}"


def _read(path: Path, service: str) -> tuple[FeatureTable, tuple[int, int, int]]:
    stamp = _stamp(path)
    table = read_feature_rows(path)
    if table.service != service:
        raise SpecError(
            "features-service",
            f"the file holds the features of {table.service!r}, not of {service!r}",
            fix="write it under its own name",
            where=str(path),
        )
    return table, stamp


def _stamp(path: Path) -> tuple[int, int, int]:
    try:
        status = path.stat()
    except OSError:
        return (0, 0, 0)
    return (status.st_ino, status.st_mtime_ns, status.st_size)


def _wanted(columns: Sequence[ColumnInfo], entity: str, policy: FeaturePolicy) -> dict[str, None]:
    # A dictionary: its keys compare like a set, and keep the order of the columns.
    return {c.name: None for c in columns if c.name != entity and (policy.columns is None or c.name in policy.columns)}


def _key(value: Any) -> str:
    return value if isinstance(value, str) else str(value).lower() if isinstance(value, bool) else repr(value)


def _missing(name: str, row: int, entity: Any, *, known: bool, stale: bool) -> SpecError:
    reason = "is too old in the feature store" if stale else "is not in the feature store"
    return SpecError(
        "features-missing",
        f"column {name!r} {reason}" if known else f"the feature store does not know {shown(entity)}",
        fix=f"send a value for {name!r}",
        where=f"row {row}, column {name!r}",
    )
