"""Which HTTP stack carries the data plane: the same JSON work under four of them, in one run, as ratios.

Every server decodes 30 floats with msgspec, sums them and answers JSON; no model, so that only the stack is measured:

- `mulle`      `mulle.serve.http` (asyncio.Protocol + httptools + uvloop) with all of its limits and checks;
- `starlette`  Starlette on uvicorn (httptools, uvloop);
- `fastapi`    FastAPI on uvicorn, the body taken as a pydantic model: the tutorial's way;
- `asgi`       a bare ASGI function on uvicorn.

Closed loop: C connections, each asks again when it has its answer. Stacks take turns over several rounds; the median is
reported. The client shares the machine and is a bare asyncio protocol itself. Run: python benchmarks/http_stack.py
"""

import argparse
import asyncio
import json
import multiprocessing
import os
import platform
import resource
import statistics
import time

import msgspec

BODY = json.dumps({"values": [i * 0.37 for i in range(30)]}).encode()
REQUEST = b"POST /predict HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(BODY) + BODY


class Payload(msgspec.Struct):
    """What is sent."""

    values: list[float]


def answer(body):
    return msgspec.json.encode({"value": sum(msgspec.json.decode(body, type=Payload).values)})


def serve_mulle(listener):
    import uvloop

    from mulle.serve.http.checks import Limits
    from mulle.serve.http.connection import HttpServer
    from mulle.serve.http.messages import Response

    async def work():
        server = HttpServer(lambda request: Response(200, answer(request.body)), limits=Limits(), allowed_hosts=frozenset({"127.0.0.1"}))
        await asyncio.get_running_loop().create_server(server, sock=listener)
        await asyncio.Event().wait()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(work())


def run_uvicorn(app, listener):
    import uvicorn

    config = uvicorn.Config(app, loop="uvloop", http="httptools", log_level="error", access_log=False)
    uvicorn.Server(config).run(sockets=[listener])


def serve_starlette(listener):
    from starlette.applications import Starlette
    from starlette.responses import Response
    from starlette.routing import Route

    async def predict(request):
        return Response(answer(await request.body()), media_type="application/json")

    run_uvicorn(Starlette(routes=[Route("/predict", predict, methods=["POST"])]), listener)


def serve_fastapi(listener):
    from fastapi import FastAPI
    from pydantic import BaseModel

    class Body(BaseModel):
        values: list[float]

    app = FastAPI()

    @app.post("/predict")
    async def predict(body: Body):
        return {"value": sum(body.values)}

    run_uvicorn(app, listener)


def serve_asgi(listener):
    async def app(scope, receive, send):
        if scope["type"] != "http":
            return
        message = await receive()
        body = answer(message["body"])
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    run_uvicorn(app, listener)


STACKS = {"mulle": serve_mulle, "asgi": serve_asgi, "starlette": serve_starlette, "fastapi": serve_fastapi}


class Client(asyncio.Protocol):
    """Ask, wait for the whole answer, ask again."""

    def __init__(self, latencies):
        self.latencies = latencies
        self.buffer = b""

    def connection_made(self, transport):
        """Begin."""
        self.transport = transport
        self.ask()

    def ask(self):
        """Send one request."""
        self.began = time.perf_counter()
        self.transport.write(REQUEST)

    def data_received(self, data):
        """Collect one answer."""
        self.buffer += data
        head, found, body = self.buffer.partition(b"\r\n\r\n")
        if not found:
            return
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        if len(body) >= length:
            assert head.startswith(b"HTTP/1.1 200"), head
            self.latencies.append(time.perf_counter() - self.began)
            self.buffer = b""
            self.ask()


async def drive(port, connections, seconds):
    """Return requests per second and latencies in seconds."""
    loop = asyncio.get_running_loop()
    latencies = []
    for _ in range(100):
        try:
            transport, _protocol = await loop.create_connection(lambda: Client([]), "127.0.0.1", port)
            break
        except OSError:
            await asyncio.sleep(0.1)
    await asyncio.sleep(0.3)
    transport.close()
    transports = [(await loop.create_connection(lambda: Client(latencies), "127.0.0.1", port))[0] for _ in range(connections)]
    began = time.perf_counter()
    await asyncio.sleep(seconds)
    rate = len(latencies) / (time.perf_counter() - began)
    for transport in transports:
        transport.close()
    return rate, latencies


def cpu_seconds(pid):
    """Return the CPU seconds a process has used (Linux)."""
    with open(f"/proc/{pid}/stat", encoding="ascii") as file:  # noqa: PTH123 - a pseudo-file, read in a loop
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(stack, connections, seconds):
    """Return rate per second, p50 and p99 in milliseconds, CPU microseconds per request."""
    import socket

    import uvloop

    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(1024)
    listener.setblocking(False)
    process = multiprocessing.get_context("fork").Process(target=STACKS[stack], args=(listener,), daemon=True)
    process.start()
    port = listener.getsockname()[1]
    listener.close()
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(drive(port, 1, 0.5))
            before = cpu_seconds(process.pid)
            rate, latencies = runner.run(drive(port, connections, seconds))
            used = cpu_seconds(process.pid) - before
    finally:
        process.terminate()
        process.join()
    ordered = sorted(latencies)
    return rate, ordered[len(ordered) // 2] * 1e3, ordered[int(len(ordered) * 0.99)] * 1e3, used / len(ordered) * 1e6


def main():
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--connections", type=int, nargs="+", default=[1, 16, 64])
    options = parser.parse_args()
    results = []
    print(f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, Python {platform.python_version()}")
    for connections in options.connections:
        runs = {stack: [] for stack in STACKS}
        for _ in range(options.rounds):
            for stack, found in runs.items():
                found.append(measure(stack, connections, options.seconds))
        medians = {stack: [statistics.median(column) for column in zip(*found, strict=True)] for stack, found in runs.items()}
        base = medians["fastapi"]
        print(f"\n{connections} connections   req/s     p50 ms   p99 ms   CPU us/req   req/s vs fastapi   CPU vs fastapi")
        for stack, (rate, p50, p99, cpu) in medians.items():
            print(f"  {stack:<12} {rate:9,.0f} {p50:9.2f} {p99:8.2f} {cpu:10.1f} {rate / base[0]:15.1f} {cpu / base[3]:17.2f}")
            results.append({"stack": stack, "connections": connections, "rate": rate, "p50_ms": p50, "p99_ms": p99, "cpu_us": cpu})
    print(f"\nclient: peak {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB; believe ratios, not figures")
    print(json.dumps(results))


if __name__ == "__main__":
    main()
