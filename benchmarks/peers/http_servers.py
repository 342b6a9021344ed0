"""The echo of `http_stack.py` behind servers with their own HTTP parsers: `python http_servers.py NAME PORT`."""

import sys

import msgspec


class Payload(msgspec.Struct):
    """What a request holds."""

    values: list[float]


def answer(body: bytes) -> bytes:
    return msgspec.json.encode({"value": sum(msgspec.json.decode(body, type=Payload).values)})


async def rsgi(scope, protocol):
    del scope
    protocol.response_bytes(200, [("content-type", "application/json")], answer(await protocol()))


def run_granian(port: int) -> None:
    from granian import Granian

    Granian("http_servers:rsgi", port=port, interface="rsgi", loop="uvloop", log_enabled=False).serve()


def run_blacksheep(port: int) -> None:
    import uvicorn
    from blacksheep import Application, Content, Request, Response

    app = Application()

    @app.router.post("/predict")
    async def predict(request: Request) -> Response:
        return Response(200, content=Content(b"application/json", answer(await request.read() or b"")))

    uvicorn.run(app, port=port, loop="uvloop", http="httptools", log_level="error", access_log=False)


def run_robyn(port: int) -> None:
    from robyn import Response, Robyn

    app = Robyn(__file__)

    @app.post("/predict")
    async def predict(request):
        body = request.body if isinstance(request.body, bytes) else request.body.encode()
        return Response(status_code=200, headers={"content-type": "application/json"}, description=answer(body))

    app.start(host="127.0.0.1", port=port)


if __name__ == "__main__":
    name, port = sys.argv[1], int(sys.argv[2])
    sys.argv = sys.argv[:1]
    {"granian": run_granian, "blacksheep": run_blacksheep, "robyn": run_robyn}[name](port)
