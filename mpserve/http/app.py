"""The Starlette application with all routes. Inference routes are plain ASGI endpoints.

It knows no gunicorn: our worker loads the models before the lifespan, and under another ASGI server the lifespan loads them.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.routing import BaseRoute, Mount
from starlette.types import ASGIApp, Receive, Scope, Send

from mpserve.config.settings import Settings
from mpserve.errors import ConfigurationError, NotSupported
from mpserve.http.authentication import Authentication
from mpserve.http.inference.direct_routes import DirectRoutes
from mpserve.http.inference.endpoint import Endpoint
from mpserve.http.inference.routes import INVOCATIONS, ROUTES, InferenceRoutes
from mpserve.http.management.access import guarded
from mpserve.http.management.extensions import ExtensionRoutes
from mpserve.http.management.health import Health
from mpserve.http.management.openapi import OpenApi
from mpserve.http.management.pages import Pages, send_file
from mpserve.http.middleware import RequestContext
from mpserve.http.request_log import RequestLog
from mpserve.http.requests import Handler
from mpserve.http.responses import error_answer, failure_answer, on_http_exception
from mpserve.http.routing import AdminRoute, SegmentRoute, redirect_slashes
from mpserve.serving.inference.observing import begin_observing
from mpserve.serving.repository.core import ServerCore
from mpserve.state.scoreboard import State

EXPOSED = ("x-request-id", "retry-after", "inference-header-content-length")
"""Headers of answers that a page of another origin may read, besides those that it always may (``--cors_origins``)."""

REFUSED = {
    "/openai": "the OpenAI protocol is not offered here; ask /v1/models/{model}:predict or /v2/models/{model}/infer",
    "/v1/timeseries": "the time-series protocol is not offered here; ask /v1/models/{model}:predict",
}
"""Prefixes of the kserve SDK's paths that are answered with 501 -> the message."""


def build_app(core: ServerCore) -> Starlette:
    """Make the ASGI application that serves ``core``'s models. Its ``state.core`` is the core."""
    log = RequestLog(core.settings.access_log)
    inference = InferenceRoutes(core.settings, log)
    app = Starlette(
        routes=_routes(core, inference),
        middleware=[Middleware(RequestContext, log=log), *_cors(core.settings), *_authentication(core)],
        exception_handlers={HTTPException: on_http_exception, Exception: _on_error},
        lifespan=_lifespan,
    )
    redirect_slashes(app.router)
    app.state.core = core
    app.state.direct = DirectRoutes(core, inference)
    app.state.as_built = _shape(app)
    return app


def _cors(settings: Settings) -> list[Middleware]:
    """Before the authentication: a preflight has no key, and a page is to read a refusal."""
    if settings.cors_origins is None:
        return []
    origins = settings.cors_origins.split(",")
    return [
        Middleware(
            CORSMiddleware,
            allow_origins=origins,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=EXPOSED,
        )
    ]


def _authentication(core: ServerCore) -> list[Middleware]:
    if core.authenticator is None:
        return []
    return [Middleware(Authentication, authenticator=core.authenticator, settings=core.settings)]


def _routes(core: ServerCore, inference: InferenceRoutes) -> list[BaseRoute]:
    extensions, settings = ExtensionRoutes(core), core.settings
    health = Health(core)
    managing = {line: guarded(settings, handler) for line, handler in _managing(extensions).items()}
    kind = SegmentRoute if settings.admin_bind is None else AdminRoute
    has_pages = settings.enable_docs_url or settings.enable_status_page
    return [
        *(SegmentRoute(path, Endpoint(core, inference, route), methods=["POST"]) for path, route in ROUTES.items()),
        SegmentRoute(INVOCATIONS.template, Endpoint(core, inference, INVOCATIONS), methods=["POST"]),
        *(_route(line.split(), handler, kind) for line, handler in _monitoring(core, health).items()),
        *(_route(line.split(), handler) for line, handler in _open(core, health, extensions).items()),
        *(_route(line.split(), handler, kind) for line, handler in managing.items()),
        *([Mount("/pages", send_file)] if has_pages else ()),
        *(Mount(path, _refuse(message)) for path, message in REFUSED.items()),
    ]


def _monitoring(core: ServerCore, health: Health) -> dict[str, Handler]:
    """The routes for those who watch the server."""
    pages = Pages(core, health.alive)
    has_status = core.settings.enable_status_page
    return {**({"/": pages.home, "/status": pages.status} if has_status else {}), "/metrics": health.metrics}


def _open(core: ServerCore, health: Health, extensions: ExtensionRoutes) -> dict[str, Handler]:
    """The routes that change nothing."""
    openapi = OpenApi(core)
    has_docs = core.settings.enable_docs_url
    return {
        "/": health.alive,
        # Beside /invocations, as MLflow's scoring server and SageMaker have them
        "/ping": health.ready,
        "/health": health.ready,
        "/version": health.version,
        "/openapi.json": openapi.document,
        **({"/docs": openapi.page} if has_docs else {}),
        # V1
        "/v1/models": health.models,
        "/v1/models/{model:v1name}": health.model_status,
        # V2, the Open Inference Protocol
        "/v2": health.server,
        "/v2/health/live": health.live,
        "/v2/health/ready": health.ready,
        "/v2/models": health.models,
        "/v2/models/stats": extensions.model_statistics,  # before a model of this name, as in Triton
        "/v2/models/{model}": health.model_metadata,
        "/v2/models/{model}/ready": health.model_status,
        "/v2/models/{model}/versions/{version}": health.model_metadata,
        "/v2/models/{model}/versions/{version}/ready": health.model_status,
        # Model configuration and statistics extensions
        "/v2/models/{model}/config": extensions.model_configuration,
        "/v2/models/{model}/versions/{version}/config": extensions.model_configuration,
        "/v2/models/{model}/stats": extensions.model_statistics,
        "/v2/models/{model}/versions/{version}/stats": extensions.model_statistics,
        # Model repository extension. Its changes are below.
        "POST /v2/repository/index": extensions.index,
    }  # fmt: skip


def _managing(extensions: ExtensionRoutes) -> dict[str, Handler]:
    """The routes for those who manage the server."""
    return {
        # Trace and logging extensions
        "GET POST /v2/trace/setting": extensions.tracing,
        "GET POST /v2/models/{model}/trace/setting": extensions.tracing,
        "GET POST /v2/logging": extensions.logging,
        # Model repository extension
        "POST /v2/repository/models/{model}/load": extensions.load,
        "POST /v2/repository/models/{model}/unload": extensions.unload,
        # Shared memory extension
        "/v2/systemsharedmemory/status": extensions.status,
        "/v2/systemsharedmemory/region/{region}/status": extensions.status,
        "POST /v2/systemsharedmemory/region/{region}/register": extensions.register,
        "POST /v2/systemsharedmemory/region/{region}/unregister": extensions.unregister,
        "POST /v2/systemsharedmemory/unregister": extensions.unregister,
        "/v2/cudasharedmemory/status": extensions.cuda_status,
        "/v2/cudasharedmemory/region/{region}/status": extensions.cuda_status,
        "POST /v2/cudasharedmemory/region/{region}/register": extensions.cuda_register,
        "POST /v2/cudasharedmemory/region/{region}/unregister": extensions.cuda_unregister,
        "POST /v2/cudasharedmemory/unregister": extensions.cuda_unregister,
    }  # fmt: skip


def _route(words: list[str], handler: Handler, kind: type[SegmentRoute] = SegmentRoute) -> SegmentRoute:
    *methods, path = words

    async def endpoint(request: Request) -> Any:
        try:
            return await handler(request)
        except Exception as error:  # Starlette would raise it again after the answer, which closes the connection
            return failure_answer(error)

    return kind(path, endpoint, methods=methods or ["GET"])


def find_core(app: Any) -> ServerCore | None:
    """The core of an application, which may be wrapped in ASGI middleware."""
    while app is not None:
        core = getattr(getattr(app, "state", None), "core", None)
        if isinstance(core, ServerCore):
            return core
        app = getattr(app, "app", None)
    return None


def find_direct(app: Any) -> DirectRoutes | None:
    """The inference routes without ASGI. None if the user has added middleware or routes, which would not see the requests."""
    if isinstance(app, Starlette) and getattr(app.state, "as_built", None) == _shape(app):
        direct: DirectRoutes = app.state.direct
        return direct
    return None


def _shape(app: Starlette) -> tuple[int, int]:
    return len(app.user_middleware), len(app.routes)


def _refuse(message: str) -> ASGIApp:
    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        await error_answer(NotSupported(message))(scope, receive, send)

    return answer


async def _on_error(request: Request, error: Exception) -> Any:
    return failure_answer(error)


@asynccontextmanager
async def _lifespan(app: Starlette) -> AsyncIterator[None]:
    core: ServerCore = app.state.core
    if core.managed:
        yield
        return
    if core.settings.admin_bind is not None:
        raise ConfigurationError(
            "admin_bind: only mpserve's own server listens there; leave it out under another ASGI server"
        )
    core.begin_alone()
    begin_observing(core)
    await core.load()
    core.open()
    yield
    core.row.state = State.DRAINING
    await core.stop()
