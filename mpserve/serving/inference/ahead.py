"""A request that is decoded in a helper's thread, before its scheduler gets it: a compressed body takes milliseconds."""

from typing import Any, Protocol

from mpserve.protocol.codec import Inputs
from mpserve.serving.execution.schedulers import Scheduler


class Decoded(Protocol):
    """The request."""

    over: bool

    def fail(self, error: BaseException) -> None:
        """End with this error."""


class Ahead:
    """Where the outcome goes of decoding a request ahead: to the scheduler, or to the client."""

    def __init__(self, request: Decoded, scheduler: Scheduler) -> None:
        self._request = request
        self._scheduler = scheduler

    def done(self) -> bool:
        return self._request.over

    cancelled = done

    def set_result(self, inputs: Inputs, /) -> Any:
        self._scheduler.submit(self._request)

    def set_exception(self, error: Exception, /) -> None:
        self._request.fail(error)
