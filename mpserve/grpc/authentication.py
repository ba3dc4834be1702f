"""Lets the calls of known callers pass. It stands before all methods, so that it keeps each of them, also those to come."""

import inspect
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import Any, NoReturn

import grpc

from mpserve.config.settings import Settings
from mpserve.grpc.calls import Calls, Context, Headers, address_of, received_headers
from mpserve.serving.authentication.authenticator import Authenticator, Caller, public_of

HEALTH = (
    "/grpc.health.v1.Health/",
    "/inference.GRPCInferenceService/ServerLive",
    "/inference.GRPCInferenceService/ServerReady",
)
METHODS = {"health": HEALTH, "docs": ("/grpc.reflection.",)}
"""How the methods of what may be public begin."""

Handler = Any  # grpc has no public type
Continuation = Callable[[grpc.HandlerCallDetails], Awaitable[Handler]]


class KnownContext:
    """The context of a call of a known caller, whose metadata has no key."""

    def __init__(self, context: Context, caller: Caller) -> None:
        self._context = context
        self._spent = caller.spent
        self.caller = caller.name

    def invocation_metadata(self) -> tuple[tuple[str, Any], ...]:
        metadata = self._context.invocation_metadata() or ()
        return tuple((name, value) for name, value in metadata if name not in self._spent)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)


class Authentication(grpc.aio.ServerInterceptor):
    """Refuses calls whose caller is not known. ``calls`` counts and logs these."""

    def __init__(self, authenticator: Authenticator, settings: Settings, calls: Calls) -> None:
        self._authenticator = authenticator
        self._calls = calls
        self._public = tuple(
            begin for what, begins in METHODS.items() if what in public_of(settings) for begin in begins
        )
        self._kept: dict[str, Handler] = {}

    async def intercept_service(self, continuation: Continuation, details: grpc.HandlerCallDetails) -> Handler:
        method: str = details.method
        if method not in self._kept:
            handler = await continuation(details)
            if handler is None or method.startswith(self._public):
                return handler
            self._kept[method] = self._keep(handler, method.rpartition("/")[2])
        return self._kept[method]

    def _keep(self, handler: Handler, method: str) -> Handler:
        """The handler, for known callers."""
        requests = "stream" if handler.request_streaming else "unary"
        kind = f"{requests}_{'stream' if handler.response_streaming else 'unary'}"
        behaviour = getattr(handler, kind)
        refuse = self._refusing(method)

        async def admit(request: Any, context: Context) -> tuple[Any, Any]:
            try:
                caller = await self._identify(context)
            except Exception as error:
                await refuse(error, context)
            return self._watched(request, context) if requests == "stream" else request, KnownContext(context, caller)

        async def answer(request: Any, context: Context) -> Any:
            return await behaviour(*await admit(request, context))

        async def generate(request: Any, context: Context) -> AsyncGenerator[Any, None]:
            async for message in behaviour(*await admit(request, context)):
                yield message

        make = getattr(grpc, f"{kind}_rpc_method_handler")
        kept = generate if inspect.isasyncgenfunction(behaviour) else answer
        return make(kept, handler.request_deserializer, handler.response_serializer)

    def _refusing(self, method: str) -> Callable[[Exception, Context], Awaitable[NoReturn]]:
        async def refuse(error: Exception, context: Context, headers: Headers, response_headers: Headers) -> NoReturn:
            raise error

        return self._calls.answering(method, refuse)

    async def _watched(self, requests: AsyncIterator[Any], context: Context) -> AsyncGenerator[Any, None]:
        """The requests of a stream. Each must be of a known caller: a stream may last longer than a key."""
        async for request in requests:
            await self._identify(context)
            yield request

    async def _identify(self, context: Context) -> Caller:
        return await self._authenticator.identify(received_headers(context), address_of(context.peer()))
