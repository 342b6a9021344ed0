"""A server over a churn bundle, for tests that talk to it."""

import time
from contextlib import contextmanager

from mulle.serve.server import ServeConfig, server_in_thread
from support.bundles import seal_churn, trusted_key, write_spec


def config(state_dir, **changes):
    return ServeConfig(**({"state_dir": state_dir, "deployment": "churn", "trusted": [trusted_key()], "port": 0} | changes))


@contextmanager
def running(tmp_path, *, bundle=None, **changes):
    """Serve one churn bundle at generation 1 and give a server and its state folder."""
    state = tmp_path / ".mulle"
    write_spec(state, [bundle or seal_churn(state / "bundles")], generation=1)
    with server_in_thread(config(state, **changes)) as started:
        yield started, state


def wait_until(condition, seconds=5.0):
    """Return whether `condition` came true in time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.02)
    return False
