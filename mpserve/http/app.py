"""The route table: every path that is served, to be read like a page of the specification.

Starlette routes; the hot routes are plain ASGI endpoints. It knows no gunicorn: under any other ASGI server the
lifespan loads the models, under our worker they are loaded before it runs.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.routing import BaseRoute, Mount
from starlette.types import ASGIApp, Receive, Scope, Send

from mpserve.errors import NotSupported
from mpserve.http.inference.direct import DirectRoutes
from mpserve.http.inference.endpoint import Endpoint
from mpserve.http.inference.routes import ROUTES, InferenceRoutes
from mpserve.http.management.health import Health
from mpserve.http.management.monitoring import MonitoringRoutes
from mpserve.http.management.openapi import OpenApi
from mpserve.http.management.repository import RepositoryRoutes
from mpserve.http.management.shared_memory import SharedMemoryRoutes
from mpserve.http.middleware import RequestContext
from mpserve.http.request_log import RequestLog
from mpserve.http.responses import Answer, error_answer, failure_answer, on_http_exception
from mpserve.http.routing import SegmentRoute
from mpserve.serving.repository.core import ServerCore
from mpserve.state.scoreboard import State

REFUSED = {
    "/openai": "the OpenAI protocol is not offered here; ask /v1/models/{model}:predict or /v2/models/{model}/infer",
    "/v1/timeseries": "the time-series protocol is not offered here; ask /v1/models/{model}:predict",
}
"""Beginnings of paths that the kserve SDK has, answered with 501 -> the words that the client reads."""


def build_app(core: ServerCore) -> Starlette:
    """The ASGI application that serves ``core``'s models. Its ``state.core`` is that core."""
    log = RequestLog(core.settings.access_log)
    inference = InferenceRoutes(core.settings, log)
    app = Starlette(
        routes=_routes(core, inference),
        middleware=[Middleware(RequestContext, log=log)],
        exception_handlers={HTTPException: on_http_exception, Exception: _on_error},
        lifespan=_lifespan,
    )
    app.state.core = core
    app.state.direct = DirectRoutes(core, inference)
    app.state.as_built = _shape(app)
    return app


def _routes(core: ServerCore, inference: InferenceRoutes) -> list[BaseRoute]:
    health = Health(core)
    monitoring = MonitoringRoutes(core)
    repository = RepositoryRoutes(core)
    memory = SharedMemoryRoutes(core)
    openapi = OpenApi(core)

    def asked(path: str, answer: Callable[[Request], Awaitable[Answer]], *methods: str) -> SegmentRoute:
        return SegmentRoute(path, _answering(answer), methods=methods or ["GET"])

    def ask(path: str) -> SegmentRoute:
        return SegmentRoute(path, Endpoint(core, inference, ROUTES[path]), methods=["POST"])

    return [
        asked("/", health.alive),
        asked("/metrics", health.metrics),
        asked("/openapi.json", openapi.document),
        *([asked("/docs", openapi.page)] if core.settings.enable_docs_url else []),
        # V1
        asked("/v1/models", health.models),
        asked("/v1/models/{model:v1name}", health.model_status),
        ask("/v1/models/{model}:predict"),
        ask("/v1/models/{model}:explain"),
        # V2, the Open Inference Protocol
        asked("/v2", health.server),
        asked("/v2/health/live", health.live),
        asked("/v2/health/ready", health.ready),
        asked("/v2/models", health.models),
        asked("/v2/models/stats", health.model_statistics),  # before a model of this name, as Triton has it
        asked("/v2/models/{model}", health.model_metadata),
        asked("/v2/models/{model}/ready", health.model_status),
        ask("/v2/models/{model}/infer"),
        asked("/v2/models/{model}/versions/{version}", health.model_metadata),
        asked("/v2/models/{model}/versions/{version}/ready", health.model_status),
        ask("/v2/models/{model}/versions/{version}/infer"),
        # Generate extension
        ask("/v2/models/{model}/generate"),
        ask("/v2/models/{model}/generate_stream"),
        ask("/v2/models/{model}/versions/{version}/generate"),
        ask("/v2/models/{model}/versions/{version}/generate_stream"),
        # Model configuration extension
        asked("/v2/models/{model}/config", health.model_configuration),
        asked("/v2/models/{model}/versions/{version}/config", health.model_configuration),
        # Statistics extension
        asked("/v2/models/{model}/stats", health.model_statistics),
        asked("/v2/models/{model}/versions/{version}/stats", health.model_statistics),
        # Trace and logging extensions
        asked("/v2/trace/setting", monitoring.tracing, "GET", "POST"),
        asked("/v2/models/{model}/trace/setting", monitoring.tracing, "GET", "POST"),
        asked("/v2/logging", monitoring.logging, "GET", "POST"),
        # Model repository extension
        asked("/v2/repository/index", repository.index, "POST"),
        asked("/v2/repository/models/{model}/load", repository.load, "POST"),
        asked("/v2/repository/models/{model}/unload", repository.unload, "POST"),
        # Shared memory extension
        asked("/v2/systemsharedmemory/status", memory.status),
        asked("/v2/systemsharedmemory/region/{region}/status", memory.status),
        asked("/v2/systemsharedmemory/region/{region}/register", memory.register, "POST"),
        asked("/v2/systemsharedmemory/region/{region}/unregister", memory.unregister, "POST"),
        asked("/v2/systemsharedmemory/unregister", memory.unregister, "POST"),
        asked("/v2/cudasharedmemory/status", memory.cuda_status),
        asked("/v2/cudasharedmemory/region/{region}/status", memory.cuda_status),
        asked("/v2/cudasharedmemory/region/{region}/register", memory.cuda_register, "POST"),
        asked("/v2/cudasharedmemory/region/{region}/unregister", memory.cuda_unregister, "POST"),
        asked("/v2/cudasharedmemory/unregister", memory.cuda_unregister, "POST"),
        # What the kserve SDK has besides, by any method
        *(Mount(path, _refusing(words)) for path, words in REFUSED.items()),
    ]


def find_core(app: Any) -> ServerCore | None:
    """The core behind an application, through whatever ASGI middleware a user has wrapped it in."""
    while app is not None:
        core = getattr(getattr(app, "state", None), "core", None)
        if isinstance(core, ServerCore):
            return core
        app = getattr(app, "app", None)
    return None


def find_direct(app: Any) -> DirectRoutes | None:
    """The inference routes without ASGI, if the application is as ``build_app`` made it: a user's middleware or routes
    would not see what goes that way.
    """
    if isinstance(app, Starlette) and getattr(app.state, "as_built", None) == _shape(app):
        direct: DirectRoutes = app.state.direct
        return direct
    return None


def _shape(app: Starlette) -> tuple[int, int]:
    return len(app.user_middleware), len(app.routes)


def _answering(answer: Callable[[Request], Awaitable[Answer]]) -> Callable[[Request], Awaitable[Any]]:
    async def endpoint(request: Request) -> Any:
        try:
            return await answer(request)
        except Exception as error:  # Starlette would answer it, and then raise it again, which costs the connection
            return failure_answer(error)

    return endpoint


def _refusing(words: str) -> ASGIApp:
    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        await error_answer(NotSupported(words))(scope, receive, send)

    return answer


async def _on_error(request: Request, error: Exception) -> Any:
    return failure_answer(error)


@asynccontextmanager
async def _lifespan(app: Starlette) -> AsyncIterator[None]:
    core: ServerCore = app.state.core
    if core.managed:
        yield
        return
    core.begin_alone()
    await core.load()
    core.open()
    yield
    core.row.state = State.DRAINING
    await core.stop()
