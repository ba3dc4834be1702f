"""The pages for people: ``GET /`` in a browser, the state of the server that it shows, and the files of all pages.

Nothing is computed while no page is open. All pages of a worker share one look at the server each second.
"""

import asyncio
from functools import cache
from importlib.resources import files

import orjson
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import Message, Receive, Scope, Send

from mpserve.errors import AccessDenied
from mpserve.http.management.access import check
from mpserve.http.requests import Handler
from mpserve.http.responses import Answer, Headers
from mpserve.http.server import interface
from mpserve.serving.extensions.status import PRIVATE, Document, Status
from mpserve.serving.repository.core import ServerCore
from mpserve.state.scoreboard import State

PERIOD = 1.0  # seconds between two events
TICK = 0.1  # seconds in which a stream notices that the worker ends
STREAMS = 32
"""Streams of a worker at once. Further pages ask again and again, so that streams cannot take all connections of a server."""
FOLDER = files("mpserve").joinpath("http").joinpath("pages")
EVENTS = "text/event-stream"
UNCACHED: Headers = [(b"cache-control", b"no-store"), (b"vary", b"accept")]

POLICY = (
    b"default-src 'none'; connect-src 'self'; script-src 'self'; style-src 'self'; img-src data:;"
    b" base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""A page loads files from this server only, and sends requests to no other."""

TYPES = {"html": b"text/html; charset=utf-8", "css": b"text/css", "js": b"text/javascript; charset=utf-8"}
"""Media types by the end of a file's name. Other files of the folder are not sent."""


class Pages:
    """The routes over one ``ServerCore``. ``alive`` answers ``GET /`` to all clients but browsers."""

    def __init__(self, core: ServerCore, alive: Handler) -> None:
        self.core = core
        self.streams = 0
        self._status = Status(core)
        self._alive = alive
        self._look: asyncio.Task[Document] | None = None
        self._looked = 0.0

    async def home(self, request: Request) -> interface.AnyAnswer:
        """``GET /``: the page for a browser."""
        if "text/html" in request.headers.get("accept", ""):
            return page("status.html")
        return await self._alive(request)

    async def status(self, request: Request) -> interface.AnyAnswer:
        """``GET /status``: the state as JSON, or as a server-sent event each second."""
        is_manager = self._may_manage(request)
        if EVENTS in request.headers.get("accept", ""):
            return StatusStream(self, is_manager)
        return Answer(200, [(b"content-type", b"application/json"), *UNCACHED], await self.told(is_manager))

    async def told(self, is_manager: bool) -> bytes:
        """The state of the server, about ``PERIOD`` old at most, as this client may see it."""
        now = asyncio.get_running_loop().time()
        if self._look is None or now - self._looked >= PERIOD - TICK:
            self._look, self._looked = asyncio.ensure_future(self._status.told()), now
        told = await asyncio.shield(self._look)
        return orjson.dumps(told if is_manager else told | PRIVATE)

    @property
    def is_ending(self) -> bool:
        """Whether no stream may go on."""
        return self.core.row.state in (State.DRAINING, State.EXITED)

    @property
    def has_room(self) -> bool:
        """Whether one more stream may last. Under another server none may, since that waits for its end before it stops."""
        return self.core.managed and self.streams < STREAMS

    def _may_manage(self, request: Request) -> bool:
        try:
            check(self.core.settings, request)
        except AccessDenied:
            return False
        return True


class StatusStream:
    """An ASGI application that sends the state each second, until the client disconnects or the worker is to end.

    The client then asks again, after a second, and another worker may answer.
    """

    body: None = None  # distinguishes this class from ``Answer``
    headers: Headers = [(b"content-type", EVENTS.encode()), (b"x-accel-buffering", b"no"), *UNCACHED]  # noqa: RUF012

    def __init__(self, pages: Pages, is_manager: bool) -> None:
        self._pages = pages
        self._is_manager = is_manager

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        gone = asyncio.ensure_future(_disconnected(receive))
        more = self._pages.has_room
        self._pages.streams += 1
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.headers})
            await send(await self._event(more))
            while more:
                more = await self._pause(gone)
                await send(await self._event(more) if more else {"type": "http.response.body", "body": b""})
        finally:
            self._pages.streams -= 1
            gone.cancel()

    async def _event(self, more: bool) -> Message:
        told = await self._pages.told(self._is_manager)
        return {"type": "http.response.body", "body": b"retry: 1000\ndata: %b\n\n" % told, "more_body": more}

    async def _pause(self, gone: "asyncio.Future[None]") -> bool:
        """Wait until the next event is due. Return False at once if there is to be none."""
        loop = asyncio.get_running_loop()
        due = loop.time() + PERIOD
        while not (self._pages.is_ending or gone.done()):
            if loop.time() >= due:
                return True
            await asyncio.wait({gone}, timeout=TICK)
        return False


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def send_file(scope: Scope, receive: Receive, send: Send) -> None:
    """``GET /pages/{file}``: a style, a script or a picture of the pages, as an ASGI application below ``/pages``."""
    name = scope["path"].rpartition("/")[2]
    known = _names()
    if scope["method"] not in ("GET", "HEAD") or name not in known:
        raise HTTPException(404)
    kind = TYPES[name.rpartition(".")[2]]
    headers = [(b"content-type", kind), (b"cache-control", b"no-cache"), (b"x-content-type-options", b"nosniff")]
    await Answer(200, headers, _file(name))(scope, receive, send)


def page(name: str) -> Answer:
    """The answer with a page of this name."""
    headers = [(b"content-type", TYPES["html"]), (b"content-security-policy", POLICY), (b"vary", b"accept")]
    return Answer(200, headers, _file(name))


@cache
def _names() -> frozenset[str]:
    entries = (entry.name for entry in FOLDER.iterdir())
    return frozenset(name for name in entries if name.rpartition(".")[2] in ("css", "js"))


@cache
def _file(name: str) -> bytes:
    return FOLDER.joinpath(name).read_bytes()
