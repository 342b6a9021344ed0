"""What the operating system knows of a process: CPU, memory, descriptors; and which software runs."""

import os
import platform
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

from mulle.core.version import VERSION
from mulle.formats import telemetry as names
from mulle.serve.telemetry.registry import MetricsRegistry

_PROC = Path("/proc/self")


def watch_process(registry: MetricsRegistry, *, onnxruntime: str = "") -> None:
    """Tell build, start, CPU, memory and descriptors of this process from now on; read at every `collect`, 30 µs.

    Args:
        registry: Where.
        onnxruntime: Version of ONNX Runtime, from whoever has it loaded.
    """
    registry.gauge(names.BUILD_INFO, version=VERSION, python=platform.python_version(), onnxruntime=onnxruntime).put(1)
    registry.gauge(names.PROCESS_START).put(time.time())
    registry.collectors.append(_collector(registry))
    registry.collect()


def _collector(registry: MetricsRegistry) -> Callable[[], None]:
    cpu = registry.total(names.PROCESS_CPU)
    memory = registry.gauge(names.PROCESS_MEMORY)
    fds, max_fds = registry.gauge(names.PROCESS_FDS), registry.gauge(names.PROCESS_MAX_FDS)
    page = os.sysconf("SC_PAGE_SIZE")

    def collect() -> None:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        cpu.tell(usage.ru_utime + usage.ru_stime)
        try:
            memory.put(int((_PROC / "statm").read_text(encoding="ascii").split()[1]) * page)
            fds.put(sum(1 for _ in (_PROC / "fd").iterdir()))
        except OSError:
            # Elsewhere than on Linux: the highest so far, in bytes on macOS and KiB on others; descriptors are not told.
            memory.put(usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024))
            registry.forget(names.PROCESS_FDS)
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        max_fds.put(float("inf") if limit == resource.RLIM_INFINITY else limit)

    return collect
