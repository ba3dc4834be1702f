"""What a front end hands over with a request's body: the ``RequestHead``, and the ``Reply`` that takes the answer."""

from dataclasses import dataclass
from typing import Any, Protocol

from mpserve.errors import MPServeError
from mpserve.protocol.codec import Codec, Encoded
from mpserve.serving.execution.stream import ModelStream
from mpserve.serving.models.stages import Headers


@dataclass(slots=True)
class RequestHead:
    """The content of a request besides its body. One head may serve any number of requests, and nobody changes it.

    Attributes:
        verb: "predict" or "explain".
        headers: with lower-case names, as models expect them.
        identity: the id that the client has given the request; empty: the request gets a new id.
        content_encoding, accept_encoding: the content codings of the body, and the codings that the client takes.
        caller: the name of whoever sends the request, if callers are known.
    """

    model: str
    version: str | None
    verb: str
    codec: Codec
    headers: Headers
    identity: str = ""
    content_encoding: str | None = None
    accept_encoding: str | None = None
    caller: str | None = None


class Reply(Protocol):
    """Takes the answer to a request. One of the three methods is called, once, on the event loop."""

    def finish(self, request: Any, encoded: Encoded) -> None:
        """Take a whole answer."""

    def stream(self, request: Any, parts: ModelStream) -> None:
        """Take an answer in parts, whose first part is there. Read it to its end, or close it."""

    def fail(self, request: Any, fault: MPServeError) -> None:
        """Take a failure, which has been logged if necessary."""
