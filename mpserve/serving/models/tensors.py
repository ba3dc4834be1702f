"""Models that speak arrays: ``TensorModel`` declares its inputs and outputs once, and works under V1 and V2 alike.

How a payload becomes arrays, and arrays an answer, is ``conversion``'s affair.
"""

from collections.abc import Callable, Sequence
from inspect import isasyncgenfunction, iscoroutinefunction, isgeneratorfunction, signature
from typing import Any

import numpy as np

from mpserve.errors import ConfigurationError, InvalidInput, NotSupported
from mpserve.protocol.datatypes import Array, cast
from mpserve.protocol.declaration import Tensor
from mpserve.serving.models.model import Model, Spec


class TensorModel(Model):
    """A model whose ``predict`` takes and returns arrays.

    ``predict`` gets one numpy array per declared input, in their order, and returns one per declared output: an array,
    a tuple of them, or a dict by name (torch tensors do as well). Without ``inputs`` it gets whatever the request
    holds; without ``outputs`` the answers are named ``output-0``, ``output-1``, as the SDK names them.

    V1: ``instances`` is the one input's rows, or a list of objects with one entry per input; ``predictions`` mirrors
    that.

    Attributes:
        inputs, outputs: what is declared.
        max_batch_size: rows that ``predict`` is given at most, of several requests together; 0 gives it each request by
            itself, None leaves it to ``--max_batch_size``. Batches need -1 as the first dimension of every tensor.
        max_batch_delay: seconds for which an idle model waits for a fuller batch; None leaves it to ``--max_batch_delay``.
        preferred_batch_sizes: rows of a batch that is not held back for more, and not filled beyond if more are there.
        pad_value: fills requests of different shape up to the largest of their batch; None joins only those of one shape.
    """

    inputs: Sequence[Tensor] = ()
    outputs: Sequence[Tensor] = ()
    max_batch_size: int | None = None
    max_batch_delay: float | None = None
    preferred_batch_sizes: Sequence[int] = ()
    pad_value: float | None = None

    def predict(self, *arrays: Any) -> Any:
        """Answer for the given arrays; the first dimension is the batch."""
        raise NotSupported(f"Model {self.name} does not implement predict.")

    def invoke(self, arrays: Sequence[Array]) -> Any:
        """How ``predict`` is called. A framework's base class moves the arrays to its device here."""
        return self.predict(*arrays)

    def warmup(self) -> Any:
        """Predict once on ``sample``, if there is one: one array, or a sequence with one per input, as declared."""
        if self.sample is None:
            return None
        given = [self.sample] if len(self.inputs) == 1 or isinstance(self.sample, np.ndarray) else self.sample
        arrays = [np.asarray(array) for array in given]
        if self.inputs:
            arrays = [_checked(tensor, array) for tensor, array in zip(self.inputs, arrays, strict=True)]
        return self.invoke(arrays)

    def get_input_types(self) -> list[Spec]:
        return [tensor.describe() for tensor in self.inputs]

    def get_output_types(self) -> list[Spec]:
        return [tensor.describe() for tensor in self.outputs]


def _checked(tensor: Tensor, array: Array) -> Array:
    if not tensor.fits(array.shape):
        raise InvalidInput(f"input {tensor.name!r}: expected shape {list(tensor.shape)}, got {list(array.shape)}")
    return cast(array, tensor.datatype)


class FunctionModel(TensorModel):
    """A pair of functions: ``load()`` gives an object, ``predict(object, array, ...)`` answers; or ``predict`` alone.

    A ``load`` with a parameter ``device``, or any other that must be given, gets the device and runs in each worker.
    One that needs nothing runs once in the arbiter, so that what it returns is shared by all workers, unless it reaches
    for CUDA on the way.

    Raises:
        ConfigurationError: ``load`` is ``async def``; only ``predict`` may be.
    """

    def __init__(self, name: str, predict: Callable[..., Any], load: Callable[..., Any] | None) -> None:
        super().__init__(name)
        if iscoroutinefunction(load):
            raise ConfigurationError(f"model {name}: the function load is async def, expected a plain def")
        self._function = predict
        self._loader = load
        self._object: Any = None

    def preload(self) -> None:
        if self._loader is not None and not _takes_device(self._loader):
            self._object = self._loader()

    def load(self) -> None:
        if self._loader is not None and _takes_device(self._loader):
            by_name = "device" in signature(self._loader).parameters
            self._object = self._loader(device=self.device) if by_name else self._loader(self.device)

    def invoke(self, arrays: Sequence[Array]) -> Any:
        return self._function(*arrays) if self._loader is None else self._function(self._object, *arrays)


def _takes_device(load: Callable[..., Any]) -> bool:
    parameters = signature(load).parameters
    return "device" in parameters or any(
        parameter.default is parameter.empty and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        for parameter in parameters.values()
    )


def is_async(model: TensorModel) -> bool:
    """Whether what ``invoke`` gives is to be awaited."""
    return iscoroutinefunction(_predict_of(model)) or iscoroutinefunction(model.invoke)


def answers_in_parts(model: TensorModel) -> bool:
    """Whether its predict is a generator, as far as can be known before it is called."""
    predict = _predict_of(model)
    return isgeneratorfunction(predict) or isasyncgenfunction(predict)


def lacks_predict(model: Model) -> bool:
    """Whether a model has no predict of its own, so that only a predictor can answer."""
    predict = _predict_of(model) if isinstance(model, TensorModel) else model.predict
    return getattr(predict, "__func__", None) in (Model.predict, TensorModel.predict)


def _predict_of(model: TensorModel) -> Callable[..., Any]:
    return model._function if isinstance(model, FunctionModel) else model.predict
