"""Answers in parts over ASGI: what is sent when, and what stops the model."""

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import httpx
import pytest

from mpserve import InvalidInput, Model
from mpserve.http.app import build_app
from tests.asgi import core_of, predict

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
            for each in payload["instances"]:
                self.steps += 1
                if each == "ValueError":
                    raise ValueError("bad")
                if each == "InvalidInput":
                    raise InvalidInput("no cat")
                yield each
        finally:
            self.closed += 1

    explain = predict


class Exchange:
    """One request to the application, of which the test is the server."""

    def __init__(self, app: Any, instances: list[str], send: Callable[[Any], Awaitable[None]] | None = None) -> None:
        self.app = app
        self.requests: asyncio.Queue[Any] = asyncio.Queue()
        self.requests.put_nowait({"type": "http.request", "body": json.dumps({"instances": instances}).encode()})
        self.sent: asyncio.Queue[Any] = asyncio.Queue()
        self.send = send or self.sent.put

    async def run(self) -> None:
        scope = {"type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "path": PATH}
        scope |= {"headers": [(b"content-type", b"application/json")], "query_string": b"", "root_path": ""}
        await self.app(scope, self.requests.get, self.send)

    def messages(self) -> list[Any]:
        return [self.sent.get_nowait() for _ in range(self.sent.qsize())]


def exchanged(model: Model, test: Callable[[Any], Awaitable[Any]]) -> Any:
    async def main() -> Any:
        app = build_app(core_of(model))
        async with app.router.lifespan_context(app):
            return await test(app)

    return asyncio.run(asyncio.wait_for(main(), 60))


def bodies(messages: list[Any]) -> list[tuple[bytes, bool]]:
    return [(each["body"], each.get("more_body", False)) for each in messages if each["type"] == "http.response.body"]


def test_each_part_is_a_chunk_and_the_head_names_no_length() -> None:
    async def test(app: Any) -> list[Any]:
        exchange = Exchange(app, ["a", "é"])
        await exchange.run()
        return exchange.messages()

    messages = exchanged(Parts(), test)
    assert messages[0]["status"] == 200
    names = {name for name, _ in messages[0]["headers"]}
    assert b"x-from-model" in names
    assert not names & {b"content-length", b"content-type", b"transfer-encoding"}  # the SDK names no type either
    assert bodies(messages) == [(b"a", True), ("é".encode(), True), (b"", False)]


def test_a_stream_is_not_compressed() -> None:
    answer = predict(Parts(), ["a" * 5000], headers={"accept-encoding": "gzip"})
    assert (answer.headers.get("content-encoding"), answer.content) == (None, b"a" * 5000)


@pytest.mark.parametrize("error", ["ValueError", "InvalidInput"])
def test_an_error_after_the_head_cuts_the_answer_off_and_is_logged(
    error: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def test(app: Any) -> list[Any]:
        exchange = Exchange(app, ["a", error])
        await exchange.run()
        return exchange.messages()

    with caplog.at_level(logging.ERROR, "mpserve"):
        messages = exchanged(Parts(), test)
    assert bodies(messages) == [(b"a", True)]  # never told that this was the last
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


def test_a_client_that_goes_away_stops_the_generator() -> None:
    model = Parts()

    async def test(app: Any) -> None:
        at_the_gate, gate = asyncio.Event(), asyncio.Event()

        async def send(message: Any) -> None:
            if message.get("body") == b"a":
                at_the_gate.set()
                await gate.wait()

        exchange = Exchange(app, ["a", "b", "c"], send)
        running = asyncio.ensure_future(exchange.run())
        await at_the_gate.wait()
        await exchange.requests.put({"type": "http.disconnect"})
        while not model.closed:
            await asyncio.sleep(0.01)
        gate.set()
        await running

    exchanged(model, test)
    assert (model.steps, model.closed) == (1, 1)


def test_a_client_that_goes_away_stops_a_generator_that_waits() -> None:
    class Waiting(Model):
        name = "m"
        closed = False

        async def predict(self, payload: Any, headers: Any = None) -> Any:
            try:
                yield "a"
                await asyncio.Event().wait()
            finally:
                self.closed = True

    async def test(app: Any) -> None:
        exchange = Exchange(app, [])
        running = asyncio.ensure_future(exchange.run())
        while not (await exchange.sent.get()).get("body"):
            pass
        await exchange.requests.put({"type": "http.disconnect"})
        await running
        assert exchange.messages() == []

    model = Waiting()
    exchanged(model, test)
    assert model.closed


def test_a_server_that_tells_it_by_an_oserror_of_send_stops_the_generator() -> None:
    model = Parts()

    async def test(app: Any) -> None:
        async def send(message: Any) -> None:
            if message.get("body"):
                raise OSError("the client is gone")

        await Exchange(app, ["a", "b", "c"], send).run()

    exchanged(model, test)
    assert (model.steps, model.closed) == (1, 1)


def test_a_server_that_cancels_the_request_stops_the_generator() -> None:
    model = Parts()

    async def test(app: Any) -> None:
        at_the_gate = asyncio.Event()

        async def send(message: Any) -> None:
            if message.get("body"):
                at_the_gate.set()
                await asyncio.Event().wait()

        running = asyncio.ensure_future(Exchange(app, ["a", "b", "c"], send).run())
        await at_the_gate.wait()
        running.cancel()
        await asyncio.wait({running})
        assert running.cancelled()

    exchanged(model, test)
    assert (model.steps, model.closed) == (1, 1)


def test_an_event_is_not_answered_in_parts() -> None:
    model = Parts()
    answer: httpx.Response = predict(model, ["a"], headers=EVENT)
    assert (answer.status_code, model.steps) == (501, 0)
    assert "not offered for a CloudEvent" in answer.json()["error"]
