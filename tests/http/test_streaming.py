"""Answers in parts over ASGI: what is sent when, and what stops the model."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from mpserve import InvalidInput, Model
from mpserve.http.app import build_app
from tests.asgi import core_of, predict
from tests.cases import each, until

ERRORS = {"ValueError": ValueError("bad"), "InvalidInput": InvalidInput("no cat")}
PATH = "/v1/models/m:predict"
EVENT = {"ce-specversion": "1.0", "ce-id": "1", "ce-source": "s", "ce-type": "t", "content-type": "application/json"}


class Parts(Model):
    """Gives the instances, raises those that are names of errors, and counts its steps."""

    name = "m"

    def __init__(self) -> None:
        super().__init__()
        self.steps = 0
        self.closed = 0

    def predict(self, payload: Any, headers: Any, response_headers: Any) -> Iterator[Any]:
        response_headers["x-from-model"] = "yes"
        try:
            for instance in payload["instances"]:
                self.steps += 1
                if instance in ERRORS:
                    raise ERRORS[instance]
                yield instance
        finally:
            self.closed += 1


class Exchange:
    """One request to the application, of which the test is the server."""

    def __init__(self, app: Any, instances: list[str], send: Callable[[Any], Awaitable[None]] | None = None) -> None:
        self.app = app
        self.requests: asyncio.Queue[Any] = asyncio.Queue()
        self.requests.put_nowait({"type": "http.request", "body": json.dumps({"instances": instances}).encode()})
        self.sent: asyncio.Queue[Any] = asyncio.Queue()
        self.send = send or self.sent.put

    async def run(self) -> list[Any]:
        """The messages of the answer."""
        scope = {"type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "path": PATH}
        scope |= {"headers": [(b"content-type", b"application/json")], "query_string": b"", "root_path": ""}
        await self.app(scope, self.requests.get, self.send)
        return [self.sent.get_nowait() for _ in range(self.sent.qsize())]


@asynccontextmanager
async def application(model: Model) -> AsyncIterator[Any]:
    app = build_app(core_of(model))
    async with app.router.lifespan_context(app):
        yield app


async def test_each_part_is_a_chunk_and_the_head_names_no_length() -> None:
    async with application(Parts()) as app:
        head, *bodies = await Exchange(app, ["a", "é"]).run()
    assert head["status"] == 200
    names = {name for name, _ in head["headers"]}
    assert b"x-from-model" in names
    assert not names & {b"content-length", b"content-type", b"transfer-encoding"}  # the SDK names no type either
    parts = [(message["body"], message.get("more_body", False)) for message in bodies]
    assert parts == [(b"a", True), ("é".encode(), True), (b"", False)]


def test_a_stream_is_not_compressed() -> None:
    answer = predict(Parts(), ["a" * 5000], headers={"accept-encoding": "gzip"})
    assert (answer.headers.get("content-encoding"), answer.content) == (None, b"a" * 5000)


@each("error", ["ValueError", "InvalidInput"])
async def test_an_error_after_the_head_cuts_the_answer_off_and_is_logged(
    error: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.clear()
    with caplog.at_level(logging.ERROR, "mpserve"):
        async with application(Parts()) as app:
            _, part = await Exchange(app, ["a", error]).run()
    assert (part["body"], part["more_body"]) == (b"a", True)  # never told that this was the last
    assert "an answer was cut off" in caplog.text
    assert ("Traceback" in caplog.text) == (error == "ValueError")


def test_a_header_that_cannot_be_sent_is_an_error_and_closes_the_generator() -> None:
    class Bad(Parts):
        def predict(self, payload: Any, headers: Any, response_headers: Any) -> Iterator[Any]:
            response_headers["a b"] = "c"
            return super().predict(payload, headers, response_headers)

    model = Bad()
    assert predict(model, ["a", "b"]).status_code == 500
    assert (model.steps, model.closed) == (1, 1)


@each("how", ["a disconnect", "an OSError of send", "a cancelled request"])
async def test_a_client_that_goes_away_stops_the_generator_however_the_server_tells_it(how: str) -> None:
    model, sending, gate = Parts(), asyncio.Event(), asyncio.Event()

    async def send(message: Any) -> None:
        if message.get("body"):
            sending.set()
            if how == "an OSError of send":
                raise OSError("the client is gone")
            await gate.wait()

    async with application(model) as app:
        exchange = Exchange(app, ["a", "b", "c"], send)
        running = asyncio.ensure_future(exchange.run())
        await sending.wait()
        if how == "a disconnect":
            await exchange.requests.put({"type": "http.disconnect"})
            await until(lambda: model.closed)
            gate.set()
        elif how == "a cancelled request":
            running.cancel()
        await asyncio.wait({running})
        assert running.cancelled() == (how == "a cancelled request")
        assert running.cancelled() or running.exception() is None
    assert (model.steps, model.closed) == (1, 1)


async def test_a_client_that_goes_away_stops_a_generator_that_waits() -> None:
    closed = asyncio.Event()

    class Waiting(Model):
        name = "m"

        async def predict(self, payload: Any, headers: Any = None) -> Any:
            try:
                yield "a"
                await asyncio.Event().wait()
            finally:
                closed.set()

    async with application(Waiting()) as app:
        exchange = Exchange(app, [])
        running = asyncio.ensure_future(exchange.run())
        while not (await exchange.sent.get()).get("body"):
            pass
        await exchange.requests.put({"type": "http.disconnect"})
        assert await running == []
        assert closed.is_set()


def test_an_event_is_not_answered_in_parts() -> None:
    model = Parts()
    answer = predict(model, ["a"], headers=EVENT)
    assert (answer.status_code, model.steps) == (501, 0)
    assert "not offered for a CloudEvent" in answer.json()["error"]
