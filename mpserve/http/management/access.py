"""The routes that manage the server, kept for those who may."""

from starlette.requests import Request

from mpserve.config.settings import Settings
from mpserve.http.requests import Handler, read_headers
from mpserve.http.server.interface import ADMIN, CALLER, AnyAnswer
from mpserve.serving.extensions.access import check_access


def guarded(settings: Settings, handler: Handler) -> Handler:
    """The handler, for requests that may manage the server. It raises AccessDenied for all others."""

    async def answer(request: Request) -> AnyAnswer:
        check(settings, request)
        return await handler(request)

    return answer


def check(settings: Settings, request: Request) -> None:
    """Raise AccessDenied for a request that may not manage the server."""
    # uvicorn replaces the address if there is an X-Forwarded-For header, and with that header the request is refused.
    address = None if request.client is None else request.client.host
    headers, caller = read_headers(request.scope["headers"]), request.scope.get(CALLER)
    check_access(settings, address, headers, caller, is_admin=ADMIN in request.scope)
