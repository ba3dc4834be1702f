"""Models that speak arrays: ``TensorModel`` declares its inputs and outputs once, and answers V1 and V2 alike."""

from collections.abc import Callable, Sequence
from functools import partial
from inspect import isasyncgenfunction, iscoroutinefunction, isgeneratorfunction, signature
from typing import Any

import numpy as np

from mpserve.errors import ConfigurationError, InvalidInput, NotSupported
from mpserve.protocol.datatypes import Array, cast, datatype_of
from mpserve.protocol.declaration import Tensor, declared_of
from mpserve.protocol.tensors import NamedArray
from mpserve.serving.fitting.binding import Bind, Parameters, binding_of
from mpserve.serving.fitting.known import known_of, takes_missing
from mpserve.serving.fitting.table import Columns
from mpserve.serving.models.model import Model, Spec


class TensorModel(Model):
    """A model whose ``predict`` takes and returns arrays.

    ``predict`` gets one numpy array per declared input, in their order, and returns one array per declared output: an array,
    a tuple of arrays, or a dict by name (or torch tensors). Without ``inputs`` it gets all tensors of the request; without
    ``outputs`` the outputs are named ``output-0``, ``output-1``, as in the SDK.

    V1: ``instances`` is the rows of the only input, or a list of objects with one entry per input, and so are ``predictions``.

    Attributes:
        inputs, outputs: the declaration.
        max_batch_size: maximum rows per batch; 0: no batches, None: ``--max_batch_size`` decides. Batches need -1 as the first
            dimension of every tensor.
        rows_joined: maximum rows per batch of a model whose answer for a row cannot depend on other rows, where neither
            ``max_batch_size`` nor the option says anything. A request of more rows runs alone.
        max_batch_delay: seconds that an idle model waits for a fuller batch; None: ``--max_batch_delay`` decides.
        preferred_batch_sizes: rows of a batch that does not wait for more rows, and takes no more.
        pad_value: pads requests of different shapes to the largest shape of their batch; None: joins equal shapes only.
        chooses_outputs: whether the model computes only the outputs that a request asks for: ``invoke_for`` is called instead
            of ``invoke``.
        preferred_output: the output for a client that names none, if the model chooses outputs; None: the model's own choice.
    """

    inputs: Sequence[Tensor] = ()
    outputs: Sequence[Tensor] = ()
    max_batch_size: int | None = None
    rows_joined: int = 0
    max_batch_delay: float | None = None
    preferred_batch_sizes: Sequence[int] = ()
    pad_value: float | None = None
    chooses_outputs: bool = False
    preferred_output: str | None = None

    def predict(self, *arrays: Any, **named: Any) -> Any:
        """Answer for the given arrays; the first dimension is the batch."""
        raise NotSupported(f"Model {self.name} does not implement predict.")

    def invoke(self, arrays: Sequence[Any]) -> Any:
        """Call ``predict``. A framework's base class moves the arrays to its device here."""
        first = arrays[0] if arrays else None
        if type(first) is Columns and first.call is not None:
            return first.call(self.predict, arrays)
        return self.predict(*arrays)

    def invoke_for(self, arrays: Sequence[Any], asked: tuple[str, ...]) -> Any:
        """As ``invoke``, for the outputs of these names; for none, those that the model chooses."""
        return self.invoke(arrays)

    def binding(self) -> Bind:
        """How the inputs of a request become the arguments of ``invoke``. Asked once, when the model is loaded."""
        calls_predict = type(self).invoke is TensorModel.invoke
        return binding_of(self.predict, declared_of(self.inputs), calls_predict=calls_predict)

    def takes_missing(self) -> bool:
        """Whether null in JSON is a missing value in every input: NaN among numbers, None among text. Asked with ``binding``."""
        return Parameters(self.predict).frame is not None

    def wants_table(self) -> bool:
        """Whether undeclared inputs become a DataFrame, each column with its own datatype. Asked with ``binding``."""
        return Parameters(self.predict).frame is not None

    def warmup(self) -> Any:
        """Predict once on ``sample``: one array, a sequence with one array per declared input, or a dict or DataFrame by name."""
        return None if self.sample is None else self.invoke(self.binding()(self.sampled()))

    def sampled(self) -> list[NamedArray]:
        """The sample as the inputs of a request; none without a sample."""
        sample = self.sample
        if sample is None:
            return []
        if hasattr(sample, "keys") or hasattr(sample, "columns"):
            names = list(getattr(sample, "columns", sample))
        else:
            sample = [sample] if len(self.inputs) == 1 or isinstance(sample, np.ndarray) else sample
            names = [tensor.name for tensor in self.inputs] or [str(index) for index in range(len(sample))]
            sample = dict(zip(names, sample, strict=True))
        arrays = {str(name): np.asarray(sample[name]) for name in names}
        declared = {tensor.name: tensor for tensor in self.inputs}
        checked = [_checked(declared[name], array) if name in declared else array for name, array in arrays.items()]
        return [
            (name, datatype, cast(array, datatype))
            for name, array in zip(arrays, checked, strict=True)
            for datatype in [datatype_of(array.dtype)]
        ]

    def get_input_types(self) -> list[Spec]:
        return [tensor.describe() for tensor in self.inputs]

    def get_output_types(self) -> list[Spec]:
        return [tensor.describe() for tensor in self.outputs]


def _checked(tensor: Tensor, array: Array) -> Array:
    if not tensor.fits(array.shape):
        raise InvalidInput(f"input {tensor.name!r}: expected shape {list(tensor.shape)}, got {list(array.shape)}")
    return cast(array, tensor.datatype)


class FunctionModel(TensorModel):
    """A pair of functions: ``load()`` returns an object, ``predict(object, array, ...)`` answers; or ``predict`` alone.

    A ``load`` with a parameter ``device``, or any other required parameter, gets the device and runs in each worker. Any other
    ``load`` runs once in the arbiter, so that all workers share its result, unless it reaches for CUDA.
    Raises ConfigurationError if ``load`` is ``async def``; only ``predict`` may be.
    """

    predict: Callable[..., Any]

    def __init__(
        self,
        name: str,
        predict: Callable[..., Any],
        load: Callable[..., Any] | None,
        inputs: Sequence[Tensor] = (),
        outputs: Sequence[Tensor] = (),
    ) -> None:
        super().__init__(name)
        self.inputs, self.outputs = inputs, outputs
        if iscoroutinefunction(load):
            raise ConfigurationError(f"model {name}: the function load is async def, expected a plain def")
        self.predict = self._function = predict
        self._loader = load
        self._loaded: object = None  # what ``load`` has returned

    def preload(self) -> None:
        if self._loader is not None and not _takes_device(self._loader):
            self._keep(self._loader())

    def load(self) -> None:
        if self._loader is not None and _takes_device(self._loader):
            by_name = "device" in signature(self._loader).parameters
            loaded = self._loader(device=self.device) if by_name else self._loader(self.device)
            self._keep(loaded)

    def _keep(self, loaded: object) -> None:
        self._loaded = loaded
        self.predict = partial(self._function, loaded)

    def binding(self) -> Bind:
        return binding_of(self.predict, declared_of(self.inputs), known_of(self._loaded))

    def takes_missing(self) -> bool:
        return super().takes_missing() or takes_missing(self._loaded)


def _takes_device(load: Callable[..., Any]) -> bool:
    parameters = signature(load).parameters
    return "device" in parameters or any(
        parameter.default is parameter.empty and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        for parameter in parameters.values()
    )


def is_async(model: TensorModel) -> bool:
    return iscoroutinefunction(model.predict) or iscoroutinefunction(model.invoke)


def answers_in_parts(model: TensorModel) -> bool:
    """Whether predict is a generator function."""
    predict = model.predict
    return isgeneratorfunction(predict) or isasyncgenfunction(predict)


def lacks_predict(model: Model) -> bool:
    """Whether a model has no predict of its own, so that only a predictor can answer."""
    return getattr(model.predict, "__func__", None) in (Model.predict, TensorModel.predict)
