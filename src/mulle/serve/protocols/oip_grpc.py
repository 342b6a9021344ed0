# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
"""The Open Inference Protocol over gRPC, on the event loop of everything else.

The handlers are generic: they take and give bytes, and `oip_wire.py` knows what these mean. grpcio comes with the extra
`grpc` and is imported when the server is made. Compressed messages are inflated by gRPC itself, which stops at the
message limit.
"""

import logging
import time
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

from mulle.core.errors import MulleError, SpecError, UnavailableError
from mulle.serve.access.guard import GRPC_STATUS_OF_CODE
from mulle.serve.http.messages import status_of
from mulle.serve.protocols.oip import InferResponse
from mulle.serve.protocols.oip_service import EXTENSIONS, PLATFORM, SERVER, OipService, error_text, server_version
from mulle.serve.protocols.oip_turnstile import Turnstile
from mulle.serve.protocols.oip_wire import InferDecoder, ResponseEncoder, decode_names, encode_flag, encode_model, encode_server

LOG = logging.getLogger("mulle.serve")
SERVICE = "inference.GRPCInferenceService"
ROUTE = "grpc/ModelInfer"
_METADATA_BYTES = 16 << 10
_MAX_DETAIL_CHARACTERS = 1_000
_STATUS_OF_CODE = {
    "deployment-unknown": "NOT_FOUND",
    "revision-unknown": "NOT_FOUND",
    "deadline-expired": "DEADLINE_EXCEEDED",
    "request-cancelled": "CANCELLED",
    **GRPC_STATUS_OF_CODE,
}

Authorize: TypeAlias = Callable[[Iterable[tuple[str, str]], str], MulleError | None]
"""Takes a request's metadata and the deployment it is about; returns why the caller may not, or None."""


class GrpcServer:
    """The protocol's gRPC service; one per worker.

    Args:
        service: Answers.
        authorize: Says why a caller may not ask a deployment (an empty name: the server itself), or None; live and ready are open to all.
        max_message_bytes: Of a request, inflated.
        max_requests: Requests being worked on at most; the next one is refused at once.
        max_streams: Requests of one connection at most; the next one waits in the client.

    Raises:
        SpecError: `extra-missing`: grpcio is not installed.
    """

    def __init__(
        self,
        service: OipService,
        *,
        authorize: Authorize | None = None,
        max_message_bytes: int = 16 << 20,
        max_requests: int = 1_024,
        max_streams: int = 1_024,
    ) -> None:
        try:
            import grpc
            from grpc import aio
        except ImportError as error:
            raise SpecError(
                "extra-missing", "gRPC needs grpcio, which is not installed", fix="pip install 'mulle[grpc]', then start again"
            ) from error
        self._grpc: Any = grpc
        self._aio: Any = aio
        self._service = service
        self._authorize = authorize
        self._decode = InferDecoder()
        self._encode = ResponseEncoder()
        self._max_requests = max_requests
        self._options: list[tuple[str, int]] = [
            ("grpc.max_receive_message_length", max_message_bytes),
            ("grpc.max_send_message_length", -1),
            ("grpc.max_concurrent_streams", max_streams),
            ("grpc.max_metadata_size", _METADATA_BYTES),
        ]
        self._server: Any = None
        self._turnstile: Turnstile | None = None

    async def start(self, host: str, port: int, *, reuse_port: bool = False) -> int:
        """Return the port it listens on, after it has begun to.

        Args:
            host: An address of this machine.
            port: 0 takes a free one.
            reuse_port: Share the port with other workers; the kernel spreads connections over them.

        Raises:
            UnavailableError: `serve-port`.
        """
        grpc: Any = self._grpc
        options = [*self._options, ("grpc.so_reuseport", int(reuse_port))]
        server = self._aio.server(options=options, maximum_concurrent_rpcs=self._max_requests)
        methods = {
            "ServerLive": self._live,
            "ServerReady": self._ready,
            "ModelReady": self._model_ready,
            "ServerMetadata": self._server_metadata,
            "ModelMetadata": self._model_metadata,
            "ModelInfer": self._infer,
        }
        handlers = {name: grpc.unary_unary_rpc_method_handler(method) for name, method in methods.items()}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        try:
            bound = int(server.add_insecure_port(address))
        except RuntimeError:
            bound = 0
        if not bound:
            raise UnavailableError(
                "serve-port", f"gRPC cannot listen on {address}", fix="stop what listens there, or choose another port", where="--grpc-port"
            )
        self._turnstile = self._service.make_turnstile()
        await server.start()
        self._server = server
        return bound

    async def stop(self, grace_s: float) -> None:
        """Take no more requests, and give those on their way `grace_s` seconds."""
        server, self._server = self._server, None
        if server is not None:
            await server.stop(grace_s)

    # ---- the service's methods

    async def _live(self, data: bytes, context: Any) -> bytes:
        del data, context
        return encode_flag(value=True)

    async def _ready(self, data: bytes, context: Any) -> bytes:
        del data, context
        return encode_flag(value=self._service.ready)

    async def _model_ready(self, data: bytes, context: Any) -> bytes:
        try:
            name, version = decode_names(data)
            self._require(context, name)
            return encode_flag(value=self._service.model_ready(name, version))
        except Exception as error:  # noqa: BLE001 - whatever it is, the caller gets a status and no internals
            return await self._abort(context, error)

    async def _server_metadata(self, data: bytes, context: Any) -> bytes:
        del data
        try:
            self._require(context, "")
            return encode_server(SERVER, server_version(), EXTENSIONS)
        except Exception as error:  # noqa: BLE001 - whatever it is, the caller gets a status and no internals
            return await self._abort(context, error)

    async def _model_metadata(self, data: bytes, context: Any) -> bytes:
        try:
            name, version = decode_names(data)
            self._require(context, name)
            info = self._service.describe(name, version)
            return encode_model(info.name, info.versions, PLATFORM, info.inputs, info.outputs)
        except Exception as error:  # noqa: BLE001 - whatever it is, the caller gets a status and no internals
            return await self._abort(context, error)

    async def _infer(self, data: bytes, context: Any) -> bytes:
        model, answer = "", None
        try:
            request = self._decode(data)
            model = request.model
            self._require(context, model)
            left_s: float | None = context.time_remaining()
            deadline_ns = 0 if left_s is None else time.monotonic_ns() + int(left_s * 1e9)
            answer = await self._service.infer(request, deadline_ns=deadline_ns, turnstile=self._turnstile)
            self._count(model, answer, 200)
            return self._encode(answer)
        except Exception as error:  # noqa: BLE001 - whatever it is, the caller gets a status and no internals
            self._count(model, answer, status_of(error) if isinstance(error, MulleError) else 500)
            return await self._abort(context, error)

    # ---- inside

    def _count(self, model: str, answer: InferResponse | None, status: int) -> None:
        self._service.count(model, answer, ROUTE, status)

    def _require(self, context: Any, deployment: str) -> None:
        if self._authorize is None:
            return
        metadata = [(key, value) for key, value in context.invocation_metadata() or () if isinstance(value, str)]
        refusal = self._authorize(metadata, deployment)
        if refusal is not None:
            raise refusal

    async def _abort(self, context: Any, error: Exception) -> bytes:
        status = status_name(error)
        if status == "INTERNAL":
            LOG.warning("an inference failed: %s", error, exc_info=None if isinstance(error, MulleError) else error)
        if isinstance(error, MulleError):
            sentence = error_text(error, hide=status == "INTERNAL")
        else:
            sentence = "[internal] the server failed on this request; ask the operator: the server's log has the reason"
        await context.abort(getattr(self._grpc.StatusCode, status), sentence[:_MAX_DETAIL_CHARACTERS])
        return b""  # abort does not come back


def status_name(error: Exception) -> str:
    """Return the name of the gRPC status of an error."""
    if isinstance(error, MulleError) and error.code in _STATUS_OF_CODE:
        return _STATUS_OF_CODE[error.code]
    if isinstance(error, SpecError):
        return "INVALID_ARGUMENT"
    return "UNAVAILABLE" if isinstance(error, UnavailableError) else "INTERNAL"
