"""``kserve.model_server.app``, to which a script adds middleware and routes in the arbiter, before the fork.

The server mounts its own application behind these routes. If FastAPI is installed, the app is a ``FastAPI``.
"""

from typing import Any

from starlette.applications import Starlette

_FASTAPI_ONLY = ("api_route", "delete", "get", "include_router", "middleware", "patch", "post", "put")


class ScriptApp(Starlette):
    """A Starlette application that explains why FastAPI's decorators are missing."""

    def __getattr__(self, name: str) -> Any:
        if name in _FASTAPI_ONLY:
            raise AttributeError(
                f"kserve.model_server.app.{name} needs FastAPI, which is not installed: pip install fastapi, or use"
                " Starlette's add_middleware and add_route"
            )
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")


def _make() -> Starlette:
    try:
        from fastapi import FastAPI
    except ImportError:
        return ScriptApp()
    app: Starlette = FastAPI(openapi_url=None)  # so that it does not answer /docs and /openapi.json
    return app


app = _make()


def wrap(instance: Any) -> Starlette:
    """``app`` with the server's application behind it, which answers all other routes."""
    app.mount("/", instance)
    app.state.core = instance.state.core
    return app
