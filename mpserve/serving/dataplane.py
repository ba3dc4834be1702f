"""The one road of a request, whatever the front end: find the model, run its pipeline, check the result, blame rightly.

A front end decodes bytes into a payload before this and encodes the outcome after it, and does nothing else, so V1, V2
and gRPC cannot differ in behaviour. It logs nothing: how an error is told, and to whom, is the front end's affair.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from inspect import isawaitable
from typing import Any, Protocol, TypeVar

from mpserve.errors import InferenceError, InvalidInput, ModelNotReady, MPServeError
from mpserve.logging import model as model_in_log
from mpserve.protocol.messages import InferOutput, InferRequest, InferResponse
from mpserve.serving.conversion import STREAMS
from mpserve.serving.core import ServerCore
from mpserve.serving.delivery import NOTHING, Deliveries, take_deliveries
from mpserve.serving.host import ModelHost
from mpserve.serving.pipeline import Headers
from mpserve.serving.served import Served
from mpserve.serving.shared_memory import fetch
from mpserve.serving.statistics import Statistics
from mpserve.serving.stream import ModelStream, blamed
from mpserve.serving.tally import INFER, Tally
from mpserve.serving.tensors import Tensor, TensorModel
from mpserve.serving.visit import Visit

T = TypeVar("T")


class InParts(BaseException):
    """The answer turned out to be one in parts, in a thread; only the event loop can hand it out."""

    def __init__(self, payload: Any, parts: Any, headers: Headers, deliveries: Deliveries) -> None:
        self.payload = payload
        self.parts = parts
        self.headers = headers
        self.deliveries = deliveries


class Plane(Protocol):
    """What a front end asks of the dataplane, wherever it is asked."""

    core: ServerCore

    def declared_inputs(self, name: str, version: str | None) -> Sequence[Tensor]:
        """As ``Dataplane.declared_inputs``."""

    def takes_numbers(self, verb: str, name: str, version: str | None) -> bool:
        """As ``Dataplane.takes_numbers``."""

    def refuse_early(self, name: str, version: str | None) -> None:
        """As ``Dataplane.refuse_early``."""

    async def run(
        self, verb: str, name: str, version: str | None, payload: Any, headers: Headers
    ) -> tuple[Any, Headers]:
        """As ``Dataplane.run``."""

    async def offload(self, function: Callable[..., T], *args: object) -> T:
        """Run something slow off the event loop."""


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
        return declared_inputs(self.core.find(name, version))

    def refuse_early(self, name: str, version: str | None) -> None:
        """Refuse a request that ``run`` would refuse, before its body is decoded.

        Raises:
            ModelNotFound: no such model or version.
            Overloaded: too many wait for it.
        """
        self.core.find(name, version).admission.admit(None, math.inf)

    async def run(
        self, verb: str, name: str, version: str | None, payload: Any, headers: Headers, within: float = math.inf
    ) -> tuple[Any, Headers]:
        """Run ``verb`` (``predict`` or ``explain``) of a model; gives its answer and the response headers it set.

        The answer of a generator is a ``ModelStream``, which the caller reads or closes. Until the first part is there,
        its headers may still be set. ``within``: seconds that the client still waits, as far as the front end knows. The
        shortest time that anybody gives is for a whole answer, or for the first part of one, counted from its iterator on.

        Raises:
            ModelNotFound: no such model or version.
            ModelNotReady: the model has taken itself out of service.
            Overloaded: too many others wait for it, or it cannot be answered in time.
            DeadlineExceeded: it was not answered in time.
            InvalidInput: the model, or its declaration, refuses the request.
            NotSupported: the model does not implement the verb, or the request names shared memory, which is not offered.
            InferenceError: the model failed; what it raised is the ``__cause__``.
        """
        served = self.core.find(name, version)
        if not served.model.ready:
            raise ModelNotReady(served.label)
        admission = served.admission
        within = admission.admit(payload, within)
        visit = self.visit(served)
        try:
            deliveries = prepared(visit, payload, self.core)
            work = served.pipeline.run(verb, payload, headers, visit)
            if within != math.inf:
                work = admission.until(within, work, visit)
            result, response_headers = await work
            if is_stream(result):
                return stream(visit, verb, payload, result, deliveries, within), response_headers
            result = completed(result, payload, deliveries, verb)
        except BaseException as error:
            visit.end()
            if isinstance(error, MPServeError) or not isinstance(error, Exception):
                raise
            raise blamed(error, name, verb) from error
        visit.is_answered = True
        visit.end()
        if admission.learns:
            admission.note(visit, visit.place)
        return result, response_headers

    def takes_numbers(self, verb: str, name: str, version: str | None) -> bool:
        """Whether a V1 payload's rows may be ``Numbers``, since nothing sees them before they are arrays.

        Raises:
            ModelNotFound: no such model or version.
        """
        served = self.core.find(name, version)
        return verb == "predict" and served.pipeline.begins_with_arrays

    def visit(self, served: Served) -> Visit:
        """Begin a request to this model."""
        return Visit(served, self.tally(served), self.core.row.cells)

    def tally(self, served: Served) -> Tally:
        """What its requests are counted in."""
        tally = served.tally
        return tally if tally is not None and tally.wish is self.core.wish else self.statistics.tally(served)

    async def offload(self, function: Callable[..., T], *args: object) -> T:
        """Run something slow off the event loop."""
        return await self.core.offload(function, *args)


def declared_inputs(served: Served) -> Sequence[Tensor]:
    """The inputs that a tensor model declares; none of another model."""
    return served.model.inputs if isinstance(served.model, TensorModel) else ()


def prepared(visit: Visit, payload: Any, host: ModelHost) -> Deliveries:
    """Make a request what a model expects, and give what is to be done with the outputs.

    Raises:
        InvalidInput, NotSupported: it names memory that there is not, or says what no extension has.
    """
    served = visit.served
    model_in_log.set(served.label)
    visit.carries(payload)
    if not isinstance(payload, InferRequest):
        return NOTHING
    if served.one_of_several:
        payload.model_version = served.model.version  # as if it had been named: the answer says which one it is of
    for given in payload.inputs:
        if given.parameters and given.in_shared_memory:
            fetch(given, host.regions)
    return take_deliveries(payload, host) if payload.request_outputs else NOTHING


def completed(result: Any, payload: Any, deliveries: Deliveries, verb: str) -> Any:
    """A model's whole answer as the front end is given it.

    Raises:
        InferenceError: it is no answer, but the promise of one.
        InvalidInput: an output was asked for that is not there.
    """
    if isinstance(result, InferResponse):
        return _completed(result, payload, deliveries)
    _refuse_promise(result, verb)
    return result


def is_stream(result: Any) -> bool:
    """Whether it is an answer in parts."""
    return not isinstance(result, InferResponse | dict) and isinstance(result, STREAMS)


def stream(visit: Visit, verb: str, payload: Any, parts: Any, deliveries: Deliveries, within: float) -> ModelStream:
    """An answer in parts, which the visit lasts as long as. Its first part must be there in ``within`` seconds."""

    def ended(is_whole: bool) -> None:
        visit.lap(INFER)
        visit.is_answered = is_whole
        visit.end()

    complete = partial(_completed, request=payload, deliveries=deliveries)
    return ModelStream(visit.served, verb, parts, complete, ended, within).begin()


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
