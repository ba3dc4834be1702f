"""The ASGI application in this process: real models behind a client, with the lifespan run around it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx

from mpserve.config.settings import Settings
from mpserve.http.app import build_app
from mpserve.prefork.arbiter.predictor_front import predictor
from mpserve.serving.models.model import Model
from mpserve.serving.repository.core import ServerCore
from mpserve.serving.repository.loader import from_objects


def core_of(*models: Model, **options: Any) -> ServerCore:
    """The core over these models, preloaded as the arbiter would."""
    settings = Settings(**options)
    core = ServerCore(settings, lambda: from_objects(list(models)), predictor(settings))
    core.preload()
    return core


@asynccontextmanager
async def loaded(*models: Model, **options: Any) -> AsyncIterator[ServerCore]:
    """The core over these models, loaded and open as in a worker."""
    core = core_of(*models, **options)
    core.begin_alone()
    await core.load()
    core.open()
    try:
        yield core
    finally:
        await core.stop()


def client_of(app: Any, raises: bool = True) -> httpx.AsyncClient:
    """A client of an application, whose lifespan is not run. ``raises``: what the application raises, if it answers too."""
    transport = httpx.ASGITransport(app, raise_app_exceptions=raises)
    return httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=60)


@asynccontextmanager
async def serving(*models: Model, **options: Any) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the application that serves these models."""
    app = build_app(core_of(*models, **options))
    async with app.router.lifespan_context(app), client_of(app) as client:
        yield client


def ask(
    model: Model, method: str, path: str, *, options: dict[str, Any] | None = None, **request: Any
) -> httpx.Response:
    """The answer to one request to an application that serves this one model."""

    async def once() -> httpx.Response:
        async with serving(model, **(options or {})) as client:
            return await client.request(method, path, **request)

    return asyncio.run(once())


def predict(model: Model, instances: Any = (), **request: Any) -> httpx.Response:
    """The answer to one V1 predict."""
    return ask(model, "POST", f"/v1/models/{model.name}:predict", json={"instances": list(instances)}, **request)
