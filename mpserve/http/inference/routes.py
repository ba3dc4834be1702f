"""The inference routes: from a path and headers to a ``RequestHead``. Starlette matches all other paths."""

import re
from collections import defaultdict
from enum import Enum
from typing import NamedTuple

from mpserve.config.settings import Settings
from mpserve.http.request_log import RequestLog
from mpserve.http.requests import RawHeaders, read_headers
from mpserve.protocol.cloudevents import is_event
from mpserve.protocol.codec import JSON, Codec
from mpserve.protocol.generate import GenerateCodec, GenerateStreamCodec
from mpserve.protocol.json.limits import JsonLimits
from mpserve.protocol.v1.body import is_json
from mpserve.protocol.v1.codec import CloudEventCodec, V1Codec
from mpserve.protocol.v2.codec import V2Codec
from mpserve.protocol.v2.uploads import UploadCodec, is_upload
from mpserve.serving.inference.request_head import RequestHead
from mpserve.telemetry.logging import accepted_id

BINARY_HEADER = "inference-header-content-length"

MAX_CACHED = 1024  # maximum paths in the cache, since clients may send any number of paths


class Format(Enum):
    """The format of a route's requests and answers."""

    V1 = "v1"
    V2 = "v2"
    GENERATE = "generate"
    GENERATE_STREAM = "generate_stream"


class InferenceRoute(NamedTuple):
    """A route of inference requests."""

    template: str
    verb: str
    format: Format


ROUTES = {
    template: InferenceRoute(template, verb, format)
    for template, verb, format in (
        ("/v1/models/{model}:predict", "predict", Format.V1),
        ("/v1/models/{model}:explain", "explain", Format.V1),
        ("/v2/models/{model}/infer", "predict", Format.V2),
        ("/v2/models/{model}/versions/{version}/infer", "predict", Format.V2),
        ("/v2/models/{model}/generate", "predict", Format.GENERATE),
        ("/v2/models/{model}/generate_stream", "predict", Format.GENERATE_STREAM),
        ("/v2/models/{model}/versions/{version}/generate", "predict", Format.GENERATE),
        ("/v2/models/{model}/versions/{version}/generate_stream", "predict", Format.GENERATE_STREAM),
    )
}
"""By path template. ``app.py`` makes Starlette routes of them."""

INVOCATIONS = InferenceRoute("/invocations", "predict", Format.V1)
"""For the only model, as MLflow's scoring server and SageMaker have it. Starlette matches it."""

# Starlette matches paths with other characters, such as percent-encoded bytes and queries.
_SEGMENT = r"(?P<\1>[A-Za-z0-9._-]+)"
_PATTERNS = [
    (re.compile(re.sub(r"\\{(\w+)\\}", _SEGMENT, re.escape(template)).encode()), route)
    for template, route in ROUTES.items()
]


class RouteMatch(NamedTuple):
    """A path that matches a route. ``answered``: the counts of the route's answers by status."""

    path: str
    route: InferenceRoute
    model: str
    version: str | None
    answered: defaultdict[int, int]


class DirectHead(NamedTuple):
    """The head of a direct request."""

    match: RouteMatch
    head: RequestHead


class Codecs:
    """The codecs of a server with these options."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.limits = JsonLimits(settings.max_json_size, settings.max_json_elements)
        nonfinite = settings.nonfinite
        self._json = V1Codec(nonfinite)
        self._codecs: dict[Format, Codec] = {
            Format.V2: V2Codec(nonfinite),
            Format.GENERATE: GenerateCodec(nonfinite),
            Format.GENERATE_STREAM: GenerateStreamCodec(nonfinite),
        }

    def choose(self, format: Format, headers: dict[str, str]) -> Codec:
        """The codec of a request with these headers to a route of this format."""
        if format is Format.V1:
            if is_event(headers):
                options = self.settings
                described = (options.ce_source, options.ce_type, options.ce_merge)
                return CloudEventCodec(headers, self._json, self.limits, *described)
            content_type = headers.get("content-type")
            return self._json if is_json(content_type) else V1Codec(self.settings.nonfinite, content_type)
        if format is Format.V2:
            if BINARY_HEADER in headers:
                return V2Codec(self.settings.nonfinite, headers[BINARY_HEADER])
            content_type = headers.get("content-type", JSON)
            if content_type != JSON and is_upload(content_type):
                return UploadCodec(self.settings.nonfinite, content_type)
        return self._codecs[format]


class InferenceRoutes:
    """The routes of one application."""

    def __init__(self, settings: Settings, log: RequestLog) -> None:
        self.log = log
        self._settings = settings
        self._codecs = Codecs(settings)
        self._cache: dict[bytes, RouteMatch] = {}

    def match(self, target: bytes, raw_headers: RawHeaders, caller: str | None = None) -> DirectHead | None:
        """Match the head of a POST of this caller. None: the ASGI application answers the request."""
        match = self._cache.get(target) or self._find(target)
        if match is None:
            return None
        headers = read_headers(raw_headers)
        if self.log.access_log and "x-forwarded-for" in headers:  # uvicorn's middleware finds the client
            return None
        identity = accepted_id(headers.get("x-request-id", ""))
        head = self.head(match.route, match.model, match.version, headers, identity, caller)
        limit = self._settings.body_limit(head.codec.is_json and head.content_encoding is None)
        if int(headers.get("content-length", 0)) > limit:
            return None  # the endpoint refuses the body before it comes
        return DirectHead(match, head)

    def head(
        self,
        route: InferenceRoute,
        model: str,
        version: str | None,
        headers: dict[str, str],
        identity: str,
        caller: str | None = None,
    ) -> RequestHead:
        codec = self._codecs.choose(route.format, headers)
        coding, accepted = headers.get("content-encoding"), headers.get("accept-encoding")
        return RequestHead(model, version, route.verb, codec, headers, identity, coding, accepted, caller)

    def _find(self, target: bytes) -> RouteMatch | None:
        for pattern, route in _PATTERNS:
            if matched := pattern.fullmatch(target):
                names = {name: value.decode() for name, value in matched.groupdict().items()}
                answered = self.log.answered(route.template)
                match = RouteMatch(target.decode(), route, names["model"], names.get("version"), answered)
                if len(self._cache) < MAX_CACHED:
                    self._cache[target] = match
                return match
        return None
