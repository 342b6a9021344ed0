"""A worker with a server of thirty lines: what is tested with it is the supervisor, at the speed of a bare process.

`GET /` answers with the process id. `/hang` blocks the loop for good, `/slow` answers after 0.3 s, `/exit` ends the process.
Run as a program: `tiny_worker.py DESCRIPTOR` is the worker, `tiny_worker.py supervise JSON` the supervisor above it.
"""

import asyncio
import json
import logging
import os
import signal
import sys
import time
from pathlib import Path

from mulle.core.errors import SpecError
from mulle.serve.seat import Seat, run_worker
from mulle.serve.slots import accept_rest, open_slots
from mulle.serve.workers import SPARE, WorkerPlan, serve_workers


class Tiny(asyncio.Protocol):
    def __init__(self, server):
        self.server = server
        self.busy = 0
        self.buffer = b""

    def connection_made(self, transport):
        self.transport = transport
        self.server.open.add(self)

    def connection_lost(self, exc):
        self.server.open.discard(self)

    def data_received(self, data):
        self.buffer += data
        while b"\r\n\r\n" in self.buffer:
            head, _, self.buffer = self.buffer.partition(b"\r\n\r\n")
            path = head.split()[1]
            if path == b"/hang":
                time.sleep(1000)
            if path == b"/exit":
                os._exit(7)
            self.busy += 1
            if path == b"/slow":
                asyncio.get_running_loop().call_later(0.3, self.answer)
            else:
                self.answer()

    def answer(self):
        self.busy -= 1
        body = str(os.getpid()).encode()
        last = b"connection: close\r\n" if self.server.draining else b""
        self.transport.write(b"HTTP/1.1 200 OK\r\n%scontent-length: %d\r\n\r\n%s" % (last, len(body), body))
        if last:
            self.transport.close()


class Server:
    def __init__(self):
        self.open = set()
        self.draining = False

    async def run(self, seat):
        loop = asyncio.get_running_loop()
        ended = asyncio.Event()
        loop.add_signal_handler(signal.SIGTERM, ended.set)
        server = await loop.create_server(lambda: Tiny(self), sock=seat.listener)
        seat.ready({"port": seat.listener.getsockname()[1], "pid": os.getpid(), "worker": seat.worker})
        await ended.wait()
        self.draining = True
        rest = accept_rest(seat.listener)
        server.close()
        for connection in rest:
            await loop.connect_accepted_socket(lambda: Tiny(self), connection)
        end = loop.time() + seat.drain_timeout_s
        idle = loop.time() + 0.2
        while self.open and loop.time() < end:
            await asyncio.sleep(0.01)
            if loop.time() > idle:
                for connection in [connection for connection in self.open if not connection.busy]:
                    connection.transport.close()


def serve(seat: Seat) -> None:
    config = json.loads(seat.config)
    flag = Path(config["folder"]) / f"fail-{seat.worker}"
    if flag.exists():
        raise SpecError("tiny-broken", f"worker {seat.worker} was told to fail", fix=f"remove {flag.name}")
    asyncio.run(Server().run(seat))


def supervise(options) -> int:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    folder = Path(options.pop("folder"))
    slots = open_slots("127.0.0.1", options.pop("port", 0), options.pop("n"), one_each=options.pop("one_each", None))
    restarts = []

    def show(status):
        draft = folder / ".status"
        draft.write_text(json.dumps([[s.worker, s.pid, s.state, s.restarts] for s in status if s.worker != SPARE]))
        draft.replace(folder / "status.json")

    def ready(infos):
        sys.stdout.write(json.dumps({"pid": os.getpid(), "port": infos[0]["port"], "workers": infos}) + "\n")
        sys.stdout.flush()

    plan = WorkerPlan(
        slots=slots,
        config=lambda: json.dumps({"folder": str(folder)}).encode(),
        command=[sys.executable, __file__],
        terminal=False,
        **options,
    )
    return serve_workers(plan, on_ready=ready, on_change=show, on_restart=restarts.append)


if __name__ == "__main__":
    if sys.argv[1] == "supervise":
        try:
            sys.exit(supervise(json.loads(sys.argv[2])))
        except SpecError as error:
            sys.stderr.write(f"{error}\n")
            sys.exit(error.exit_code)
    sys.exit(run_worker(int(sys.argv[1]), serve))
