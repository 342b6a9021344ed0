"""The keeper's process, as its parent holds it: started beside the server, started again when it dies, gone with it."""

import contextlib
import logging
import subprocess
import time
from pathlib import Path

from mulle.serve.journal.config import KeeperConfig, command

LOG = logging.getLogger("mulle.serve")
_AGAIN_S = 30.0
_MOMENT_S = 0.2


class KeeperChild:
    """One keeper.

    Args:
        config: What it does.
    """

    def __init__(self, config: KeeperConfig) -> None:
        self._config = config
        self._process: subprocess.Popen[bytes] | None = None
        self._started_s = 0.0

    def look(self) -> None:
        """Start it, or start it again when it has ended; not more often than twice a minute. Never raises."""
        process = self._process
        if process is not None and process.poll() is None:
            return
        now = time.monotonic()
        if process is not None:
            if now - self._started_s < _AGAIN_S:
                return
            LOG.warning("the prediction log's keeper ended with %s: it is started again", process.returncode)
            self._close(process)
        try:
            # Its standard input ends with this process, however that ends; then it does a last round and goes.
            self._process = subprocess.Popen(command(self._config), stdin=subprocess.PIPE, cwd=Path("/"), start_new_session=True)
            self._started_s = now
        except OSError as error:
            LOG.warning("the prediction log's keeper cannot be started (%s): the log grows unencoded", error.strerror)

    def stop(self) -> None:
        """Let it do its last round; does not wait for that to end."""
        if self._process is not None:
            self._close(self._process)
            self._process = None

    @staticmethod
    def _close(process: "subprocess.Popen[bytes]") -> None:
        if process.stdin is not None:
            process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_MOMENT_S)
