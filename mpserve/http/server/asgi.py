"""A request that the ASGI application answers, by ASGI 3 on an HTTP/1 connection."""

import asyncio
import logging
import urllib.parse
from enum import Enum, auto

import httptools

from mpserve.http.server.exchange import INTERNAL_ERROR, JOIN_LIMIT, Exchange, Wire
from mpserve.http.server.interface import ADMIN, CALLER, ASGIApp, Message, RawHeaders, Scope
from mpserve.http.server.parser import ParsedHead
from mpserve.http.server.response_head import ResponseHead, response_head

logger = logging.getLogger(__name__)

HIGH_WATER = 65536
"""Maximum bytes of a body that wait for the application. While there are more, the connection is not read."""

BODILESS = (204, 304)
ASGI = {"version": "3.0", "spec_version": "2.3"}


def certified_name(transport: asyncio.Transport) -> str | None:
    """The name in the certificate that the client has shown: its common name, or else its first alternative name."""
    certificate = transport.get_extra_info("peercert") or {}
    subject = [(key, value) for part in certificate.get("subject", ()) for key, value in part]
    common = (value for key, value in subject if key == "commonName")
    return next(common, None) or next((value for _, value in certificate.get("subjectAltName", ())), None)


def connection_scope(wire: Wire) -> Scope:
    """The common part of the scopes of a connection."""
    local = wire.transport.get_extra_info("sockname")
    name = certified_name(wire.transport)
    return {
        "type": "http",
        "asgi": ASGI,
        "scheme": "https" if wire.transport.get_extra_info("sslcontext") else "http",
        "root_path": "",
        "client": wire.client,
        "server": (str(local[0]), int(local[1])) if isinstance(local, tuple) else (str(local), None),
        **({} if name is None else {CALLER: name}),
        **({ADMIN: True} if wire.is_admin else {}),
    }


def request_scope(wire: Wire, shared: Scope, head: ParsedHead) -> Scope:
    """The scope of a request. Raises ValueError: the request target is malformed."""
    try:
        target = httptools.parse_url(head.target)
        path = target.path.decode("ascii")
    except (httptools.HttpParserError, UnicodeDecodeError) as error:
        raise ValueError(str(error)) from error
    return {
        **shared,
        "http_version": head.version,
        "method": head.method.decode("ascii"),
        "path": urllib.parse.unquote(path) if "%" in path else path,
        "raw_path": target.path,
        "query_string": target.query or b"",
        "headers": head.headers,
        "state": wire.server.app_state.copy(),
    }


class Answered(Enum):
    """The state of the application's response."""

    NOTHING = auto()
    HEAD = auto()
    """The head is known. It is written with the first part of the body, as in ASGI."""
    PART = auto()
    """The head, and perhaps parts of the body, are written."""
    WHOLE = auto()


class Cycle(Exchange):
    """A request, and the call of an ASGI application that answers it."""

    __slots__ = (
        "_app", "_changed", "_chunks", "_head", "_left", "_scope", "_size", "_task", "answered", "is_disconnected",
    )  # fmt: skip

    def __init__(self, wire: Wire, scope: Scope, app: ASGIApp, keep_alive: bool, expects: bool) -> None:
        super().__init__(wire, keep_alive, expects)
        self._scope = scope
        self._app = app
        self._chunks: list[bytes] = []
        self._size = 0
        self._changed = asyncio.Event()  # set when ``receive`` can return
        self._head: ResponseHead | None = None
        self._left: int | None = None  # bytes of the response's body that are missing. None: unknown.
        self._task: asyncio.Task[None] | None = None
        self.answered = Answered.NOTHING
        self.is_disconnected = False

    def start(self) -> None:
        """Call the application in a task."""
        self._task = self._wire.loop.create_task(self._run())
        self._wire.server.cycles.add(self)
        self._task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._task = None
        self._wire.server.cycles.discard(self)

    def receive(self, chunk: bytes) -> None:
        """Keep a part of the body for the application."""
        if self.answered is Answered.WHOLE:
            return
        self._chunks.append(chunk)
        self._size += len(chunk)
        if self._size > HIGH_WATER:
            self._wire.pause_reading()
        self._changed.set()

    def complete(self) -> None:
        self.more_body = False
        self._changed.set()

    def disconnect(self) -> None:
        self.is_disconnected = True
        self._changed.set()

    def abandon(self) -> bool:
        """Disconnect. A response that has begun cannot be replaced."""
        self.disconnect()
        return self.answered in (Answered.NOTHING, Answered.HEAD)

    async def _run(self) -> None:
        try:
            await self._app(self._scope, self._receive, self._send)
        except BaseException as error:  # an application may even cancel its own task
            if not self.is_disconnected:
                logger.error("the ASGI application failed", exc_info=error)
        else:
            if not self._is_over:
                logger.error("the ASGI application returned without a complete response")
        if self._is_over:
            return
        if self.answered is Answered.PART:
            self._wire.close()
            return
        self.keep_alive = False
        self.answered = Answered.NOTHING
        status, headers, body = INTERNAL_ERROR
        length = (b"content-length", b"%d" % len(body))
        self._take_head({"status": status, "headers": [*headers, length]})
        self._write_body(body, more_body=False)

    async def _receive(self) -> Message:
        if self.expects:
            self.ask_for_body()
        if not self._is_over:
            self._wire.resume_reading()
            await self._changed.wait()
            self._changed.clear()
        if self._is_over:
            return {"type": "http.disconnect"}
        chunks, self._chunks = self._chunks, []
        self._size = 0
        body = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        return {"type": "http.request", "body": body, "more_body": self.more_body}

    @property
    def _is_over(self) -> bool:
        return self.is_disconnected or self.answered is Answered.WHOLE

    async def _send(self, message: Message) -> None:
        await self._wire.writable()
        if self.is_disconnected:
            return
        expected = "http.response.start" if self.answered is Answered.NOTHING else "http.response.body"
        if message["type"] != expected or self.answered is Answered.WHOLE:
            raise RuntimeError(f"the application sent {message['type']!r} when its response was {self.answered.name}")
        if self.answered is Answered.NOTHING:
            self._take_head(message)
        else:
            self._write_body(message.get("body", b""), message.get("more_body", False))

    def _take_head(self, message: Message) -> None:
        if self.expects and self.more_body:
            # Without 100 Continue the next bytes may be the body or another request.
            self.keep_alive = False
        self.expects = False
        status: int = message["status"]
        headers: RawHeaders = [(bytes(name), bytes(value)) for name, value in message.get("headers", ())]
        has_body = self._scope["method"] != "HEAD" and status not in BODILESS
        may_chunk = has_body and self._scope["http_version"] >= "1.1"
        fields = self._wire.server.server_fields
        self._head = head = response_head(status, fields, headers, keep_alive=self.keep_alive, may_chunk=may_chunk)
        self._left = head.length if has_body else 0
        self.keep_alive = not head.closes
        self.answered = Answered.HEAD

    def _write_body(self, body: bytes, more_body: bool) -> None:
        head = self._head
        assert head is not None
        if self._scope["method"] == "HEAD":
            body = b""
        if self._left is not None:
            self._left -= len(body)
            if self._left < 0 or (self._left and not more_body):
                raise RuntimeError("the body of the response has another length than its content-length")
        start = head.text if self.answered is Answered.HEAD else b""
        self.answered = Answered.PART if more_body else Answered.WHOLE
        self._write(start, body, head.is_chunked, more_body)
        if not more_body:
            self._changed.set()
            self._wire.answered(self)

    def _write(self, start: bytes, body: bytes, is_chunked: bool, more_body: bool) -> None:
        end = b""
        if is_chunked and self._left is None:
            if body:
                start += b"%x\r\n" % len(body)
                end = b"\r\n"
            if not more_body:
                end += b"0\r\n\r\n"
        if len(body) >= JOIN_LIMIT:
            self._wire.transport.writelines((start, body, end))
        elif data := start + body + end:
            self._wire.transport.write(data)
