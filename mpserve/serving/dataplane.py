"""The one road of a request, whatever the front end: find the model, run its pipeline, check the result, blame rightly.

A front end decodes bytes into a payload before this and encodes the outcome after it, and does nothing else, so V1, V2
and gRPC cannot differ in behaviour. It logs nothing: how an error is told, and to whom, is the front end's affair.
"""

from collections.abc import Callable, Sequence
from functools import partial
from inspect import isawaitable
from typing import Any

from mpserve.errors import InferenceError, InvalidInput, ModelNotReady, MPServeError
from mpserve.logging import model as model_in_log
from mpserve.protocol.messages import InferOutput, InferRequest, InferResponse
from mpserve.scoreboard import Row
from mpserve.serving.core import ServerCore
from mpserve.serving.delivery import Deliveries, take_deliveries
from mpserve.serving.pipeline import Headers
from mpserve.serving.shared_memory import fetch
from mpserve.serving.statistics import Statistics
from mpserve.serving.stream import ModelStream, blamed
from mpserve.serving.tally import INFER, Stopwatch, Tally
from mpserve.serving.tensors import STREAMS, Tensor, TensorModel


class Dataplane:
    """Answers requests with the models of a ``ServerCore``."""

    def __init__(self, core: ServerCore) -> None:
        self.core = core
        self.statistics = Statistics(core)

    def declared_inputs(self, name: str, version: str | None) -> Sequence[Tensor]:
        """The inputs that a tensor model declares, which a raw request leaves out; none of another model.

        Raises:
            ModelNotFound: no such model or version.
        """
        model = self.core.find(name, version).model
        return model.inputs if isinstance(model, TensorModel) else ()

    async def run(
        self, verb: str, name: str, version: str | None, payload: Any, headers: Headers
    ) -> tuple[Any, Headers]:
        """Run ``verb`` (``predict`` or ``explain``) of a model; gives its answer and the response headers it set.

        The answer of a generator is a ``ModelStream``, which the caller reads or closes. Until the first part is there,
        its headers may still be set.

        Raises:
            ModelNotFound: no such model or version.
            ModelNotReady: the model has taken itself out of service.
            InvalidInput: the model, or its declaration, refuses the request.
            NotSupported: the model does not implement the verb, or the request names shared memory, which is not offered.
            InferenceError: the model failed; what it raised is the ``__cause__``.
        """
        served = self.core.find(name, version)
        if not served.model.ready:
            raise ModelNotReady(served.label)
        model_in_log.set(served.label)
        if served.one_of_several and isinstance(payload, InferRequest):
            payload.model_version = served.model.version  # as if it had been named: the answer says which one it is of
        row = self.core.row
        row.in_flight += 1
        watch = Stopwatch()
        tally = served.tally
        if tally is None or tally.wish is not self.core.wish:
            tally = self.statistics.tally(served)
        rows = tally.rows(payload)
        try:
            deliveries = self._prepared(payload) if isinstance(payload, InferRequest) else {}
            with served.held:
                result, response_headers = await served.pipeline.run(verb, payload, headers, watch)
                if not isinstance(result, InferResponse) and isinstance(result, STREAMS):
                    complete = partial(_completed, request=payload, deliveries=deliveries)
                    ended = _in_flight(row, tally, watch, rows)
                    return ModelStream(served, verb, result, complete, ended).begin(), response_headers
            if isinstance(result, InferResponse):
                result = _completed(result, payload, deliveries)
            else:
                _refuse_promise(result, verb)
        except BaseException as error:
            tally.failed(watch)
            if isinstance(error, MPServeError) or not isinstance(error, Exception):
                raise
            raise blamed(error, name, verb) from error
        finally:
            row.in_flight -= 1
        tally.succeeded(watch, rows)
        return result, response_headers

    def _prepared(self, request: InferRequest) -> Deliveries:
        """Make a request what a model expects, and give what is to be done with the outputs."""
        for given in request.inputs:
            if given.in_shared_memory:
                fetch(given, self.core.regions)
        return take_deliveries(request, self.core)


def _in_flight(row: Row, tally: Tally, watch: Stopwatch, rows: int) -> Callable[[bool], None]:
    """Count a request as in flight until what is returned here is told that it ended, and whether with a whole answer."""
    row.in_flight += 1

    def ended(whole: bool) -> None:
        row.in_flight -= 1
        watch.lap(INFER)
        if whole:
            tally.succeeded(watch, rows)
        else:
            tally.failed(watch)

    return ended


def _refuse_promise(result: object, verb: str) -> None:
    """Refuse what is not an answer yet, but the promise of one."""
    if isawaitable(result):
        close = getattr(result, "close", None)
        if close is not None:
            close()  # else Python warns that it was never awaited
        raise InferenceError(
            f"the answer to {verb} is of type {type(result).__name__}, expected a value: is the method decorated by"
            " something that hides its async def?"
        )


def _completed(response: Any, request: Any, deliveries: Deliveries) -> Any:
    """A V2 response with what only the request knows: its id, the version it named, the outputs it asked for and how.

    A copy if anything is to be changed, since a model may well give the same object for every request. What is no V2 response
    stays as it is.
    """
    if not (isinstance(response, InferResponse) and isinstance(request, InferRequest)):
        return response
    if not request.request_outputs and response.id == request.id and response.model_version == request.model_version:
        return response
    given, response = response, object.__new__(InferResponse)
    vars(response).update(vars(given))
    response.id = response.id if response.id is not None else request.id
    response.model_version = response.model_version or request.model_version
    if request.request_outputs:  # none asked for means all (V2, inference request)
        response.outputs = [_requested(response, wanted.name, deliveries) for wanted in request.request_outputs]
    return response


def _requested(response: InferResponse, name: str, deliveries: Deliveries) -> InferOutput:
    output = response.get_output_by_name(name)
    if output is None:
        there = ", ".join(repr(output.name) for output in response.outputs)
        raise InvalidInput(
            f"Unexpected inference output {name!r} for model {response.model_name!r}; expected {there or 'none'}"
        )
    return deliveries[name].of(output) if name in deliveries else output
