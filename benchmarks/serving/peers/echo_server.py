"""The bare limits of two transports: `python echo_server.py http|grpc PORT`.

http: an asyncio protocol with httptools on uvloop decodes 30 floats and answers two numbers: no checks, no routes, no model.
grpc: a generic grpc.aio handler that answers the same few bytes to everything.
"""

import asyncio
import sys


def serve_http(port):
    import httptools
    import msgspec
    import uvloop

    class Body(msgspec.Struct):
        features: list[list[float]]

    decoder, encoder = msgspec.json.Decoder(Body), msgspec.json.Encoder()

    class Echo(asyncio.Protocol):
        def connection_made(self, transport):
            self.transport = transport
            self.parser = httptools.HttpRequestParser(self)
            self.body = b""

        def data_received(self, data):
            self.parser.feed_data(data)

        def on_body(self, body):
            self.body += body

        def on_message_complete(self):
            row = decoder.decode(self.body).features[0]
            self.body = b""
            answer = encoder.encode({"predictions": [[row[0], row[-1]]]})
            head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(answer)
            self.transport.write(head + answer)

    async def run():
        await asyncio.get_running_loop().create_server(Echo, "127.0.0.1", port)
        await asyncio.Event().wait()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run())


def serve_grpc(port):
    import grpc.aio

    message = bytes(200)

    async def answer(request, context):
        del request, context
        return message

    class Handler(grpc.GenericRpcHandler):
        def service(self, details):
            del details
            return grpc.unary_unary_rpc_method_handler(answer)

    async def run():
        server = grpc.aio.server()
        server.add_generic_rpc_handlers((Handler(),))
        server.add_insecure_port(f"127.0.0.1:{port}")
        await server.start()
        await server.wait_for_termination()

    try:
        import uvloop

        factory = uvloop.new_event_loop
    except ImportError:
        factory = None
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(run())


if __name__ == "__main__":
    {"http": serve_http, "grpc": serve_grpc}[sys.argv[1]](int(sys.argv[2]))
