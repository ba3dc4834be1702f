"""A plain V2 request to a model that takes batches: from arrays to arrays, with neither a task nor messages of its own.

It joins the batch along with those that go the ordinary way, whose answers are the same. It knows no front end.
"""

import contextvars
from abc import abstractmethod
from typing import TypeVar

from mpserve.errors import InvalidInput, MPServeError
from mpserve.logging import model as model_in_log
from mpserve.protocol import plain, v2
from mpserve.protocol.datatypes import Array, NonFinite
from mpserve.protocol.messages import InferOutput, InferResponse
from mpserve.serving.batching import Batcher, Parts
from mpserve.serving.completion import LARGE, Ticket
from mpserve.serving.dataplane import Dataplane
from mpserve.serving.executor import as_failure
from mpserve.serving.express import arrays_of
from mpserve.serving.served import Served
from mpserve.serving.stream import blamed

T = TypeVar("T")


class Given:
    """What a plain request gives to a model that takes batches."""

    def __init__(self, served: Served, batcher: Batcher, request_id: str | None, arrays: list[Array]) -> None:
        self.served = served
        self.batcher = batcher
        self.request_id = request_id
        self.arrays = arrays


def read(served: Served, body: bytes) -> Given | None:
    """What is in a body of nothing but JSON, if it is plain and the model is one that it can be given to at once."""
    batcher, model = served.pipeline.batcher, served.joins
    if batcher is None or model is None or len(body) > LARGE or not served.model.ready:
        return None
    if served.admission.is_limited and not served.admission.is_open:
        return None
    request = plain.read_request(body)
    arrays = None if request is None else arrays_of(model, request)
    if request is None or arrays is None:
        return None
    try:
        batcher.check(arrays)
    except InvalidInput:
        return None  # to be refused where it can be told: a ticket is not answered before there is one
    return Given(served, batcher, request.id, arrays)


class Joining(Ticket[T]):
    """Such a request, from its joining the queue to its answer."""

    def __init__(self, dataplane: Dataplane, given: Given, context: contextvars.Context) -> None:
        """``context`` is that of the request, for what the model logs."""
        super().__init__(dataplane, given.served)
        self._given = given
        self._nonfinite: NonFinite = dataplane.core.settings.nonfinite
        self._visit.carries_array(given.arrays[0])
        context.run(self._enter)

    def _enter(self) -> None:
        given = self._given
        model_in_log.set(given.served.label)
        given.batcher.enter(given.arrays, self._visit.watch, self)

    @abstractmethod
    def answered(self, json: bytes) -> T:
        """The answer of this JSON."""

    def set_exception(self, error: BaseException) -> None:
        """The batch could not be answered, or not this request."""
        if not isinstance(error, MPServeError):
            blame = blamed(as_failure(error), self._given.served.model.name, "predict")
            blame.__cause__ = error
            error = blame
        super().set_exception(error)

    def set_result(self, outputs: Parts) -> None:
        """The batch has been answered."""
        self._over()
        self._visit.is_answered = True
        try:
            answer = self.answered(self._json(outputs))
        except Exception as error:  # what is no JSON
            answer = self.failed(error)
        self._answer(answer)

    def _json(self, outputs: Parts) -> bytes:
        name, request_id = self._given.served.model.name, self._given.request_id
        if all(plain.is_writable(array, datatype) for _, datatype, array in outputs):
            entries = [plain.entry(output, datatype, array) for output, datatype, array in outputs]
            json = v2.write_plain(name, None, request_id, entries, self._nonfinite)
            if json is not None:
                return json
        tensors = [InferOutput(output, array.shape, datatype, array) for output, datatype, array in outputs]
        return v2.encode_response(InferResponse(request_id, name, tensors), self._nonfinite)
