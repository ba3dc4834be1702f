"""An inference route as an ASGI application, for any ASGI server."""

from starlette.types import Receive, Scope, Send

from mpserve.errors import MPServeError
from mpserve.http.inference.answers import streamed, whole
from mpserve.http.inference.routes import InferenceRoute, InferenceRoutes
from mpserve.http.requests import read_headers, receive_body
from mpserve.http.responses import Answer, error_answer, failure_answer
from mpserve.http.server.interface import CALLER
from mpserve.http.streaming import StreamedAnswer
from mpserve.protocol.codec import Encoded
from mpserve.serving.inference.answered import answered
from mpserve.serving.inference.request_head import RequestHead
from mpserve.serving.repository.core import ServerCore
from mpserve.telemetry.logging import request_id


class Endpoint:
    """One route."""

    def __init__(self, core: ServerCore, routes: InferenceRoutes, route: InferenceRoute) -> None:
        self.core = core
        self.routes = routes
        self.route = route

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers, path = read_headers(scope["headers"]), scope["path_params"]
        try:
            model = path["model"] if "model" in path else self.core.only_name()
            named = model, path.get("version"), headers, request_id.get(), scope.get(CALLER)
            head = self.routes.head(self.route, *named)
            body = await receive_body(headers, receive, self.core.settings, head.codec.is_json)
        except Exception as error:
            await failure_answer(error)(scope, receive, send)
            return
        if body is not None:
            answer = await self._answer(head, body)
            await answer(scope, receive, send)

    async def _answer(self, head: RequestHead, body: bytes) -> Answer | StreamedAnswer:
        try:
            request, outcome = await answered(self.core, head, body)
        except MPServeError as fault:
            return error_answer(fault)
        return whole(request, outcome) if isinstance(outcome, Encoded) else streamed(request, outcome)
