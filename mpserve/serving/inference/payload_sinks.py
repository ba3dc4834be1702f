"""Where the payload log goes: CloudEvents to an HTTP address, or lines of JSON in files. Used in a thread of its own.

The events are those of KServe's logger. Source: KServe, pkg/logger/worker.go; CloudEvents 1.0.2, HTTP binding and JSON format.
"""

import base64
import http.client
import logging
import logging.handlers
from pathlib import Path
from typing import NamedTuple, Protocol
from urllib.parse import quote, unquote, urlsplit

import orjson

from mpserve.version import VERSION

REQUEST, RESPONSE = "org.kubeflow.serving.inference.request", "org.kubeflow.serving.inference.response"
TIMEOUT = 5.0  # seconds in which the sink must take an event
FILE_SIZE, OLD_FILES = 100 * 1024**2, 3
SAFE = "".join(chr(code) for code in range(0x21, 0x7F) if chr(code) not in '"%')  # of a header of an event


class Event(NamedTuple):
    """A request or an answer. ``attributes``: those of the event, ``id`` and ``type`` among them."""

    attributes: dict[str, str]
    content_type: str | None
    data: bytes


class Sink(Protocol):
    """Takes events, one after the other."""

    def send(self, event: Event) -> None:
        """Raises OSError or HTTPException: the event was not taken."""

    def close(self) -> None:
        """Close what is open."""


def sink_of(url: str, slot: int) -> Sink:
    """The sink at an address. Raises OSError: the folder cannot be written in."""
    return FileSink(Path(unquote(urlsplit(url).path)), slot) if url.startswith("file:") else HttpSink(url)


class HttpSink:
    """Posts each event in binary mode, over one connection."""

    def __init__(self, url: str) -> None:
        address = urlsplit(url)
        self._path = f"{address.path or '/'}{'?' if address.query else ''}{address.query}"
        kind = http.client.HTTPSConnection if address.scheme == "https" else http.client.HTTPConnection
        self._connection = kind(address.netloc, timeout=TIMEOUT)

    def send(self, event: Event) -> None:
        headers = {f"ce-{name}": quote(value, SAFE) for name, value in event.attributes.items()}
        headers |= {"user-agent": f"mpserve/{VERSION}"}
        if event.content_type is not None:
            headers["content-type"] = event.content_type
        was_open = self._connection.sock is not None
        try:
            self._post(event.data, headers)
        except (ConnectionError, http.client.BadStatusLine):
            if not was_open:
                raise
            self._post(event.data, headers)  # the sink had closed the connection meanwhile

    def close(self) -> None:
        self._connection.close()

    def _post(self, data: bytes, headers: dict[str, str]) -> None:
        try:
            self._connection.request("POST", self._path, data, headers)
            with self._connection.getresponse() as response:
                response.read()
        except BaseException:
            self._connection.close()
            raise
        if not 200 <= response.status < 300:
            raise OSError(f"the sink answered {response.status}")


class FileSink:
    """Writes each event as a line of a file of this worker, ``payloads-SLOT.jsonl``. A file that is full is kept as ``.1``."""

    def __init__(self, folder: Path, slot: int, size: int = FILE_SIZE) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"payloads-{slot}.jsonl"
        self._file = logging.handlers.RotatingFileHandler(path, maxBytes=size, backupCount=OLD_FILES)
        self._file.handleError = _raise  # type: ignore[method-assign]

    def send(self, event: Event) -> None:
        line = orjson.dumps({**event.attributes, **_data(event)}).decode()
        self._file.emit(logging.makeLogRecord({"msg": line}))

    def close(self) -> None:
        self._file.close()


def _raise(record: object) -> None:
    """Called in the handler of the exception: let the caller have it."""
    raise  # noqa: PLE0704


def _data(event: Event) -> dict[str, object]:
    """The data as the fields of an event in JSON: as JSON if it is JSON, else in base64."""
    fields: dict[str, object] = {} if event.content_type is None else {"datacontenttype": event.content_type}
    if "json" in (event.content_type or ""):
        try:
            orjson.loads(event.data)
        except orjson.JSONDecodeError:
            pass
        else:  # a line end in valid JSON stands between its parts
            return {**fields, "data": orjson.Fragment(event.data.replace(b"\n", b" ").replace(b"\r", b" "))}
    return {**fields, "data_base64": base64.b64encode(event.data).decode()}
