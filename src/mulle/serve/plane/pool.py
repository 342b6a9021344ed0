"""A few threads for models that take longer than a turn of the loop may: the runtime lets go of the interpreter while it runs."""

import asyncio
import os
import threading
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any


class Pool:
    """Threads that run work and hand the results back to the loop, as many as came in, in one turn.

    Args:
        n_threads: How many; started when first needed.
        deliver: Called on the loop with the results that have come in.
    """

    def __init__(self, n_threads: int, deliver: Callable[[list[Any]], None]) -> None:
        self.n_threads = n_threads
        self.n_free = n_threads
        self._deliver = deliver
        self._loop = asyncio.get_running_loop()
        self._tasks: SimpleQueue[Callable[[], Any] | None] = SimpleQueue()
        self._results: deque[Any] = deque()
        self._told = False
        self._threads: list[threading.Thread] = []

    def submit(self, work: Callable[[], Any]) -> None:
        """Run `work`, which must not raise, in a thread; call it while `n_free` is positive: what waits elsewhere can still be dropped."""
        self.n_free -= 1
        if len(self._threads) < self.n_threads and self.n_free < self.n_threads - len(self._threads):
            thread = threading.Thread(target=self._work, name=f"mulle-model-{len(self._threads)}", daemon=True)
            self._threads.append(thread)
            thread.start()
        self._tasks.put(work)

    def close(self) -> None:
        """Let the threads end after what they do now."""
        for _ in self._threads:
            self._tasks.put(None)

    def _work(self) -> None:
        while (task := self._tasks.get()) is not None:
            self._results.append(task())
            if not self._told:
                self._told = True
                try:
                    self._loop.call_soon_threadsafe(self._collect)
                except RuntimeError:  # the loop has ended: nobody waits
                    return

    def _collect(self) -> None:
        self._told = False
        results: list[Any] = []
        while self._results:
            results.append(self._results.popleft())
        self.n_free += len(results)
        self._deliver(results)


def n_cores() -> int:
    """Return how many processors this process may use: of a machine shared by pinning it is not all of them."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
