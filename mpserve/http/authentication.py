"""ASGI middleware that lets known callers pass. It stands before all routes, so that it keeps each, also those to come."""

from starlette.types import ASGIApp, Receive, Scope, Send

from mpserve.config.settings import Settings
from mpserve.http.requests import RawHeaders, read_headers
from mpserve.http.responses import failure_answer
from mpserve.http.server import interface
from mpserve.http.server.interface import CALLER
from mpserve.serving.authentication.authenticator import Authenticator, Caller, public_of

ROUTES = {
    "health": ("/", "/ping", "/health", "/v2/health/live", "/v2/health/ready"),
    "metrics": ("/metrics",),
    "docs": ("/docs", "/openapi.json"),
}
"""The paths of what may be public. They are only read."""


def public_paths(settings: Settings) -> set[str]:
    return {path for what, paths in ROUTES.items() if what in public_of(settings) for path in paths}


READING = ("GET", "HEAD")

POLICY_VIOLATION = 1008  # RFC 6455, 7.4.1


class Authentication:
    """Refuses requests whose caller is not known. Leaves the caller's name in the scope, and takes the key from the headers."""

    def __init__(self, app: ASGIApp, authenticator: Authenticator, settings: Settings) -> None:
        self.app = app
        self.authenticator = authenticator
        self.public = public_paths(settings)
        # The files of the pages, which hold nothing of the server: the page at / asks for a key.
        self.public_folders = ("/pages/",) if {"health", "docs"} & set(public_of(settings)) else ()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or self._is_public(scope):
            await self.app(scope, receive, send)
            return
        client = scope.get("client")
        try:
            caller = await self.authenticator.identify(read_headers(scope["headers"]), client[0] if client else None)
        except Exception as error:
            if scope["type"] == "http":
                await failure_answer(error)(scope, receive, send)
            else:  # a WebSocket of a route that the user has added
                await send({"type": "websocket.close", "code": POLICY_VIOLATION})
            return
        # In the same scope, since the middleware around this one reads the name and the route from it.
        scope[CALLER] = caller.name
        scope["headers"] = without_key(scope["headers"], caller)
        await self.app(scope, receive, send)

    def _is_public(self, scope: Scope) -> bool:
        # An encoded path may stand for another route than its decoded text.
        if scope.get("method") not in READING or b"%" in scope.get("raw_path", b""):
            return False
        path: str = scope["path"].removeprefix(scope.get("root_path", ""))
        return path in self.public or path.startswith(self.public_folders)


def without_key(headers: RawHeaders, caller: Caller) -> interface.RawHeaders:
    """The headers that others may see."""
    return [(name, value) for name, value in headers if name.decode("latin-1") not in caller.spent]
