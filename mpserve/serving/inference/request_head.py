"""What a front end hands over with a request, and what a request tells of itself and of its end."""

from dataclasses import dataclass
from enum import Enum
from typing import Any, Protocol

from mpserve.errors import MPServeError
from mpserve.protocol.codec import Codec, Encoded
from mpserve.serving.execution.stream import ModelStream
from mpserve.serving.models.stages import Headers


@dataclass(slots=True)
class RequestHead:
    """What a request says besides its body. One head may serve any number of requests, and nobody changes it.

    Attributes:
        verb: "predict" or "explain".
        headers: with lower-case names, as models expect them.
        identity: the id that the client has given the request; empty: the request gets a new one.
        content_encoding, accept_encoding: the content codings of the body, and those that the client takes.
    """

    model: str
    version: str | None
    verb: str
    codec: Codec
    headers: Headers
    identity: str = ""
    content_encoding: str | None = None
    accept_encoding: str | None = None


class Status(Enum):
    """How far a request has come. It moves down this list only, and may leave out a step."""

    QUEUED = "queued"
    RUNNING = "running"
    STREAMING = "streaming"
    DONE = "done"


class Reply(Protocol):
    """Where the answer to a request goes. One of the three is called, once, on the event loop."""

    def finish(self, request: Any, encoded: Encoded) -> None:
        """Take a whole answer."""

    def stream(self, request: Any, parts: ModelStream) -> None:
        """Take an answer in parts, whose first part is there, and read it to its end or close it."""

    def fail(self, request: Any, fault: MPServeError) -> None:
        """Take the reason why there is no answer. It has been logged where it must be."""
