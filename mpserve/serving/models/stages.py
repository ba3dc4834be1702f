"""The stages of a model: preprocess, validate, predict or explain, postprocess, each as one function of a value.

Which methods are asynchronous, take headers or are not overridden is found out once, when the model is added. Knows no format:
the first value is the arrays or the message for the model, the last value is the model's answer.
"""

from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from inspect import Parameter, iscoroutinefunction, signature
from typing import Any, Protocol

import numpy as np

from mpserve.errors import ConfigurationError, InvalidInput
from mpserve.protocol.codec import Inputs
from mpserve.protocol.datatypes import numpy_dtype
from mpserve.protocol.declaration import TEXT, Declared, declared_of
from mpserve.protocol.messages import InferOutput, InferRequest, InferResponse
from mpserve.protocol.v1 import rows as v1_rows
from mpserve.serving.fitting.binding import Bind, Parameters
from mpserve.serving.fitting.fit import fit_outputs, is_stream
from mpserve.serving.models.model import Model
from mpserve.serving.models.spans import INFER, INPUT, OUTPUT
from mpserve.serving.models.tensor_model import TensorModel, is_async
from mpserve.telemetry.metrics import Durations

Headers = dict[str, str]
BEFORE = ("preprocess", "validate")
VERBS = ("predict", "explain")


class Staged(Protocol):
    """The part of a request that a stage uses."""

    inputs: Inputs | None

    def own_headers(self) -> tuple[Headers, Headers]:
        """The headers of the request, which a model may change, and those of the answer, which it may fill."""

    @property
    def in_parts(self) -> bool:
        """Whether the client takes any number of parts."""

    def done(self) -> bool:
        """Whether nobody waits for the answer any more."""


@dataclass(frozen=True, slots=True)
class Stage:
    """One step from a request to its answer.

    Attributes:
        call: makes the value of this stage, or an awaitable of it, from the previous value and the request.
        is_async: whether ``call`` gives an awaitable.
        note: takes the seconds of the stage; None if no histogram has the stage.
        span: the span of the stage.
    """

    call: Callable[[Any, Any], Any]
    is_async: bool
    note: Callable[[float], object] | None
    span: int


@dataclass(frozen=True, slots=True)
class Stages:
    """All stages of a verb, in their order.

    Attributes:
        takes_arrays: whether the first value is the arrays of a tensor model; else a payload or a message.
        gives_tensors: whether the last value is the result of a tensor model; else an answer of any kind.
    """

    stages: tuple[Stage, ...]
    takes_arrays: bool
    gives_tensors: bool

    @property
    def waits(self) -> bool:
        return any(stage.is_async for stage in self.stages)

    @property
    def only_arrays(self) -> bool:
        return self.takes_arrays and self.gives_tensors and len(self.stages) == 1


def stages_of(
    model: Model,
    verb: str,
    durations: Mapping[str, Durations],
    binding: Callable[[], tuple[Declared, Bind]],
    join: Callable[[Any, Any], Any] | None = None,
) -> Stages:
    """The stages of a verb. ``binding`` gives the declared inputs and their binding, once the model is loaded; ``join``
    predicts the arrays of a request in a batch.
    Raises ConfigurationError if the model declares a datatype that does not exist here (BF16 needs ml_dtypes).
    """
    speaks_arrays = verb == "predict" and isinstance(model, TensorModel)
    before = [name for name in BEFORE if overrides(model, name)]
    after = overrides(model, "postprocess")
    stages = [_own(model, name, durations, INPUT) for name in before]
    if speaks_arrays and isinstance(model, TensorModel):
        _refuse_datatypes(model)
        if before:
            stages.append(Stage(_arrays_of(binding), False, None, INPUT))
        stages.append(_predict(model, durations, join))
        if after:
            stages.append(Stage(_response_of(model), False, None, OUTPUT))
    else:
        stages.append(_own(model, verb, durations, INFER))
    if after:
        stages.append(_own(model, "postprocess", durations, OUTPUT))
    return Stages(tuple(stages), speaks_arrays and not before, speaks_arrays and not after)


def absent_stages(model: Model) -> frozenset[str]:
    return frozenset(name for name in ("preprocess", "postprocess") if not overrides(model, name))


def overrides(model: Model, name: str) -> bool:
    """Whether the model overrides the method of ``Model``."""
    return getattr(type(model), name) is not getattr(Model, name) or name in vars(model)


def detached(value: Any) -> Any:
    """The value with copies of its arrays: a model may use its arrays again in its next predict."""
    if isinstance(value, np.ndarray):
        return value.copy()
    if type(value) is dict:
        return {name: detached(held) for name, held in value.items()}
    if type(value) is tuple:
        return tuple([detached(held) for held in value])
    if isinstance(value, InferResponse):
        value = copy(value)  # the model may return the same object again
        value.outputs = [copy(output) for output in value.outputs]
        for output in value.outputs:
            output._data = detached(output._data)
    return value


def _note(durations: Mapping[str, Durations], name: str) -> Callable[[float], object] | None:
    histogram = durations.get(name)
    return None if histogram is None else histogram.note


def _own(model: Model, name: str, durations: Mapping[str, Durations], span: int) -> Stage:
    method = getattr(model, name)
    if model.takes_request and name == "predict":
        return Stage(method, False, _note(durations, name), span)
    waits = _gives_awaitable(method) or not overrides(model, name)  # Model's own predict waits for a predictor
    return Stage(_adapted(method, model.required_response_headers), waits, _note(durations, name), span)


def _predict(model: TensorModel, durations: Mapping[str, Durations], join: Callable[[Any, Any], Any] | None) -> Stage:
    if join is not None:
        return Stage(join, True, None, OUTPUT)  # the batch accounts for its time, but not for the way back
    if model.chooses_outputs:
        return Stage(_choosing(model), is_async(model), _note(durations, "predict"), INFER)
    # ``load`` may set another predict, so it is looked up for each request.
    direct = type(model).invoke is TensorModel.invoke and not Parameters(model.predict).needs_call
    call = (lambda given, _: model.predict(*given)) if direct else (lambda given, _: model.invoke(given))
    return Stage(call, is_async(model), _note(durations, "predict"), INFER)


def _choosing(model: TensorModel) -> Callable[[Any, Any], Any]:
    def call(given: Any, request: Staged) -> Any:
        return model.invoke_for(given, () if request.inputs is None else request.inputs.asked())

    return call


def _arrays_of(binding: Callable[[], tuple[Declared, Bind]]) -> Callable[[Any, Any], Sequence[Any]]:
    """The stage that makes the arrays of ``predict`` from the result of ``preprocess``."""

    def arrays_of(payload: Any, request: Staged) -> Sequence[Any]:
        declared, bind = binding()
        if isinstance(payload, InferRequest):
            given = [(each.name, each.datatype, each.as_numpy()) for each in payload.inputs]
        else:
            given = v1_rows.tensors_in(declared, payload)
        return bind(given)

    return arrays_of


def _response_of(model: TensorModel) -> Callable[[Any, Any], Any]:
    """The stage that makes the response of ``postprocess``, or an iterator of responses, from the result of ``predict``."""

    def response(result: Any, request_id: str | None) -> InferResponse:
        outputs = [
            InferOutput(name, array.shape, datatype, array)
            for name, datatype, array in fit_outputs(declared_of(model.outputs), result)
        ]
        return InferResponse(request_id, model.name, outputs)

    def responses(results: Iterator[Any], request_id: str | None) -> Iterator[InferResponse]:
        try:
            for result in results:
                yield response(result, request_id)
        finally:
            if hasattr(results, "close"):
                results.close()

    async def responses_async(results: Any, request_id: str | None) -> AsyncIterator[InferResponse]:
        try:
            async for result in results:
                yield response(result, request_id)
        finally:
            if hasattr(results, "aclose"):
                await results.aclose()

    def response_of(result: Any, request: Staged) -> Any:
        request_id = None if request.inputs is None else request.inputs.id
        if not is_stream(result):
            return response(result, request_id)
        make = responses if isinstance(result, Iterator) else responses_async
        return make(result, request_id)

    return response_of


def _refuse_datatypes(model: TensorModel) -> None:
    for tensor in (*model.inputs, *model.outputs):
        try:
            numpy_dtype(tensor.datatype)
        except InvalidInput as error:
            raise ConfigurationError(f"model {model.name} declares {tensor.name!r}: {error}") from error
        if tensor.content_type is not None and (tensor.content_type, tensor.datatype) != (TEXT, "BYTES"):
            raise ConfigurationError(
                f"model {model.name} declares {tensor.name!r} with content_type {tensor.content_type!r}, expected"
                f" {TEXT!r} for BYTES, or none"
            )


def _gives_awaitable(method: Callable[..., Any]) -> bool:
    """Whether ``method`` returns an awaitable; also for objects whose ``__call__`` is ``async def``."""
    return iscoroutinefunction(method) or iscoroutinefunction(
        getattr(type(method), "__call__", None)  # noqa: B004 (the question is not whether it is callable)
    )


def _adapted(method: Callable[..., Any], wants_response_headers: bool) -> Callable[[Any, Staged], Any]:
    """Call ``method`` with as many of (payload, headers, response_headers) as it takes, as the SDK's models vary.
    The third argument is passed if the model was made with ``return_response_headers=True``, as in the SDK, or if the third
    parameter has no default or is named ``response_headers``.
    """
    try:
        parameters = signature(method).parameters.values()
    except ValueError:  # compiled code takes the SDK's arguments
        return _with_headers(method, wants_response_headers)
    if any(parameter.kind is Parameter.VAR_POSITIONAL for parameter in parameters):
        return _with_headers(method, wants_response_headers)
    positional = [p for p in parameters if p.kind in (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)]
    if len(positional) < 2:
        return lambda payload, request: method(payload)
    third = positional[2] if len(positional) > 2 else None
    takes_third = third is not None and (
        wants_response_headers or third.default is Parameter.empty or third.name == "response_headers"
    )
    return _with_headers(method, takes_third)


def _with_headers(method: Callable[..., Any], and_response_headers: bool) -> Callable[[Any, Staged], Any]:
    if and_response_headers:
        return lambda payload, request: method(payload, *request.own_headers())
    return lambda payload, request: method(payload, request.own_headers()[0])
