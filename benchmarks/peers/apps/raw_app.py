"""The limit: V2 JSON on a socket, with uvloop and httptools, and nothing that a server is needed for."""

import asyncio

import httptools
import models
import uvloop
import v2json

MODEL = models.make()


class Raw(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport = transport
        self.parser = httptools.HttpRequestParser(self)

    def data_received(self, data):
        self.parser.feed_data(data)

    def on_message_begin(self):
        self.parts = []

    def on_body(self, part):
        self.parts.append(part)

    def on_message_complete(self):
        answer = v2json.encode(MODEL(v2json.decode(b"".join(self.parts))))
        head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(answer)
        self.transport.write(head + answer)


async def main():
    server = await asyncio.get_running_loop().create_server(Raw, "127.0.0.1", models.PORT)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main())
