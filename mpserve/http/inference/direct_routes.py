"""Inference requests that the worker's HTTP server answers without ASGI.

An application with middleware or routes of the user has no direct requests, since its middleware would not see them.
"""

from collections.abc import Callable

from mpserve.errors import MPServeError
from mpserve.http.inference.answers import streamed, whole
from mpserve.http.inference.routes import DirectHead, InferenceRoutes
from mpserve.http.requests import RawHeaders
from mpserve.http.responses import JSON_ONLY, Answer, error_answer
from mpserve.http.streaming import StreamedAnswer
from mpserve.protocol.codec import JSON, Encoded
from mpserve.serving.execution.stream import ModelStream
from mpserve.serving.inference.request import InferenceRequest, begin
from mpserve.serving.models.spans import NANO
from mpserve.serving.repository.core import ServerCore

Send = Callable[[Answer | StreamedAnswer, bytes], object]
"""Takes an answer and the id of its request."""


class DirectRoutes:
    """The inference routes for the HTTP server (``mpserve.http.server.interface``)."""

    def __init__(self, core: ServerCore, routes: InferenceRoutes) -> None:
        self.core = core
        self.routes = routes

    def match(self, target: bytes, headers: RawHeaders) -> DirectHead | None:
        return self.routes.match(target, headers)

    def begin(self, head: DirectHead, body: bytes, client: object, send: Send) -> InferenceRequest:
        return begin(self.core, head.head, body, DirectReply(self.routes, head, client, send))


class DirectReply:
    """Logs and sends the answer to one request."""

    __slots__ = ("_client", "_head", "_routes", "_send")

    def __init__(self, routes: InferenceRoutes, head: DirectHead, client: object, send: Send) -> None:
        self._routes = routes
        self._head = head
        self._client = client
        self._send = send

    def finish(self, request: InferenceRequest, encoded: Encoded) -> None:
        if encoded.content_type != JSON or encoded.fields or request.response_headers or self._routes.log.access_log:
            self._answer(request, whole(request, encoded))
        else:  # most answers
            self._head.match.answered[200] += 1
            self._send(Answer(200, JSON_ONLY, encoded.body), request.identity.encode())

    def stream(self, request: InferenceRequest, parts: ModelStream) -> None:
        self._answer(request, streamed(request, parts))

    def fail(self, request: InferenceRequest, fault: MPServeError) -> None:
        self._answer(request, error_answer(fault))

    def _answer(self, request: InferenceRequest, answer: Answer | StreamedAnswer) -> None:
        match, log = self._head.match, self._routes.log
        if log.access_log:
            start = request.arrived * NANO
            line = (match.route.template, answer.status, start, self._client, "POST", match.path)
            request.in_context(log.record, *line)
        else:
            match.answered[answer.status] += 1
        self._send(answer, request.identity.encode())
