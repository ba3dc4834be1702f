"""Inference requests of the worker's own server: begun by a call, and answered by one, without ASGI and without a task."""

import asyncio
import json
import logging
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import prometheus_client
import pytest

from mpserve.http.inference.direct_routes import InferenceExchange
from mpserve.http.inference.routes import InferenceRoutes
from mpserve.http.request_log import RequestLog
from mpserve.http.responses import JSON_ONLY, Answer
from mpserve.http.server.heads import Head
from mpserve.http.streaming import StreamedAnswer
from mpserve.serving.inference.request import InferenceRequest
from mpserve.serving.models.model import Model
from mpserve.serving.repository.core import ServerCore
from mpserve.telemetry.logging import request_id
from mpserve.telemetry.metrics import metrics
from tests.asgi import loaded
from tests.cases import each
from tests.connections import LIMITS
from tests.error_table import CASES, GOOD, PREPARATION
from tests.models import faulty

CLIENT = ("10.0.0.1", 7)
PREDICT = "/v1/models/m:predict"


class Recorded(InferenceExchange):
    """Keeps the answer that the server would send."""

    sent: "asyncio.Queue[tuple[Answer | StreamedAnswer, bytes]]"

    def send(self, answer: Answer | StreamedAnswer, identity: bytes) -> None:
        self.sent.put_nowait((answer, identity))


class Direct:
    """The routes, with exchanges that have no connection."""

    def __init__(self, core: ServerCore, access_log: bool) -> None:
        self.core = core
        self.routes = InferenceRoutes(core.settings, RequestLog(access_log))
        self.sent: asyncio.Queue[tuple[Answer | StreamedAnswer, bytes]] = asyncio.Queue()

    def begin(self, path: str, body: bytes = b'{"instances":[1]}', **headers: str) -> InferenceRequest | None:
        """Begin to answer a request; None if it is not one for these routes."""
        raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
        head = self.routes.match(path.encode(), raw)
        if head is None:
            return None
        shared = SimpleNamespace(limits=LIMITS)
        wire: Any = SimpleNamespace(client=CLIENT, exchange=None, server=shared, transport=asyncio.Transport())
        exchange = Recorded(wire, self.core, self.routes.log)
        exchange.sent = self.sent
        exchange.expect(Head(head, "1.1", True, len(body)), expects=False)
        return exchange.begin(body)

    async def ask(self, path: str = PREDICT, body: bytes = b'{"instances":[1]}', **headers: str) -> tuple[Any, bytes]:
        """The one answer to a request, and its id."""
        assert self.begin(path, body, **headers) is not None
        told = await self.sent.get()
        await asyncio.sleep(0)
        assert self.sent.empty()
        return told


@asynccontextmanager
async def directly(*models: Model, access_log: bool = False) -> AsyncIterator[Direct]:
    async with loaded(*models) as core:
        yield Direct(core, access_log)


async def test_a_fault_is_told_as_over_asgi_and_leaves_the_server_usable() -> None:
    async with directly(*[type(model)() for model in faulty.models]) as server:
        assert (await server.ask(*PREPARATION))[0].status == 200
        for case in CASES:
            is_direct = server.routes.match(case.path.encode(), []) is not None
            if not is_direct or case.method != "POST" or case.status == 413:
                continue  # the application's, and the server's
            headers = {name.replace("-", "_"): value for name, value in case.headers.items()}
            answer, _ = await server.ask(case.path, case.body, **headers)
            assert (answer.status, list(told := json.loads(answer.body))) == (case.status, ["error"]), case
            assert re.search(case.says, told["error"]), case
            good, _ = await server.ask(*GOOD)
            assert (good.status, good.body) == (200, b'{"predictions":[1]}')


class Says(Model):
    """Answers with the id in its log lines and a header of the request; sets the headers that it is told to."""

    name = "m"

    def predict(self, payload: Any, headers: Any, response_headers: Any) -> Any:
        response_headers.update(payload.get("set", {}))
        return {"predictions": [request_id.get(), headers.get("x-mine")]}


async def test_most_answers_have_the_headers_that_the_server_knows_by_identity() -> None:
    async with directly(Says()) as server:
        answer, identity = await server.ask(x_request_id="abc", x_mine="é")
        assert answer.headers is JSON_ONLY
        assert (identity, json.loads(answer.body)) == (b"abc", {"predictions": ["abc", "é".encode().decode("latin-1")]})
        _, identity = await server.ask(x_request_id="two words")
        assert re.fullmatch(rb"[0-9a-f]+-[0-9a-f]+-[0-9a-f]+", identity)


async def test_headers_of_the_model_and_a_content_coding_are_sent() -> None:
    async with directly(Says()) as server:
        answer, _ = await server.ask(body=b'{"set":{"X-A":"1","content-length":"9"}}')
        assert answer.headers == [(b"content-type", b"application/json"), (b"x-a", b"1")]
        answer, _ = await server.ask(body=b'{"set":{"x-a":"1\\r\\nx-b: 2"}}')
        assert answer.status == 500
        answer, _ = await server.ask(accept_encoding="gzip", x_mine="a" * 5000)
        assert dict(answer.headers)[b"content-encoding"] == b"gzip"


@each("access_log", [False, True])
async def test_answers_are_counted_and_logged_as_the_middleware_does(
    access_log: bool, caplog: pytest.LogCaptureFixture
) -> None:
    def counted(status: str) -> float:
        metrics().flush()
        labels = {"route": "/v1/models/{model}:predict", "status": status}
        return prometheus_client.REGISTRY.get_sample_value("mpserve_requests_total", labels) or 0

    before = counted("200"), counted("404")
    caplog.clear()
    with caplog.at_level(logging.INFO, "mpserve.access"):
        async with directly(Says(), access_log=access_log) as server:
            await server.ask()
            await server.ask("/v1/models/nope:predict")
    assert (counted("200"), counted("404")) == (before[0] + 1, before[1] + 1)
    lines = [record.getMessage() for record in caplog.records if record.name == "mpserve.access"]
    wanted = ['m:predict" 200', 'nope:predict" 404'] if access_log else []
    assert [line.rsplit(" ", 2)[0] for line in lines] == [f'10.0.0.1:7 "POST /v1/models/{end}' for end in wanted]


async def test_what_cannot_be_admitted_is_answered_before_begin_returns() -> None:
    async with directly(Says()) as server:
        request = server.begin("/v1/models/nope:predict")
        assert request is not None
        assert (request.over, server.sent.get_nowait()[0].status) == (True, 404)


async def test_a_request_whose_client_has_gone_is_cancelled_and_never_answered() -> None:
    begun, ended = asyncio.Event(), asyncio.Event()

    class Waits(Model):
        name = "m"

        async def predict(self, payload: Any, headers: Any = None) -> Any:
            begun.set()
            try:
                await asyncio.Event().wait()
            finally:
                ended.set()

    async with directly(Waits()) as server:
        request = server.begin(PREDICT)
        assert request is not None
        await begun.wait()
        request.cancel()
        await ended.wait()
        assert (request.over, request.instance.in_flight.count, server.sent.empty()) == (True, 0, True)


async def test_an_answer_in_parts_is_one_that_sends_itself() -> None:
    class Parts(Model):
        name = "m"

        async def predict(self, payload: Any, headers: Any = None) -> Any:
            for part in payload["instances"]:
                yield part

    sent: asyncio.Queue[Any] = asyncio.Queue()
    async with directly(Parts()) as server:
        answer, identity = await server.ask(body=b'{"instances":["a","b"]}', x_request_id="mine")
        assert isinstance(answer, StreamedAnswer)
        assert (identity, answer.body) == (b"mine", None)
        await answer({"type": "http"}, asyncio.Event().wait, sent.put)  # type: ignore[arg-type]
    assert [sent.get_nowait().get("body") for _ in range(sent.qsize())] == [None, b"a", b"b", b""]
