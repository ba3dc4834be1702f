"""A plain request to a model that takes batches: from arrays to arrays, with neither a task nor messages of its own.

It joins the batch along with those that go the ordinary way, whose answers are the same. It knows no front end.
"""

import contextvars
from abc import abstractmethod
from typing import TypeVar

from mpserve.errors import MPServeError
from mpserve.logging import model as model_in_log
from mpserve.protocol.datatypes import NonFinite
from mpserve.serving.batching import Batcher, Parts
from mpserve.serving.completion import LARGE, Ticket
from mpserve.serving.dataplane import Dataplane
from mpserve.serving.executor import as_failure
from mpserve.serving.express import Given, Reader
from mpserve.serving.served import Served
from mpserve.serving.stream import blamed

T = TypeVar("T")


def read_joining(served: Served, reader: Reader, body: bytes) -> Given | None:
    """What is in a body, if it is plain and the model is one that it can be given to at once."""
    model = served.express
    if served.pipeline.batcher is None or model is None or len(body) > LARGE or not served.model.ready:
        return None
    if served.admission.is_limited and not served.admission.is_open:
        return None
    return reader(model, body)


class Joining(Ticket[T]):
    """Such a request, from its joining the queue to its answer."""

    def __init__(
        self, dataplane: Dataplane, served: Served, batcher: Batcher, given: Given, context: contextvars.Context
    ) -> None:
        """``context`` is that of the request, for what the model logs."""
        super().__init__(dataplane, served)
        self._batcher = batcher
        self._given = given
        self._nonfinite: NonFinite = dataplane.core.settings.nonfinite
        given.count(self._visit)
        context.run(self._enter)

    def _enter(self) -> None:
        visit = self._visit
        model_in_log.set(visit.served.label)
        try:
            self._batcher.enter(self._given.arrays, visit.watch, self)
        except Exception as error:
            self.set_exception(error)

    @abstractmethod
    def answered(self, json: bytes) -> T:
        """The answer of this JSON."""

    def set_exception(self, error: BaseException) -> None:
        """The batch could not be answered, or not this request."""
        if not isinstance(error, MPServeError):
            blame = blamed(as_failure(error), self._visit.served.model.name, "predict")
            blame.__cause__ = error
            error = blame
        super().set_exception(error)

    def set_result(self, outputs: Parts) -> None:
        """The batch has been answered."""
        self._over()
        self._visit.is_answered = True
        try:
            json = self._given.write(outputs, self._nonfinite)
        except Exception as error:  # what is no JSON
            self._answer(self.failed(error))
        else:
            self._answer(self.answered(json))
