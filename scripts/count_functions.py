"""How many functions and files of mpserve one warm request enters, by kind of request. Prints a table.

    python scripts/count_functions.py [KIND]

KIND, a word of the first column, also lists the functions of that kind, in their order. Requests go over a real connection to
the HTTP server of a worker, in this process; those by ASGI are called as any ASGI server calls the application. A function is
counted once, however often it is called. Functions of the user's model, of other packages and of Python are not counted.
"""

import asyncio
import json
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import mpserve
from mpserve import InferOutput, InferResponse, Model, Tensor, TensorModel
from mpserve.config.settings import Settings
from mpserve.http.app import build_app
from mpserve.http.server.connection import Connection
from mpserve.http.server.interface import Limits
from mpserve.http.server.server import HttpServer
from mpserve.serving.repository.core import ServerCore
from mpserve.serving.repository.loader import from_objects

ROOT = str(Path(mpserve.__file__).parent)
WARM = 20
"""Requests before the one that is looked at."""
X = {"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1.5, 2.5, 3.5, 4.5]}
BODY = json.dumps({"inputs": [X]}).encode()
NAMED = json.dumps({"inputs": [X], "outputs": [{"name": "y"}]}).encode()


class _Sync(TensorModel):
    name = "sync"
    inputs = (Tensor("x", "FP32", (-1, 4)),)
    outputs = (Tensor("y", "FP32", (-1, 4)),)

    def predict(self, x: Any) -> Any:
        return x


class _Batched(_Sync):
    name = "batched"
    max_batch_size = 8


class _Async(_Sync):
    name = "async"

    async def predict(self, x: Any) -> Any:  # type: ignore[override]
        return x


class _Sdk(Model):
    name = "model"

    def predict(self, payload: Any, headers: Any = None) -> Any:
        output = InferOutput("y", [1, 4], "FP32", payload.inputs[0].as_numpy())
        return InferResponse(payload.id, self.name, [output])


class _Balanced:
    """No connection is given up."""

    due = 0

    def takes_one(self) -> bool:
        return False


class Counter:
    """The functions that are entered while it counts, in every thread."""

    def __init__(self) -> None:
        self.entered: dict[tuple[str, str], None] | None = None
        threading.setprofile(self._enter)
        sys.setprofile(self._enter)

    def _enter(self, frame: FrameType, event: str, argument: object) -> None:
        code = frame.f_code
        if event == "call" and self.entered is not None and code.co_filename.startswith(ROOT):
            name = getattr(code, "co_qualname", code.co_name)  # Python 3.10 has only the latter
            self.entered[code.co_filename[len(ROOT) + 1 :], name] = None

    async def of(self, ask: Callable[[], Awaitable[None]]) -> list[tuple[str, str]]:
        """The functions that one warm request enters."""
        for _ in range(WARM):
            await ask()
        self.entered = entered = {}
        await ask()
        await asyncio.sleep(0.01)  # for what comes after the answer
        self.entered = None
        return list(entered)


@asynccontextmanager
async def serving() -> AsyncIterator[ServerCore]:
    core = ServerCore(Settings(), lambda: from_objects([_Sync(), _Batched(), _Async(), _Sdk()]))
    core.preload()
    core.begin_alone()
    await core.load()
    core.open()
    try:
        yield core
    finally:
        await core.stop()


@asynccontextmanager
async def connected(server: HttpServer, model: str, body: bytes) -> AsyncIterator[Callable[[], Awaitable[None]]]:
    """Asks a model over a connection to the server."""
    loop = asyncio.get_running_loop()
    listening = await loop.create_server(lambda: Connection(server), "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*listening.sockets[0].getsockname())
    head = f"POST /v2/models/{model}/infer HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"

    async def ask() -> None:
        writer.write(head.encode() + body)
        answer = (await reader.readuntil(b"\r\n\r\n")).lower()
        assert b" 200 " in answer.split(b"\r\n")[0]
        await reader.readexactly(int(answer.partition(b"content-length: ")[2].split(b"\r\n")[0]))

    try:
        yield ask
    finally:
        writer.close()
        listening.close()


def by_asgi(app: Any, model: str, body: bytes) -> Callable[[], Awaitable[None]]:
    """Asks a model as an ASGI server calls an application."""
    path = f"/v2/models/{model}/infer"
    scope = {
        "type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "root_path": "", "query_string": b"",
        "headers": [(b"host", b"x"), (b"content-length", b"%d" % len(body))], "http_version": "1.1", "scheme": "http",
    }  # fmt: skip

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body}

    async def send(message: dict[str, Any]) -> None:
        assert message.get("status", 200) == 200

    async def ask() -> None:
        await app(dict(scope), receive, send)

    return ask


async def main(listed: str) -> None:
    counter = Counter()
    async with serving() as core:
        app = build_app(core)
        limits = Limits(4094, 100, 8190, 10, 10, 0, 10, 10, core.settings.max_body_size)
        server = HttpServer(app, {}, app.state.direct, limits, core.row, _Balanced())
        print(f"{'kind of request':42} {'files':>5} {'functions':>9}")
        for kind, model, body in (
            ("sync TensorModel", "sync", BODY),
            ("named outputs, sync TensorModel", "sync", NAMED),
            ("async TensorModel", "async", BODY),
            ("batched TensorModel", "batched", BODY),
            ("kserve Model", "model", BODY),
        ):
            async with connected(server, model, body) as ask:
                report(f"V2 JSON, {kind}", await counter.of(ask), listed)
        report("V2 JSON through ASGI, sync TensorModel", await counter.of(by_asgi(app, "sync", BODY)), listed)


def report(kind: str, entered: list[tuple[str, str]], listed: str) -> None:
    print(f"{kind:42} {len({file for file, _ in entered}):5} {len(entered):9}")
    if listed and listed in kind.replace(",", "").split():
        for file, function in entered:
            print(f"    {file} {function}")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else ""))
