"""The fast lane: the inference routes without an ASGI cycle, for a worker that reads HTTP itself.

The same functions answer under the same addresses as by ``app.py``'s routes. Whatever is not plainly one of these requests
is left to the application. Its middleware would not see what goes this way, so an application with middleware or routes of
the user's has no lane.
"""

import contextvars
import re
import time
from collections.abc import Callable
from typing import NamedTuple

from mpserve.errors import MPServeError
from mpserve.http.accounts import Accounts
from mpserve.http.inference import BINARY_HEADER, Call, Inference, explain, infer, predict, respond
from mpserve.http.requests import RawHeaders, read_headers
from mpserve.http.responses import JSON_ONLY, Answer, error_answer
from mpserve.http.streaming import StreamedAnswer
from mpserve.logging import begin_request
from mpserve.serving.completion import Completion, Ticket, fits
from mpserve.serving.dataplane import Dataplane, Plane
from mpserve.serving.executor import as_failure
from mpserve.serving.joining import Given, Joining, read
from mpserve.serving.served import Served

ROUTES: dict[str, tuple[str, Inference]] = {
    "/v1/models/{model}:predict": ("predict", predict),
    "/v1/models/{model}:explain": ("explain", explain),
    "/v2/models/{model}/infer": ("predict", infer),
    "/v2/models/{model}/versions/{version}/infer": ("predict", infer),
}
"""By path template, what is asked of the model, and what asks it; ``app.py`` makes its routes of them too."""

Tell = Callable[[Answer | StreamedAnswer, bytes], object]
"""Takes an answer and the id of its request."""

TIMEOUT = b'"timeout"'
"""In a body it may be the parameter, the time of a request that must be known while it waits for the model's thread."""

PARTICULAR = frozenset({BINARY_HEADER, "accept-encoding"})
"""Headers of requests whose answer is not just JSON."""

KNOWN = 1024
"""Addresses that are remembered, more than a server has models: a client that invents addresses must not fill memory."""

# Addresses with anything else in them, percent-encoded bytes and queries for example, are Starlette's to read.
_SEGMENT = r"(?P<\1>[A-Za-z0-9._-]+)"
_PATTERNS = [
    (re.compile(re.sub(r"\\{(\w+)\\}", _SEGMENT, re.escape(template)).encode()), template, verb, inference)
    for template, (verb, inference) in ROUTES.items()
]


class Target(NamedTuple):
    """What an address stands for."""

    path: str
    template: str
    verb: str
    inference: Inference
    model: str
    version: str | None


class Asked(NamedTuple):
    """A request but for its body, which has ``length`` bytes."""

    target: Target
    call: Call
    length: int


class Lane:
    """The inference routes over one ``Dataplane``."""

    def __init__(self, dataplane: Dataplane, accounts: Accounts) -> None:
        self.dataplane = dataplane
        self.accounts = accounts
        self._known: dict[bytes, Target] = {}
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
        return Asked(target, Call(target.model, target.version, headers), length)

    def _find(self, address: bytes) -> Target | None:
        target = _target(address)
        if target is not None and len(self._known) < KNOWN:
            self._known[address] = target
        return target

    def begin(self, asked: Asked, body: bytes, client: object, tell: Tell) -> "InOneGo | InBatch | None":
        """Begin to answer a request where its model runs, and ``tell`` the answer; None if it must be awaited here."""
        target = asked.target
        try:
            served = self.dataplane.core.find(target.model, target.version)
        except MPServeError:  # which is for the request to be told
            return None
        if TIMEOUT in body:
            return None
        if target.inference is infer and served.joins is not None and not PARTICULAR.intersection(asked.call.headers):
            given = None if target.version else read(served, body)
            return None if given is None else InBatch(self, given, asked, client, tell)
        return InOneGo(self, served, asked, body, client, tell) if fits(served, target.verb, len(body)) else None

    async def answer(self, asked: Asked, body: bytes, client: object) -> tuple[Answer | StreamedAnswer, bytes]:
        """The answer to a request, whatever becomes of it, and the id of the request; ``client`` is for the access log."""
        start = time.perf_counter()
        identity = begin_request(asked.call.headers.get("x-request-id", ""))
        answer = await respond(self.dataplane, asked.target.inference, asked.call, body)
        self.note(asked.target, answer.status, start, client)
        return answer, identity.encode()

    def note(self, target: Target, status: int, start: float, client: object) -> None:
        """A request that began at ``start`` was answered."""
        self.accounts.note(target.template, status, start, client, "POST", target.path)


_NO_CONTEXT = contextvars.Context()


class Asking(Ticket[Answer | StreamedAnswer]):
    """A request on the lane that is answered without a task."""

    def _come(self, lane: Lane, asked: Asked, client: object, tell: Tell) -> None:
        self._lane = lane
        self._asked = asked
        self._client = client
        self._tell = tell
        self._start = time.perf_counter()
        self._identity = ""
        self._context = _NO_CONTEXT

    def told(self, outcome: Answer | StreamedAnswer) -> None:
        if self._lane.accounts.access_log:
            self._context.run(self._lane.note, self._asked.target, outcome.status, self._start, self._client)
        else:
            self._lane.accounts.count(self._asked.target.template, outcome.status)
        self._tell(outcome, self._identity.encode())

    def failed(self, error: BaseException) -> Answer:
        return error_answer(as_failure(error))


class InOneGo(Asking, Completion[Answer | StreamedAnswer]):
    """One that is run to completion."""

    def __init__(self, lane: Lane, served: Served, asked: Asked, body: bytes, client: object, tell: Tell) -> None:
        self._come(lane, asked, client, tell)
        self._body = body
        super().__init__(lane.dataplane, served)

    async def road(self, plane: Plane) -> Answer | StreamedAnswer:
        target, call, _ = self._asked
        self._identity = begin_request(self._identity or call.headers.get("x-request-id", ""))
        answer = await respond(plane, target.inference, call, self._body)
        if self._lane.accounts.access_log:  # its line names what the thread was at
            self._context = contextvars.copy_context()
        return answer


class InBatch(Asking, Joining[Answer | StreamedAnswer]):
    """One that joins a batch."""

    def __init__(self, lane: Lane, given: Given, asked: Asked, client: object, tell: Tell) -> None:
        self._come(lane, asked, client, tell)
        self._context = contextvars.copy_context()
        self._identity = self._context.run(begin_request, asked.call.headers.get("x-request-id", ""))
        super().__init__(lane.dataplane, given, self._context)

    def answered(self, json: bytes) -> Answer:
        return Answer(200, JSON_ONLY, json)

    def failed(self, error: BaseException) -> Answer:
        # A batch is settled in the context of whoever caused it to be formed, and what is logged is to name this request.
        return self._context.run(super().failed, error)


def _target(address: bytes) -> Target | None:
    for pattern, template, verb, inference in _PATTERNS:
        if match := pattern.fullmatch(address):
            named = {name: value.decode() for name, value in match.groupdict().items()}
            return Target(address.decode(), template, verb, inference, named["model"], named.get("version"))
    return None
