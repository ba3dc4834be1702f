"""A request as the modules that run it see it. ``serving/inference/request.py`` has the request itself, and its words."""

import asyncio
import contextvars
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from mpserve.errors import MPServeError
from mpserve.protocol.codec import Inputs
from mpserve.protocol.tensors import NamedArray
from mpserve.serving.models.spans import Timed
from mpserve.serving.models.stages import Stage


class Batched(Protocol):
    """A request that waits for its part of a batch's answer.

    Attributes:
        value: the arrays of the request.
        rows: the first dimension of the arrays.
        kind: equal for requests that can be joined.
        begun: whether the model has begun with the request.
        context: log lines that are written in the context name the request.
    """

    value: Any
    rows: int
    kind: object
    begun: bool
    context: contextvars.Context

    @property
    def mark(self) -> int: ...
    def asked(self) -> tuple[str, ...]: ...
    def lap(self, span: int) -> int: ...
    def follow(self, batch: Timed, executions: int) -> None: ...
    def complete(self, tensors: list[NamedArray]) -> Any: ...
    def done(self) -> bool: ...
    def set_result(self, result: Any, /) -> None: ...
    def set_exception(self, error: BaseException, /) -> None: ...


class Scheduled(Batched, Protocol):
    """A request that a scheduler runs.

    Attributes:
        infer_before: nanoseconds that the model took for the previous request.
        inputs: the content of the body, once the request is decoded.
        task: the task in which the request waits alone.
        over: whether the outcome is known, or nobody waits for the outcome.
        seconds: the time limit; infinite: none.
        places: where its end is to be counted (``rates``); set if the model, or the callers, have limits.
    """

    head: Any
    body: bytes
    infer_before: int
    inputs: Inputs | None
    task: asyncio.Task[None] | None
    over: bool
    seconds: float
    places: Sequence[int]

    def prepare(self) -> None: ...
    def run(self) -> Any: ...
    def run_stages(self, stages: tuple[Stage, ...], value: Any) -> Any: ...
    def spend(self, span: int, note: Callable[[float], object] | None) -> None: ...
    def encode(self, result: Any) -> Any: ...
    def compress(self, outcome: Any) -> Any: ...
    def fail(self, error: BaseException) -> None: ...
    def expire(self, error: MPServeError) -> None: ...
    def cancelled(self) -> bool: ...
