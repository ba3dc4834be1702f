"""uvicorn's cycle of one request and its answer, where it is to do what uvicorn does not: HTTP/1.0, and parts on the lane."""

import asyncio

from uvicorn._types import ASGI3Application, ASGIReceiveCallable, ASGISendCallable, ASGISendEvent, HTTPScope, Scope
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle


def for_parts(protocol: HttpToolsProtocol, keep_alive: bool, disconnected: bool) -> RequestResponseCycle:
    """A cycle for the rest of a request on the lane: it frames the parts of the answer, and hears of a client that leaves."""
    scope: HTTPScope = {"method": "POST"}  # type: ignore[typeddict-item]  # all that a cycle itself looks at
    cycle = RequestResponseCycle(
        scope=scope,
        transport=protocol.transport,
        flow=protocol.flow,
        logger=protocol.logger,
        access_logger=protocol.access_logger,
        access_log=False,
        default_headers=protocol.server_state.default_headers,
        message_event=asyncio.Event(),
        expect_100_continue=False,
        keep_alive=keep_alive,
        on_response=protocol.on_response_complete,
    )
    cycle.more_body = False
    cycle.disconnected = disconnected
    return cycle


def unchunked(cycle: RequestResponseCycle, app: ASGI3Application) -> ASGI3Application:
    """``app`` for HTTP/1.0, which knows no chunks: an answer of unknown length ends with the connection (RFC 9112, 6.3)."""

    async def run(scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        unbounded = False

        async def send_unchunked(message: ASGISendEvent) -> None:
            nonlocal unbounded
            if message["type"] == "http.response.start":
                unbounded = all(name.lower() != b"content-length" for name, _ in message.get("headers", ()))
                if unbounded:
                    cycle.chunked_encoding = False
            elif message["type"] == "http.response.body" and unbounded:
                cycle.expected_content_length = len(message.get("body", b""))
            await send(message)

        await app(scope, receive, send_unchunked)

    return run
