"""A client without a server, for the tests of a model: ``with Client([Digits]) as client: client.predict("digits", rows)``.

The whole server but its processes and sockets runs in the test's own process: formats, checks, batching, error statuses.
"""

import asyncio
import json
from collections.abc import Coroutine, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar
from urllib.parse import quote, unquote

from mpserve.server import asgi_app
from mpserve.serving.models.model import Model

T = TypeVar("T")


class Refused(Exception):
    """The server answered with a status of 400 or more."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(f"{status}: {reason}")
        self.status = status
        self.reason = reason


class Response(NamedTuple):
    """An answer; the names of headers are in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


class Client:
    """Serves models in this process, in a ``with`` block. ``options`` are those of the server, by name.

    Raises:
        ConfigurationError: an option or an element of ``models`` is invalid.
        ModelLoadError: a model could not be loaded.
    """

    def __init__(self, models: Sequence[Model | type[Model]], **options: Any) -> None:
        self._app: Any = asgi_app(models, **options)
        self._loop = asyncio.new_event_loop()

    @classmethod
    def of(cls, app: Any) -> "Client":
        """A client of an application that ``asgi_app`` has made."""
        client = cls.__new__(cls)
        client._app, client._loop = app, asyncio.new_event_loop()
        return client

    def __enter__(self) -> "Client":
        self._lifespan = self._app.router.lifespan_context(self._app)
        try:
            self.run(self._lifespan.__aenter__())
        except BaseException:
            self._loop.close()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        try:
            self.run(self._lifespan.__aexit__(None, None, None))
        finally:
            self._loop.close()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the event loop of the models."""
        return self._loop.run_until_complete(work)

    def predict(self, model: str, instances: Sequence[Any]) -> Any:
        """The predictions of V1. Raises Refused."""
        return self._told(f"/v1/models/{quote(model, safe='')}:predict", {"instances": instances})["predictions"]

    def infer(self, model: str, inputs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """The outputs of V2, for inputs as in its JSON: name, shape, datatype, data. Raises Refused."""
        outputs: list[dict[str, Any]] = self._told(f"/v2/models/{quote(model, safe='')}/infer", {"inputs": inputs})[
            "outputs"
        ]
        return outputs

    def _told(self, path: str, document: Any) -> Any:
        answer = self.request("POST", path, json.dumps(document).encode())
        if answer.status >= 400:
            raise Refused(answer.status, answer.json()["error"])
        return answer.json()

    def request(self, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None) -> Response:
        """The answer to any request."""
        return self.run(self._ask(method, path, body, headers or {}))

    async def _ask(self, method: str, path: str, body: bytes, headers: Mapping[str, str]) -> Response:
        raw, _, query = path.partition("?")
        lines = {"host": "localhost", "content-length": str(len(body)), "content-type": "application/json", **headers}
        scope = {
            "type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1", "method": method,
            "scheme": "http", "path": unquote(raw), "raw_path": raw.encode(), "query_string": query.encode(), "root_path": "",
            "headers": [(name.lower().encode(), value.encode()) for name, value in lines.items()],
            "client": ("127.0.0.1", 0), "server": ("localhost", 80), "state": {},
        }  # fmt: skip
        incoming = [{"type": "http.request", "body": body, "more_body": False}]
        status, answered, parts = 500, {}, []

        async def receive() -> dict[str, Any]:
            if incoming:
                return incoming.pop()
            return await asyncio.Future()  # the client stays until it is answered

        async def send(message: dict[str, Any]) -> None:
            nonlocal status, answered
            if message["type"] == "http.response.start":
                status = message["status"]
                answered = {name.decode(): value.decode() for name, value in message["headers"]}
            else:
                parts.append(message.get("body", b""))

        await self._app(scope, receive, send)
        return Response(status, answered, b"".join(parts))
