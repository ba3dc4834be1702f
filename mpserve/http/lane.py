"""The fast lane: the inference routes without an ASGI cycle, for a worker that reads HTTP itself.

The same functions answer under the same addresses as by ``app.py``'s routes. Whatever is not plainly one of these requests
is left to the application. Its middleware would not see what goes this way, so an application with middleware or routes of
the user's has no lane.
"""

import asyncio
import re
import time

from mpserve.errors import MPServeError
from mpserve.http.accounts import Accounts
from mpserve.http.asking import Asked, Asking, InBatch, InOneGo, InTask, Target, Tell, Told
from mpserve.http.inference import BINARY_HEADER, Call, Inference, explain, infer, predict, respond
from mpserve.http.requests import CONTENT_LENGTH, RawHeaders, read_headers
from mpserve.http.responses import JSON_ONLY, Answer, json_answer
from mpserve.http.server.routes import Cancellable, Reply
from mpserve.http.streaming import StreamedAnswer
from mpserve.logging import begin_request
from mpserve.protocol.cloudevents import is_event
from mpserve.protocol.v1 import is_json
from mpserve.serving import express
from mpserve.serving.completion import fits
from mpserve.serving.dataplane import Dataplane
from mpserve.serving.express import Reader
from mpserve.serving.joining import read_joining
from mpserve.serving.tasks import Tasks

ROUTES: dict[str, tuple[str, Inference]] = {
    "/v1/models/{model}:predict": ("predict", predict),
    "/v1/models/{model}:explain": ("explain", explain),
    "/v2/models/{model}/infer": ("predict", infer),
    "/v2/models/{model}/versions/{version}/infer": ("predict", infer),
}
"""By path template, what is asked of the model, and what asks it; ``app.py`` makes its routes of them too."""

TIMEOUT = b'"timeout"'
"""In a body it may be the parameter, the time of a request that must be known while it waits for the model's thread."""
LETTER = ord("o")
"""Most bodies are numbers, in which one letter is found to be missing at a tenth of the cost."""

KNOWN = 1024
"""Addresses that are remembered, more than a server has models: a client that invents addresses must not fill memory."""

# Addresses with anything else in them, percent-encoded bytes and queries for example, are Starlette's to read.
_SEGMENT = r"(?P<\1>[A-Za-z0-9._-]+)"
_PATTERNS = [
    (re.compile(re.sub(r"\\{(\w+)\\}", _SEGMENT, re.escape(template)).encode()), template, verb, inference)
    for template, (verb, inference) in ROUTES.items()
]


class Lane:
    """The inference routes over one ``Dataplane``."""

    def __init__(self, dataplane: Dataplane, accounts: Accounts) -> None:
        self.dataplane = dataplane
        self.accounts = accounts
        self._known: dict[bytes, Target] = {}
        self._tasks = Tasks()
        self._max_body_size = dataplane.core.settings.max_body_size

    def accept(self, address: bytes, raw_headers: RawHeaders) -> Asked | None:
        """What a POST to this address asks for; None where that is not for the lane to say."""
        target = self._known.get(address) or self._find(address)
        if target is None:
            return None
        headers = read_headers(raw_headers)
        if "transfer-encoding" in headers or "content-encoding" in headers or "expect" in headers:
            return None
        length = int(headers.get("content-length", 0))
        if length > self._max_body_size:
            return None
        if self.accounts.access_log and "x-forwarded-for" in headers:
            return None
        call = Call(target.model, target.version, headers)
        identity, accept_encoding = headers.get("x-request-id", ""), headers.get("accept-encoding")
        json = _json_length(target, headers, length)
        return Asked(target, call, length, json, _reader(target, headers, json), identity, accept_encoding)

    def _find(self, address: bytes) -> Target | None:
        target = self._target(address)
        if target is not None and len(self._known) < KNOWN:
            self._known[address] = target
        return target

    def _target(self, address: bytes) -> Target | None:
        for pattern, template, verb, inference in _PATTERNS:
            if match := pattern.fullmatch(address):
                named = {name: value.decode() for name, value in match.groupdict().items()}
                answered = self.accounts.answered(template)
                return Target(
                    address.decode(), template, verb, inference, named["model"], named.get("version"), answered
                )
        return None

    def begin(self, asked: Asked, body: bytes, client: object, tell: Tell) -> Asking | None:
        """Begin to answer a request where its model runs, and ``tell`` the answer; None if it must be awaited here."""
        target = asked.target
        try:
            served = self.dataplane.core.find(target.model, target.version)
        except MPServeError:  # which is for the request to be told
            return None
        asking = (self.dataplane, served, self.accounts, asked, body, client, tell)
        if served.here is not None and asked.read is not None:
            given = asked.read(served.here, body) if served.here.ready else None
            return None if given is None else InTask(*asking).begin(self._tasks, given)
        if fits(served, target.verb, asked.json):
            json = body if asked.json == asked.length else body[: asked.json]
            return None if LETTER in json and TIMEOUT in json else InOneGo(*asking).begin()
        batcher = served.pipeline.batcher
        if asked.read is None or batcher is None or asked.accept_encoding is not None:
            return None
        given = read_joining(served, batcher, asked.read, body)
        return None if given is None else InBatch(*asking).begin(batcher, given)

    async def answer(self, asked: Asked, body: bytes, client: object) -> tuple[Answer | StreamedAnswer, bytes]:
        """The answer to a request, whatever becomes of it, and the id of the request; ``client`` is for the access log."""
        start = time.perf_counter()
        identity = begin_request(asked.identity)
        answer = await respond(self.dataplane, asked.target.inference, asked.call, body)
        self.note(asked.target, answer.status, start, client)
        return answer, identity.encode()

    def note(self, target: Target, status: int, start: float, client: object) -> None:
        """A request that began at ``start`` was answered."""
        self.accounts.note(target.template, status, start, client, "POST", target.path)


class LaneRoutes:
    """The lane as the direct routes of the HTTP server."""

    def __init__(self, lane: Lane) -> None:
        self._lane = lane

    def match(self, target: bytes, headers: list[tuple[bytes, bytes]]) -> Asked | None:
        return self._lane.accept(target, headers)

    def begin(self, head: Asked, body: bytes, client: tuple[str, int] | None, reply: Reply) -> Cancellable:
        def tell(told: Told, identity: bytes) -> None:
            reply(Answer(200, JSON_ONLY, told) if isinstance(told, bytes) else told, identity)

        begun = self._lane.begin(head, body, client, tell)
        return asyncio.ensure_future(self._answer(head, body, client, reply)) if begun is None else begun

    async def _answer(self, head: Asked, body: bytes, client: object, reply: Reply) -> None:
        try:
            answer, identity = await self._lane.answer(head, body, client)
        except BaseException:  # a model that cancels the task that it runs in, or the client has gone
            answer, identity = json_answer({"error": "internal server error"}, 500), head.identity.encode()
        reply(answer, identity)


def _json_length(target: Target, headers: dict[str, str], length: int) -> int:
    """Bytes of the body that are JSON, as far as the head is right. What tensors stand behind it cost nothing to decode."""
    told = headers.get(BINARY_HEADER, "") if target.inference is infer else ""
    return min(int(told), length) if CONTENT_LENGTH.fullmatch(told) else length


def _reader(target: Target, headers: dict[str, str], json: int) -> Reader | None:
    """What reads a plain request of this head, of so many bytes of JSON; None: it is not a plain one."""
    if target.version is not None:
        return None
    if target.inference is infer:
        if BINARY_HEADER not in headers:
            return express.read_v2
        return None if "accept-encoding" in headers else express.binary_reader(json)
    if target.inference is predict and is_json(headers.get("content-type")) and not is_event(headers):
        return express.read_v1
    return None
