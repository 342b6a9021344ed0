"""What the Open Inference Protocol asks of a server, answered from the data plane; it knows neither HTTP nor gRPC.

A model of the protocol is a deployment, a version of it is a revision.
"""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass

from mulle.core.errors import MulleError, SpecError
from mulle.core.version import VERSION
from mulle.serve.plane.dataplane import DataPlane
from mulle.serve.plane.jobs import CallbackJob
from mulle.serve.plane.served import Served
from mulle.serve.protocols.oip import InferRequest, InferResponse, TensorInfo
from mulle.serve.protocols.oip_parameters import PREDICTION_ID, ids_of, require_plain, timeout_ns, unit_of
from mulle.serve.protocols.oip_turnstile import Turnstile
from mulle.serve.protocols.oip_view import view_of
from mulle.serve.state import ServerState

SERVER = "mulle"
PLATFORM = "onnxruntime_onnx"
EXTENSIONS = ("binary_tensor_data", "classification", "parameters")


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What a model takes and gives."""

    name: str
    versions: Sequence[str]
    inputs: Sequence[TensorInfo]
    outputs: Sequence[TensorInfo]


class OipService:
    """The protocol's verbs.

    Args:
        plane: Answers.
        state: Says whether the server is ready.
        max_rows: Rows per request.
    """

    def __init__(self, plane: DataPlane, state: ServerState, *, max_rows: int) -> None:
        self._plane = plane
        self._state = state
        self._max_rows = max_rows

    @property
    def ready(self) -> bool:
        """Whether new requests are welcome."""
        return self._state.ready

    def model_ready(self, name: str, version: str) -> bool:
        """Return whether a revision of a deployment answers; one that is not there is not ready."""
        try:
            self._find(name, version)
        except SpecError:
            return False
        return self._state.ready

    def describe(self, name: str, version: str) -> ModelInfo:
        """Return what a model takes and gives.

        Raises:
            SpecError: `deployment-unknown`, `revision-unknown`, `header-invalid`.
        """
        view = view_of(self._find(name, version))
        serving = self._plane.deployment(name).serving
        return ModelInfo(name, [str(served.number) for served in serving.revisions], view.inputs, view.outputs)

    async def infer(
        self,
        request: InferRequest,
        *,
        deadline_ns: int = 0,
        unit: str | None = None,
        pinned: str | None = None,
        prediction_id: str | None = None,
        turnstile: Turnstile | None = None,
    ) -> InferResponse:
        """Return the answer to a request, logged; cancelling the awaiting task takes the request out of its batch.

        Args:
            request: What is asked.
            deadline_ns: Monotonic moment from which the transport does not want the answer; 0: none.
            unit: Who asks, where the transport says it.
            pinned: The revision, where the transport says it beside the version.
            prediction_id: The client's id, where the transport says it.
            turnstile: Where the transport wants requests to wait for their mates.

        Raises:
            MulleError: what the plane, the view and the parameters refuse.
        """
        started_ns = time.monotonic_ns()
        parameters = request.parameters
        if parameters:
            require_plain(parameters)
            unit = unit_of(parameters) or unit
            patience = timeout_ns(parameters)
            if patience:
                deadline_ns = min(deadline_ns or started_ns + patience, started_ns + patience)
        served = self._find(request.model, request.version or pinned or "", unit)
        home = served.home
        try:
            view = view_of(served)
            wanted = view.select(request.outputs)
            work = view.accept(request.inputs, max_rows=self._max_rows)
            ids = ids_of(parameters, work.n_rows, header=prediction_id)
        except SpecError as error:
            home.count_failed(error, served.number, self._plane.now_ns())
            raise
        job = CallbackJob(
            served,
            work.kind,
            work.data,
            work.n_rows,
            started_ns,
            key=work.key,
            n_bytes=work.n_bytes,
            deadline_ns=deadline_ns,
            ids=ids,
            entity=work.entity,
        )
        await (self._plane.answer(job) if turnstile is None else self._answer_with_mates(job, turnstile))
        if job.error is not None:
            raise job.error
        return InferResponse(request.model, str(served.number), request.id, view.render(job, wanted), {PREDICTION_ID: _first_id(job)})

    def make_turnstile(self) -> Turnstile:
        """Return a turnstile before the data plane; call it on the running loop."""
        return Turnstile(self._plane.submit)

    async def _answer_with_mates(self, job: CallbackJob, turnstile: Turnstile) -> None:
        """Do what the plane's `answer` does, but let the turnstile say when."""
        error = self._plane.refusal(job.served, job.n_bytes, job.started_ns)
        if error is not None:
            job.error = error
            job.served.home.count_failed(error, job.served.number, self._plane.now_ns())
            return
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        job.callback = lambda _: None if done.done() else done.set_result(None)
        turnstile.put(job)
        try:
            await done
        except asyncio.CancelledError:
            job.cancelled = True
            raise

    def count(self, model: str, response: InferResponse | None, route: str, status: int) -> None:
        """Count how a request ended, if it was about a deployment that is there; a status is HTTP's."""
        deployment = self._plane.deployments.get(model)
        if deployment is not None:
            deployment.count(route, 0 if response is None else int(response.version), status)

    def _find(self, name: str, version: str, unit: str | None = None) -> Served:
        if not name:
            # The plane takes an empty name as its first deployment; the protocol has no such thing.
            raise SpecError("deployment-unknown", "the request names no model", fix="use the name of a deployment; /health lists them")
        return self._plane.pick(name, pinned=version or None, unit=unit)


def _first_id(job: CallbackJob) -> str:
    """Return the id of the first row without making those of the others."""
    batch = job.batch
    if job.ids is not None or batch is None:
        return job.prediction_ids()[0]
    return batch.id_of(batch.first + job.at)


def error_text(error: MulleError, *, hide: bool) -> str:
    """Return an error as one line, which is all the protocol has room for.

    Args:
        error: What went wrong.
        hide: Say the code alone: the server's own faults are told to its log.
    """
    if hide:
        return f"[{error.code}] the model could not answer this request; ask the operator: the server's log has the reason"
    return f"[{error.code}] {error.what}; {error.fix}"


def server_version() -> str:
    """Return the version that metadata shows."""
    return VERSION
