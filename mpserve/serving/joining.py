"""A plain request to a model that takes batches: from arrays to arrays, with neither a task nor messages of its own.

It joins the batch along with those that go the ordinary way, whose answers are the same. It knows no front end.
"""

from abc import abstractmethod
from contextvars import Context
from typing import TypeVar

from mpserve.errors import InvalidInput, MPServeError
from mpserve.serving.batch import Parts
from mpserve.serving.batching import Batcher
from mpserve.serving.completion import LARGE, Ticket
from mpserve.serving.executor import as_failure
from mpserve.serving.express import Given, Reader, Written
from mpserve.serving.served import Served
from mpserve.serving.stream import blamed

T = TypeVar("T")


def read_joining(served: Served, batcher: Batcher, reader: Reader, body: bytes) -> Given[Written] | None:
    """What is in a body, if it is plain and the model is one whose next batch it can join at once."""
    model = served.express
    if model is None or len(body) > LARGE or not served.model.ready:
        return None
    if served.admission.is_limited and not served.admission.is_open:
        return None
    given = reader(model, body)
    if given is not None:
        _, _, arrays, _ = given
        try:
            batcher.check(arrays)
        except InvalidInput:
            return None  # to be refused where it can be told: a ticket is not answered before there is one
    return given


class Joining(Ticket[T | Written]):
    """Such a request, from its joining the queue to its answer."""

    _given: Given[Written]

    @abstractmethod
    def own_context(self) -> Context:
        """That of the request: what is logged in it names the request."""

    def join(self, batcher: Batcher, given: Given[Written]) -> None:
        """Enter the queue."""
        self._given = given
        form, _, arrays, _ = given
        form.count(self, arrays[0])
        batcher.enter(arrays, self, self, self.own_context)

    def set_exception(self, error: BaseException) -> None:
        """The batch could not be answered, or not this request."""
        if not isinstance(error, MPServeError):
            blame = blamed(as_failure(error), self.served.model.name, "predict")
            blame.__cause__ = error
            error = blame
        super().set_exception(error)

    def set_result(self, outputs: Parts) -> None:
        """The batch has been answered."""
        self._over()
        self.is_answered = True
        form, model, _, request = self._given
        try:
            written = form.write(request, model, outputs, self._dataplane.core.settings.nonfinite)
        except Exception as error:  # what is no JSON
            self._answer(self.failed(error))
        else:
            self._answer(written)
