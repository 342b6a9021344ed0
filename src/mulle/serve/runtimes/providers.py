# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
"""Where a graph is computed: on the processor, or with ONNX Runtime's CUDA provider where its build and the machine have one."""

import logging
from collections.abc import Sequence
from typing import Any, Literal, TypeAlias, cast, get_args

import onnxruntime as ort

from mulle.core.errors import SpecError, UnavailableError

LOG = logging.getLogger("mulle.serve")
ProviderChoice: TypeAlias = Literal["auto", "cpu", "cuda"]
CHOICES: tuple[str, ...] = get_args(ProviderChoice)
CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
# TensorFloat-32 would round to ten bits what golden requests, gates and the processor see in full.
_OPTIONS: dict[str, dict[str, str]] = {CPU: {}, CUDA: {"use_tf32": "0"}}


def choose_providers(wanted: ProviderChoice, offered: Sequence[str] | None = None) -> list[str]:
    """Return ONNX Runtime's providers to ask for, best first.

    Args:
        wanted: `cpu`; `cuda`: that or nothing; `auto`: CUDA where this build of ONNX Runtime offers it.
        offered: What it offers; by default the installed one is asked.

    Raises:
        SpecError: `provider-unknown`.
        UnavailableError: `provider-missing`: `cuda` was asked for, and this build has none.
    """
    if wanted not in CHOICES:
        raise SpecError("provider-unknown", f"there is no provider {wanted!r}", fix=f"use one of {', '.join(CHOICES)}")
    known = cast("Sequence[str]", ort.get_available_providers()) if offered is None else offered
    if wanted == "cpu" or (wanted == "auto" and CUDA not in known):
        return [CPU]
    if CUDA not in known:
        raise UnavailableError(
            "provider-missing",
            f"this ONNX Runtime ({ort.__version__}) has no CUDA provider",
            fix="install onnxruntime-gpu in the place of onnxruntime, or use --provider cpu",
            facts={"offered": ", ".join(known)},
        )
    return [CUDA, CPU]


def open_session(data: bytes, threads: int, wanted: ProviderChoice) -> Any:
    """Return a session over the graph in `data`; `provider_of` says where it runs.

    A CUDA provider that is offered but cannot start (no driver, other libraries) leaves the session on the processor: with
    `auto` that is one line in the log, with `cuda` an error.

    Raises:
        SpecError, UnavailableError: see `choose_providers`.
        Exception: whatever ONNX Runtime says about the graph.
    """
    providers = choose_providers(wanted)
    session = ort.InferenceSession(
        data, session_options(threads), providers=providers, provider_options=[_OPTIONS[name] for name in providers]
    )
    if CUDA in providers and CUDA not in session.get_providers():
        if wanted == "cuda":
            raise UnavailableError(
                "provider-missing",
                "ONNX Runtime's CUDA provider does not start on this machine",
                fix="check the driver and the CUDA libraries (`nvidia-smi`), or use --provider cpu",
            )
        LOG.warning("the CUDA provider does not start on this machine: the model runs on the processor")
    return session


def provider_of(session: Any) -> Literal["cpu", "cuda"]:
    """Return where a session computes."""
    return "cuda" if CUDA in session.get_providers() else "cpu"


def session_options(threads: int) -> Any:
    """Return options for serving: sequential, `threads` threads that sleep when idle instead of spinning."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 4
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    return options
