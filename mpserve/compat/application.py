"""``kserve.model_server.app``: what a script adds to it works in every worker.

The script adds middleware and routes in the arbiter, before the fork. The server then mounts its own application behind
those routes. With FastAPI installed it is a ``FastAPI``, so that routes may declare what FastAPI reads for them.
"""

from typing import Any

from starlette.applications import Starlette

_FASTAPI_ONLY = ("api_route", "delete", "get", "include_router", "middleware", "patch", "post", "put")


class ScriptApp(Starlette):
    """A Starlette application that says what the decorators of FastAPI need."""

    def __getattr__(self, name: str) -> Any:
        if name in _FASTAPI_ONLY:
            raise AttributeError(
                f"kserve.model_server.app.{name} needs FastAPI, which is not installed: pip install fastapi, or use"
                " what Starlette has (add_middleware, add_route)"
            )
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")


def _make() -> Starlette:
    try:
        from fastapi import FastAPI
    except ImportError:
        return ScriptApp()
    app: Starlette = FastAPI(openapi_url=None)  # or it would answer /docs and /openapi.json
    return app


app = _make()


def wrap(instance: Any) -> Starlette:
    """``app`` with the server's application behind it, which answers whatever the script has no route for."""
    app.mount("/", instance)
    app.state.core = instance.state.core
    return app
