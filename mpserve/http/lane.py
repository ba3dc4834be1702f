"""The fast lane: the inference routes without an ASGI cycle, for a worker that reads HTTP itself.

The same functions answer under the same addresses as by ``app.py``'s routes. Whatever is not plainly one of these requests
is left to the application. Its middleware would not see what goes this way, so an application with middleware or routes of
the user's has no lane.
"""

import re
import time
from typing import NamedTuple

from mpserve.http.accounts import Accounts
from mpserve.http.inference import Call, Inference, explain, infer, predict, respond
from mpserve.http.requests import RawHeaders, read_headers
from mpserve.http.responses import Answer
from mpserve.http.streaming import StreamedAnswer
from mpserve.logging import begin_request
from mpserve.serving.dataplane import Dataplane

ROUTES: dict[str, Inference] = {
    "/v1/models/{model}:predict": predict,
    "/v1/models/{model}:explain": explain,
    "/v2/models/{model}/infer": infer,
    "/v2/models/{model}/versions/{version}/infer": infer,
}
"""Path templates; ``app.py`` makes its routes of them too."""

KNOWN = 1024
"""Addresses that are remembered, more than a server has models: a client that invents addresses must not fill memory."""

ID_HEADER = b"x-request-id"

# Addresses with anything else in them, percent-encoded bytes and queries for example, are Starlette's to read.
_SEGMENT = r"(?P<\1>[A-Za-z0-9._-]+)"
_PATTERNS = [
    (re.compile(re.sub(r"\\{(\w+)\\}", _SEGMENT, re.escape(template)).encode()), template, inference)
    for template, inference in ROUTES.items()
]


class Target(NamedTuple):
    """What an address stands for."""

    path: str
    template: str
    inference: Inference
    model: str
    version: str | None


class Asked(NamedTuple):
    """A request but for its body."""

    target: Target
    headers: dict[str, str]


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
        if int(headers.get("content-length", 0)) > self._max_body_size:
            return None
        if self.accounts.access_log and "x-forwarded-for" in headers:
            return None
        return Asked(target, headers)

    def _find(self, address: bytes) -> Target | None:
        target = _target(address)
        if target is not None and len(self._known) < KNOWN:
            self._known[address] = target
        return target

    async def answer(self, asked: Asked, body: bytes, client: object) -> Answer | StreamedAnswer:
        """The answer to a request, whatever becomes of it; ``client`` is for the access log."""
        start = time.perf_counter()
        target, headers = asked
        identity = begin_request(headers.get("x-request-id", ""))
        answer = await respond(self.dataplane, target.inference, Call(target.model, target.version, headers), body)
        if answer.body is not None:
            answer.headers.append((b"content-length", b"%d" % len(answer.body)))
        for name, _ in answer.headers:
            if name == ID_HEADER:  # a model may have set its own
                break
        else:
            answer.headers.append((ID_HEADER, identity.encode()))
        self.accounts.note(target.template, answer.status, start, client, "POST", target.path)
        return answer


def _target(address: bytes) -> Target | None:
    for pattern, template, inference in _PATTERNS:
        if match := pattern.fullmatch(address):
            named = {name: value.decode() for name, value in match.groupdict().items()}
            return Target(address.decode(), template, inference, named["model"], named.get("version"))
    return None
