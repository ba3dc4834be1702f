"""Every kind of request at once, each answer checked against its own input. The models write all answers into one array.

A client asks one request after the other, in an order of its own, on one connection of HTTP and one of gRPC.
"""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, NamedTuple

import grpc
import numpy as np

from mpserve.protocol.protobuf import inference_pb2 as pb
from tests.documents import ROOT
from tests.formats import FORMATS, Format
from tests.running import PATIENCE, Server

MAX_BODY_SIZE = 1_000_000

SOURCE = (ROOT / "tests/models/reusing.py").read_text()
TARGET = "model.py:models"
MODELS = ("plain", "between", "batched", "awaits")
PARTS = 3
SHAPES = ((1, 3), (3, 4), (70, 120))
"""The answer of the last has more than 64 kB."""
OFTEN = (0.6, 0.35, 0.05)


class Wrong(Exception):
    """An answer that is not the one to its request."""


class Lost(Exception):
    """A request without an answer, or with another status than the one that is due."""


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes


class Client:
    """One connection of HTTP and one of gRPC. It opens the one of HTTP anew when the server has closed it."""

    def __init__(self, port: int, channel: grpc.aio.Channel | None, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        self.channel = channel
        self._port = port
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    def numbers(self) -> Any:
        return self.random.integers(0, 10**9, SHAPES[self.random.choice(len(SHAPES), p=OFTEN)]) / 8

    async def send(self, data: bytes) -> None:
        await asyncio.sleep(0)  # the event loop sees an end of the connection, if there is one
        if self._reader is None or self._reader.at_eof():
            self.close()
            self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port, limit=1 << 24)
        assert self._writer is not None
        self._writer.write(data)
        await self._writer.drain()

    async def receive(self) -> Answer:
        assert self._reader is not None
        reader = self._reader
        line, *fields = (await reader.readuntil(b"\r\n\r\n")).decode().splitlines()[:-1]
        headers = {name.lower(): value.strip() for name, _, value in (field.partition(":") for field in fields)}
        if headers.get("transfer-encoding") == "chunked":
            body = b""
            while size := int(await reader.readuntil(b"\r\n"), 16):
                body += (await reader.readexactly(size + 2))[:-2]
            await reader.readexactly(2)
        else:
            body = await reader.readexactly(int(headers.get("content-length", 0)))
        if headers.get("connection") == "close":
            self.close()
        return Answer(int(line.split()[1]), headers, body)

    async def post(self, path: str, headers: dict[str, str], body: bytes) -> Answer:
        await self.send(request(path, {**headers, "content-length": str(len(body))}) + body)
        return await self.receive()

    async def unary(self, message: bytes) -> bytes:
        assert self.channel is not None
        return await self.channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")(message, timeout=PATIENCE)

    async def stream(self, *messages: bytes) -> list[bytes]:
        async def sent() -> AsyncIterator[bytes]:
            for message in messages:
                yield message

        assert self.channel is not None
        method = self.channel.stream_stream("/inference.GRPCInferenceService/ModelStreamInfer")
        return [part async for part in method(sent(), timeout=PATIENCE)]

    def close(self, reset: bool = False) -> None:
        if self._writer is not None:
            self._writer.transport.abort() if reset else self._writer.close()
        self._reader = self._writer = None


Ask = Callable[[Client], Awaitable[None]]


def request(path: str, headers: dict[str, str], method: str = "POST") -> bytes:
    fields = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"{method} {path} HTTP/1.1\r\nhost: x\r\n{fields}\r\n".encode()


def due(answer: Answer, status: int, words: str = "") -> Answer:
    if answer.status != status or words not in (answer.body.decode(errors="replace") if words else ""):
        raise Lost(f"{answer.status} {answer.body[:150]!r}")
    return answer


def compare(parts: Sequence[Any], x: Any, count: int = 1) -> None:
    expected = [x.ravel() * 2 + number + 1 for number in range(count)]
    if len(parts) != count or not all(map(np.array_equal, parts, expected)):
        raise Wrong(f"{[part[:3] for part in parts]} for {expected[0][:3]}, shape {x.shape}")


def of_format(format: Format, models: Sequence[str] = MODELS, count: int = 1) -> Ask:
    async def ask(client: Client) -> None:
        x, model = client.numbers(), models[client.random.integers(len(models))]
        headers, body = format.write(x, {})
        if format.path:
            answer = due(await client.post(format.path.format(model), headers, body), 200)
            return compare(format.read(answer.headers, answer.body), x, count)
        message = pb.ModelInferRequest.FromString(body)
        message.model_name = model
        asked = message.SerializeToString()
        parts = await client.stream(asked) if format.call == "ModelStreamInfer" else [await client.unary(asked)]
        return compare([each for part in parts for each in format.read({}, part)], x, count)

    return ask


V1, V2 = (next(format for format in FORMATS if format.name == name) for name in ("V1", "V2"))


async def cloud_event(client: Client) -> None:
    x = client.numbers()
    headers, body = V1.write(x, {})
    event = {"ce-id": "1", "ce-source": "s", "ce-type": "t", "ce-specversion": "1.0"}
    answer = due(await client.post("/v1/models/plain:predict", headers | event, body), 200)
    if "ce-id" not in answer.headers:
        raise Wrong(f"no event: {answer.headers}")
    compare(V1.read(answer.headers, answer.body), x)


async def chunked(client: Client) -> None:
    x = client.numbers()
    headers, body = V2.write(x, {})
    half = len(body) // 2
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (body[:half], body[half:], b""))
    await client.send(request("/v2/models/plain/infer", headers | {"transfer-encoding": "chunked"}) + chunks)
    answer = due(await client.receive(), 200)
    compare(V2.read(answer.headers, answer.body), x)


async def pipelined(client: Client) -> None:
    arrays = [client.numbers() for _ in range(4)]
    sent = b""
    for x, model in zip(arrays, MODELS, strict=True):
        headers, body = V2.write(x, {})
        sent += request(f"/v2/models/{model}/infer", headers | {"content-length": str(len(body))}) + body
    await client.send(sent)
    for x in arrays:
        answer = due(await client.receive(), 200)
        compare(V2.read(answer.headers, answer.body), x)
        if answer.headers.get("connection") == "close":
            break  # of a drain; what came behind was not begun, and the client may ask again (RFC 9112, 9.3.2)


async def a_long_upload(client: Client) -> None:
    await client.send(request("/v2/models/plain/infer", {"content-length": "2000000"}))
    due(await client.receive(), 413)
    client.close()


async def the_models_fault(client: Client) -> None:
    x = client.numbers()
    x.flat[-1] = -client.random.integers(1, 10**9)
    answer = await client.post("/v2/models/batched/infer", *V2.write(x, {}))
    due(answer, 500, f"because of {x.flat[-1]:.0f}")


async def a_client_that_leaves(client: Client) -> None:
    headers, body = V2.write(client.numbers(), {})
    sent = request("/v2/models/batched/infer", headers | {"content-length": str(len(body))}) + body
    await client.send(sent[: client.random.integers(1, len(sent) + 1)])
    await asyncio.sleep(client.random.choice([0, 0.001]))
    client.close(reset=True)


def refused(path: str, body: bytes, status: int, words: str = "") -> Ask:
    async def ask(client: Client) -> None:
        due(await client.post(path, {"content-type": "application/json"}, body), status, words)

    return ask


def told(path: str) -> Ask:
    async def ask(client: Client) -> None:
        await client.send(request(path, {}, "GET"))
        due(await client.receive(), 200)

    return ask


def grpc_refused(model: str, code: grpc.StatusCode) -> Ask:
    async def ask(client: Client) -> None:
        try:
            await client.unary(pb.ModelInferRequest(model_name=model).SerializeToString())
        except grpc.aio.AioRpcError as error:
            if error.code() is not code:
                raise
        else:
            raise Wrong(f"an answer, not {code}")

    return ask


def kinds(grpc_too: bool = True) -> dict[str, Ask]:
    """How each kind of request is asked and checked."""
    formats = [format for format in FORMATS if grpc_too or format.path]
    of_grpc = {
        "gRPC, no such model": grpc_refused("nobody", grpc.StatusCode.NOT_FOUND),
        "gRPC, no input": grpc_refused("plain", grpc.StatusCode.INVALID_ARGUMENT),
    }
    return {
        **{format.name: of_format(format) for format in formats},
        **{f"{each.name}, in parts": of_format(each, ["parts"], PARTS) for each in formats if each.carries_parts},
        "CloudEvent": cloud_event,
        "chunked": chunked,
        "pipelined": pipelined,
        "400": refused("/v2/models/plain/infer", b'{"inputs": [', 400),
        "404": refused("/v2/models/nobody/infer", b"{}", 404, "nobody"),
        "413": a_long_upload,
        "500": the_models_fault,
        "503": refused("/v1/models/resting:predict", b'{"instances": []}', 503),
        "a client that leaves": a_client_that_leaves,
        "ready": told("/v2/health/ready"),
        "metadata": told("/v2/models/plain"),
        "statistics": told("/v2/models/batched/stats"),
        "metrics": told("/metrics"),
        **(of_grpc if grpc_too else {}),
    }


class Counts:
    """What came of the requests, by kind."""

    def __init__(self) -> None:
        self.right = Counter[str]()
        self.lost = Counter[str]()
        self.wrong = Counter[str]()
        self.reasons = Counter[str]()

    def __str__(self) -> str:
        told = f"right {self.right.total():,}, lost {self.lost.total():,}, wrong {self.wrong.total():,}"
        return "\n".join([told, *(f"  {count} x {reason}" for reason, count in self.reasons.most_common(10))])

    async def count(self, kind: str, ask: Ask, client: Client) -> None:
        try:
            await asyncio.wait_for(ask(client), PATIENCE)
        except Wrong as error:
            self._note(self.wrong, kind, error)
            client.close()
        except (Lost, OSError, asyncio.IncompleteReadError, asyncio.TimeoutError, grpc.aio.AioRpcError) as error:
            self._note(self.lost, kind, error)
            client.close()
        else:
            self.right[kind] += 1

    def _note(self, counter: Counter[str], kind: str, error: Exception) -> None:
        counter[kind] += 1
        told = f"{error.code().name} {error.details()}" if isinstance(error, grpc.aio.AioRpcError) else str(error)
        self.reasons[f"{kind}: {type(error).__name__}: {told}"[:300]] += 1


async def traffic(server: Server, address: str, counts: Counts, clients: int, goes_on: Callable[[], bool]) -> None:
    """So many clients ask for as long as ``goes_on`` says. ``address``: of gRPC; empty: HTTP alone."""

    async def one(number: int) -> None:
        async with contextlib.AsyncExitStack() as stack:
            channel = grpc.aio.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)]) if address else None
            if channel is not None:
                await stack.enter_async_context(channel)
            client = Client(server.port, channel, time.monotonic_ns() + number)
            stack.callback(client.close)
            asked = list(kinds(bool(address)).items())
            while goes_on():
                for index in client.random.permutation(len(asked)):
                    if not goes_on():
                        break
                    await counts.count(*asked[index], client)

    await asyncio.gather(*(one(number) for number in range(clients)))
