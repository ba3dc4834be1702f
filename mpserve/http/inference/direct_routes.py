"""Inference requests that the worker's HTTP server answers without ASGI.

An application with middleware or routes of the user has no direct requests, since its middleware would not see them.
"""

from mpserve.errors import MPServeError
from mpserve.http.authentication import without_key
from mpserve.http.inference.answers import streamed, whole
from mpserve.http.inference.routes import DirectHead, InferenceRoutes
from mpserve.http.request_log import RequestLog
from mpserve.http.requests import RawHeaders, read_headers
from mpserve.http.responses import Answer, error_answer
from mpserve.http.server.asgi import certified_name
from mpserve.http.server.direct_exchange import DirectExchange
from mpserve.http.server.exchange import Wire
from mpserve.http.streaming import StreamedAnswer
from mpserve.protocol.codec import JSON, Encoded
from mpserve.serving.execution.stream import ModelStream
from mpserve.serving.inference.request import InferenceRequest, begin
from mpserve.serving.models.spans import NANO
from mpserve.serving.repository.core import ServerCore


class DirectRoutes:
    """The inference routes for the HTTP server (``mpserve.http.server.interface``)."""

    def __init__(self, core: ServerCore, routes: InferenceRoutes) -> None:
        self._core = core
        self._routes = routes
        self._has_cors = core.settings.cors_origins is not None

    def match(self, target: bytes, headers: RawHeaders) -> DirectHead | None:
        """As ``InferenceRoutes.match``. The application looks at a request without a key of the file, and at one of a page of
        another origin, if such pages may ask.
        """
        if self._has_cors and any(name == b"origin" for name, _ in headers):
            return None
        authenticator = self._core.authenticator
        if authenticator is None:
            return self._routes.match(target, headers)
        caller = authenticator.by_key(read_headers(headers))
        return self._routes.match(target, without_key(headers, caller), caller.name) if caller else None

    def exchange(self, wire: Wire) -> "InferenceExchange":
        return InferenceExchange(wire, self._core, self._routes.log)


class InferenceExchange(DirectExchange):
    """Begins an inference request, and logs and sends its answer: the ``Reply`` of the request."""

    __slots__ = ("_core", "_log")

    def __init__(self, wire: Wire, core: ServerCore, log: RequestLog) -> None:
        super().__init__(wire)
        self._core = core
        self._log = log

    def begin(self, body: bytes) -> InferenceRequest:
        return begin(self._core, self.head.request.head, body, self)

    def finish(self, request: InferenceRequest, encoded: Encoded) -> None:
        if encoded.content_type != JSON or encoded.fields or request.response_headers or self._log.access_log:
            self._answer(request, whole(request, encoded))
        else:  # most answers
            self.head.request.match.answered[200] += 1
            self.send_json(encoded.body, request.identity.encode())

    def stream(self, request: InferenceRequest, parts: ModelStream) -> None:
        self._answer(request, streamed(request, parts))

    def fail(self, request: InferenceRequest, fault: MPServeError) -> None:
        self._answer(request, error_answer(fault))

    def _answer(self, request: InferenceRequest, answer: Answer | StreamedAnswer) -> None:
        (match, head), log = self.head.request, self._log
        if log.access_log:
            start = request.arrived * NANO
            caller = head.caller or certified_name(self._wire.transport)
            line = (match.route.template, answer.status, start, self._wire.client, "POST", match.path, caller)
            request.in_context(log.record, *line)
        else:
            match.answered[answer.status] += 1
        self.send(answer, request.identity.encode())
