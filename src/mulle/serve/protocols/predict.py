"""`POST /predict`: from a head that was met before to an answer's bytes, with nothing in between that could wait.

The careful way (`codec_json`) is taken for whatever the quick one does not know, and gives every error its words.
"""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from mulle.core.errors import CheckError, MulleError, SpecError
from mulle.formats import telemetry as names
from mulle.serve.http.connection import Connection
from mulle.serve.http.heads import Head
from mulle.serve.http.messages import JSON, Response, problem_of, render_response, status_of
from mulle.serve.http.plain import Exchange
from mulle.serve.plane.batcher import overloaded
from mulle.serve.plane.dataplane import DataPlane
from mulle.serve.plane.jobs import ARRAYS, IMAGES, ROWS, Batch, Job
from mulle.serve.plane.served import Served
from mulle.serve.protocols.codec_fast import FastCodec, Renderer
from mulle.serve.protocols.codec_json import Body, encode_body, parse_predict
from mulle.serve.protocols.gate import Gate, Pass
from mulle.serve.protocols.headers import bounded_header, header_ids, require_json, timeout_ns
from mulle.serve.telemetry.registry import Cell

LOG = logging.getLogger("mulle.serve")
ROUTE = "/predict"
DEFAULT_MAX_ROWS = 10_000
_SERVER_FAULT = 500


class Completer(Protocol):
    """Completes rows that lack columns from an online store."""

    def lacks(self, body: Body, served: Served) -> bool:
        """Return whether the rows lack columns a store may have."""
        ...

    async def complete(self, body: Body, served: Served, deadline_ns: int) -> Body:
        """Return the rows with what the store knows.

        Raises:
            MulleError: by the deployment's policy.
        """
        ...


class Observer(Protocol):
    """Is told of every answered request: traces, access logs."""

    def __call__(self, head: Head, job: Job, status: int) -> None:
        """Take note; must not raise."""
        ...


class PredictJob(Job):
    """A job that is also the slot of its answer."""

    __slots__ = ("connection", "data", "head", "keep", "target")
    connection: Connection
    data: bytes | None
    head: Head
    key: object
    ids: Sequence[str] | None
    entity: Sequence[str | None] | None
    batch: Batch | None
    error: MulleError | None
    keep: bool
    target: "PredictTarget"

    def __init__(
        self,
        served: Served,
        inputs: Any,
        n_rows: int,
        started_ns: int,
        n_bytes: int,
        connection: Connection,
        head: Head,
        target: "PredictTarget",
    ) -> None:
        self.served = served
        self.kind = self.key = ROWS
        self.inputs = inputs
        self.n_rows = n_rows
        self.started_ns = started_ns
        self.n_bytes = n_bytes
        self.connection = connection
        self.head = head
        self.keep = head.keep
        self.target = target
        self.deadline_ns = self.at = 0
        self.ids = self.entity = self.batch = self.error = self.data = None
        self.cancelled = False

    def finish_together(self, batch: Batch) -> list[Job]:
        """Answer a whole batch of plain requests in one go; return the jobs that are not plain."""
        return self.target.answer_together(batch)

    def finish(self) -> None:
        """Spell the answer and hand it to the connection."""
        self.target.answer(self)


class _Memo(Pass):
    """What a head means, worked out once."""

    __slots__ = ("json", "media", "pinned", "prediction_id", "timeout_ns", "unit")

    def __init__(self, head: Head) -> None:
        super().__init__()
        self.pinned = head.headers.get(names.REVISION_HEADER)
        self.unit = bounded_header(head.headers, names.UNIT_HEADER)
        self.prediction_id = head.headers.get(names.PREDICTION_ID_HEADER)
        self.timeout_ns = timeout_ns(head.headers)
        self.media = head.headers.get("content-type", "").partition(";")[0].strip().lower()
        self.json = not (self.media.startswith("image/") or self.media == "multipart/form-data")
        if self.json:
            require_json(head.headers)


class Face:
    """How one revision reads and writes JSON, and the head of its answers."""

    __slots__ = ("_date", "_prefix", "_refusals", "_revision", "codec", "ok", "prefix", "renderer")

    def __init__(self, served: Served) -> None:
        source = served.source
        self.codec = FastCodec(served.manifest)
        self.renderer = Renderer(served.manifest, model=source.model, model_version=source.model_version, revision=served.number)
        self.ok: Cell = served.home.registry.counter(
            names.REQUESTS, deployment=served.home.name, route=ROUTE, revision=str(served.number), status="200"
        )
        self._prefix = f"HTTP/1.1 200 OK\r\ncontent-type: {JSON}\r\n{names.REVISION_HEADER}: {served.number}\r\ndate: "
        self._date = ""
        self.prefix = ""
        self._revision = str(served.number)
        self._refusals: dict[str, tuple[str, bytes]] = {}

    def at(self, date: str) -> str:
        """Return the head up to the prediction id."""
        if date is not self._date:
            self._date, self.prefix = date, f"{self._prefix}{date}\r\n{names.PREDICTION_ID_HEADER}: "
        return self.prefix

    def refusal(self, date: str, reason: str) -> bytes:
        """Return the whole answer to a request refused under overload, rendered once a second."""
        known = self._refusals.get(reason)
        if known is None or known[0] is not date:
            response = problem_of(overloaded(reason), {names.REVISION_HEADER: self._revision})
            known = self._refusals[reason] = (date, render_response(response, date=date, extra="", keep=True, head_only=False))
        return known[1]


class PredictTarget:
    """Answers predictions of one deployment.

    Args:
        plane: Answers.
        gate: Decides who may ask.
        deployment: Its name; empty for the first.
        max_rows: Rows per request.
        pictures: Reads uploads into encoded pictures and spells their answers; None: no images here.
        completer: Completes rows from an online store; None: requests carry everything.
        observer: Is told of every answer; None: nobody looks.
    """

    def __init__(
        self,
        plane: DataPlane,
        gate: Gate,
        deployment: str = "",
        *,
        max_rows: int = DEFAULT_MAX_ROWS,
        pictures: "Pictures | None" = None,
        completer: Completer | None = None,
        observer: Observer | None = None,
    ) -> None:
        self._plane = plane
        self._now_ns = plane.monotonic_ns
        self._gate = gate
        self._deployment = deployment
        self._max_rows = max_rows
        self._pictures = pictures
        self._completer = completer
        self._observer = observer
        self._tasks: set[asyncio.Task[None]] = set()
        self.takes_views = False

    def refuse_early(self, head: Head) -> Response | None:
        """Return why a request with a large body is refused before that is read, or None."""
        try:
            served = self._plane.pick(self._deployment, pinned=head.headers.get(names.REVISION_HEADER))
            started_ns = self._plane.monotonic_ns()
            error: MulleError | None = self._plane.refusal(served, max(head.n_body, 0), started_ns)
            if error is not None:
                return self._refused(error, served)
            self._gate.identify(head, _memo_of(head))
        except MulleError as error:
            return self._refused(error, None)
        return None

    def begin(self, connection: Connection, head: Head, body: bytes) -> None:
        """Decode, and put in line for the next batch."""
        plane, started_ns = self._plane, self._now_ns()
        served: Served | None = None
        try:
            memo = head.memo
            if memo is None:
                memo = _memo_of(head)
            name = self._deployment or plane.default
            if not self._gate.clears(memo, name):
                self._gate.enter(head, memo, name, started_ns)
            home = plane.deployments.get(name) or plane.deployment(name)
            served = home.only if memo.pinned is None else None
            if served is None:
                served = home.pick(memo.pinned, memo.unit)
            face: Face = served.face or _make_face(served)
            reason = plane.batcher.refusal(served, len(body), started_ns)
            if reason is not None:
                self._shed(connection, head, served, face, reason)
                return
            rows = face.codec.decode(body) if memo.json and memo.prediction_id is None else None
            if rows and len(rows) <= self._max_rows:
                job = PredictJob(served, rows, len(rows), started_ns, len(body), connection, head, self)
            else:
                job = PredictJob(served, None, 0, started_ns, len(body), connection, head, self)
                self._read_carefully(job, memo, body)
            if memo.timeout_ns:
                job.deadline_ns = started_ns + memo.timeout_ns
        except Exception as error:  # noqa: BLE001 - nobody may be left without an answer
            exchange = Exchange(connection, head)
            connection.slots.append(exchange)
            exchange.answer(self._refused(error if isinstance(error, MulleError) else _broken(error), served))
            return
        connection.slots.append(job)
        if job.n_rows:
            plane.batcher.submit(job)
        else:
            self._later(job)

    def answer_together(self, batch: Batch) -> list[Job]:
        """Answer every request of a batch that is one row of JSON and nothing else; return the others."""
        served = batch.served
        if self._observer is not None or batch.n_rows != len(batch.jobs) or served.manifest.image is not None:
            return batch.jobs
        face: Face = served.face
        rows, first, id_prefix, tail = face.renderer.rows(batch), batch.first, batch.id_prefix, face.renderer.tail
        prefix = ""
        n_answered = 0
        others: list[Job] = []
        for i, job in enumerate(batch.jobs):
            if type(job) is not PredictJob or job.ids is not None or job.head.extra or not job.keep:
                others.append(job)
                continue
            connection = job.connection
            server = connection.server
            if server.draining:
                others.append(job)
                continue
            prefix = prefix or face.at(server.date)
            prediction_id = f"{id_prefix}{first + i:012x}"
            body = f'{{"predictions":[{rows[i]}],"prediction_ids":["{prediction_id}{tail}'
            n_answered += 1
            try:
                connection.complete(job, f"{prefix}{prediction_id}\r\ncontent-length: {len(body)}\r\n\r\n{body}".encode())
            except Exception:
                LOG.exception("an answer could not be handed over")
        face.ok.view[face.ok.index] += n_answered
        return others

    def answer(self, job: PredictJob) -> None:
        """Spell the outcome of a job and send it."""
        connection, batch, served = job.connection, job.batch, job.served
        if batch is None or job.error is not None:
            response = self._failed(job.error or _broken(LookupError("no outcome")), served)
            if self._observer is not None:
                self._observer(job.head, job, response.status)
            connection.respond(job, response, extra=job.head.extra)
            return
        face: Face = served.face
        face.ok.view[face.ok.index] += 1.0
        ids = job.ids
        if job.kind == IMAGES and self._pictures is not None:
            ids = job.prediction_ids()
            body = self._pictures.render(job, ids, (self._plane.monotonic_ns() - job.started_ns) / 1e6)
        else:
            rows = face.renderer.rows(batch)
            if job.n_rows == 1:
                ids = (batch.id_of(batch.first + job.at),) if ids is None else ids
                body = face.renderer.body((rows[job.at],), ids)
            else:
                ids = job.prediction_ids()
                body = face.renderer.body(rows[job.at : job.at + job.n_rows], ids)
        keep = connection.keeps(job)
        extra = job.head.extra if keep else job.head.extra + "connection: close\r\n"
        text = f"{face.at(connection.server.date)}{ids[0]}\r\n{extra}content-length: {len(body)}\r\n\r\n{body}"
        connection.complete(job, text.encode(), keep=keep)
        if self._observer is not None:
            self._observer(job.head, job, 200)

    # ---- inside

    def _read_carefully(self, job: PredictJob, memo: _Memo, body: bytes) -> None:
        """Read a body the quick way does not know into a job; one without rows afterwards waits for a store."""
        served = job.served
        if not memo.json:
            self._read_pictures(job, memo, body)
            return
        if served.manifest.image is not None:
            raise SpecError(
                "body-media-type",
                "this deployment takes pictures",
                fix="send a JPEG or PNG: curl -F file=@picture.jpg …/predict",
                where="content-type",
            )
        if served.manifest.task == "tensor":
            raise SpecError(
                "body-shape",
                "this deployment takes tensors",
                fix=f"send them to /v2/models/{served.home.name}/infer",
                where="body",
            )
        parsed = parse_predict(body, max_rows=self._max_rows)
        job.kind = job.key = ARRAYS
        if self._completer is not None and self._completer.lacks(parsed, served):
            job.inputs = parsed
        else:
            _encode(job, parsed, memo.prediction_id)
            job.n_rows = len(parsed)

    def _read_pictures(self, job: PredictJob, memo: _Memo, body: bytes) -> None:
        if self._pictures is None or job.served.manifest.image is None:
            raise SpecError(
                "body-media-type",
                f"the body is {memo.media[:80]!r}, and this deployment takes no pictures",
                fix="send JSON rows with the header content-type: application/json",
                where="content-type",
            )
        pictures = self._pictures.read(body, job.head.headers.get("content-type", ""), max_rows=self._max_rows)
        job.kind = job.key = IMAGES
        job.inputs, job.n_rows = pictures, len(pictures)
        if memo.prediction_id is not None:
            job.ids = header_ids(memo.prediction_id, len(pictures))

    def _later(self, job: PredictJob) -> None:
        if self._completer is None:
            return
        task = asyncio.ensure_future(self._complete(job, self._completer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _complete(self, job: PredictJob, completer: Completer) -> None:
        try:
            body = await completer.complete(job.inputs, job.served, job.deadline_ns)
            _encode(job, body, _memo_of(job.head).prediction_id)
            job.n_rows = len(body)
        except Exception as error:  # noqa: BLE001 - nobody may be left without an answer
            job.error = error if isinstance(error, MulleError) else _broken(error)
            job.served.home.count_failed(job.error, job.served.number, self._plane.now_ns())
            job.finish()
            return
        self._plane.submit(job)

    def _shed(self, connection: Connection, head: Head, served: Served, face: Face, reason: str) -> None:
        """Refuse a request under overload: what this costs is taken from those that are answered, so its bytes are ready."""
        served.home.shed(ROUTE, served.number, reason)
        if head.keep and not head.extra and not connection.server.draining:
            slot = _Shed()
            connection.slots.append(slot)
            connection.complete(slot, face.refusal(connection.server.date, reason))
            return
        exchange = Exchange(connection, head)
        connection.slots.append(exchange)
        exchange.answer(problem_of(overloaded(reason), {names.REVISION_HEADER: str(served.number)}))

    def _refused(self, error: MulleError, served: Served | None) -> Response:
        """Return the answer to a request that became no job, and count it."""
        home = self._plane.deployments.get(self._deployment or self._plane.default)
        if home is not None:
            home.count_failed(error, 0 if served is None else served.number, self._plane.now_ns())
        return self._failed(error, served)

    def _failed(self, error: MulleError, served: Served | None) -> Response:
        headers: Mapping[str, str] | None = None if served is None else {names.REVISION_HEADER: str(served.number)}
        home = self._plane.deployments.get(self._deployment or self._plane.default)
        if home is not None:
            home.count(ROUTE, 0 if served is None else served.number, status_of(error))
        if status_of(error) == _SERVER_FAULT:
            LOG.warning("a prediction failed: %s", error)
        return problem_of(error, headers)


class _Shed:
    """The slot of a refusal that is ready."""

    __slots__ = ("cancelled", "data", "keep")

    def __init__(self) -> None:
        self.keep = True
        self.data: bytes | None = None
        self.cancelled = False

    def cancel(self) -> None:
        """Take note that the client has gone."""
        self.cancelled = True


class Pictures(Protocol):
    """Reads uploads and spells their answers."""

    def read(self, body: bytes, content_type: str, *, max_rows: int) -> list[bytes]:
        """Return the encoded pictures of a body, at least one.

        Raises:
            SpecError: the body holds none, or cannot be read.
        """
        ...

    def render(self, job: Job, ids: Any, took_ms: float) -> str:
        """Return the answer's body, ASCII only."""
        ...


def _memo_of(head: Head) -> _Memo:
    memo = head.memo
    if not isinstance(memo, _Memo):
        memo = head.memo = _Memo(head)
    return memo


def _make_face(served: Served) -> Face:
    served.face = Face(served)
    return served.face


def _encode(job: PredictJob, body: Body, prediction_id: str | None) -> None:
    encoded = encode_body(body, job.served.manifest, header_id=prediction_id)
    job.inputs, job.ids, job.entity = encoded.arrays, encoded.ids, encoded.entity


def _broken(error: Exception) -> CheckError:
    LOG.error("a prediction failed", exc_info=error)
    return CheckError("internal", "the server failed on this request", fix="ask the operator: the server's log has the reason")
