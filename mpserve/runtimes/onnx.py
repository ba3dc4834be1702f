"""Serves ONNX files by ONNX Runtime, with the inputs and outputs that the file declares.

ONNX Runtime starts threads when it is imported, and its sessions do not survive a fork. So it is imported in the workers, and
each worker has a session of its own. Weights in files of their own (external data) are mapped, and workers share their pages.
"""

import logging
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from mpserve.errors import ConfigurationError, InferenceError, InvalidInput
from mpserve.protocol.datatypes import Array
from mpserve.protocol.declaration import TEXT, Tensor, declared_of
from mpserve.protocol.tensors import NamedArray
from mpserve.runtimes.declared import narrowed
from mpserve.runtimes.onnx_file import Value, read
from mpserve.serving.fitting.binding import Bind, binding_of
from mpserve.serving.models.model import Spec
from mpserve.serving.models.refusals import words_of
from mpserve.serving.models.tensor_model import TensorModel

logger = logging.getLogger(__name__)

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
FATAL = 4  # a level of onnxruntime's log: it logs what it raises anyhow
UNNAMED = "unk__"  # begins the names that tf2onnx gives to sizes without a name

if find_spec("onnxruntime") is None:
    raise ModuleNotFoundError("No module named 'onnxruntime'", name="onnxruntime")


class OnnxModel(TensorModel):
    """Serves a file. A float input takes missing values if the graph looks for NaN."""

    platform = "onnxruntime_onnx"
    session: Any
    _refused: tuple[type[Exception], ...] = ()

    def __init__(self, name: str, path: Path) -> None:
        super().__init__(name)
        self.path = path
        self._alike: list[tuple[str, list[tuple[int, int]]]] = []

    def preload(self) -> None:
        self.file = file = read(self.path)
        self.inputs = self._inputs_as(self.inputs)
        # The file may say other shapes of its outputs than it gives, so they are described and not checked.
        wanted, self.outputs = self.outputs, ()
        self.served = self._outputs_as(wanted)
        self._names = [value.name for value in self.served]
        self._alike = _same_sizes(file.inputs)
        if not _is_row_wise(file.inputs, self.served):
            if self.max_batch_size:
                raise ConfigurationError(
                    f"model {self.name} cannot have max_batch_size {self.max_batch_size}: the first dimension of its inputs and"
                    f" outputs in {self.path.name} is not the same dimension of any size"
                )
            self.max_batch_size = 0

    def _inputs_as(self, declared: Sequence[Tensor]) -> list[Tensor]:
        """The inputs of the file, as its configuration declares them if there is one."""
        by_name = {tensor.name: tensor for tensor in declared}
        if declared and by_name.keys() != (names := {value.name for value in self.file.inputs}):
            raise ConfigurationError(
                f"{self.path.name} has the inputs {', '.join(sorted(names))}, and its configuration declares"
                f" {', '.join(sorted(by_name))}"
            )
        inputs = []
        for value in self.file.inputs:
            wanted = by_name.get(value.name)
            shape = tuple(wanted.shape) if wanted is not None and value.shape is None else value.shape
            own = _declared(self.path, value._replace(shape=shape), self.file.takes_missing)
            inputs.append(own if wanted is None else narrowed(self.path.name, own, wanted))
        return inputs

    def _outputs_as(self, declared: Sequence[Tensor]) -> list[Value]:
        """The outputs of the file, or those that its configuration declares."""
        own = {value.name: value for value in self.file.outputs}
        for tensor in declared:
            if tensor.name not in own or tensor.datatype != own[tensor.name].datatype:
                there = ", ".join(f"{value.name} ({value.datatype or value.what})" for value in own.values())
                raise ConfigurationError(
                    f"{self.path.name} has the outputs {there}, and its configuration declares {tensor.name} ({tensor.datatype})"
                )
        outputs = [own[tensor.name] for tensor in declared] or self.file.outputs
        served = [value for value in outputs if value.datatype]
        if left_out := [f"{value.name!r} ({value.what})" for value in outputs if not value.datatype]:
            told = f"{self.path.name}: outputs that V2 or onnxruntime's Python interface cannot carry: {', '.join(left_out)}"
            if not served:
                raise ConfigurationError(told)
            logger.warning("%s; they are left out", told)
        return served

    def load(self) -> None:
        import onnxruntime

        self._refused = (_refusal_of(onnxruntime),)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.native_threads
        providers = [CPU]
        if self.device != "cpu":
            providers = [CUDA, CPU] if CUDA in onnxruntime.get_available_providers() else providers
        elif self.file.has_external_data:
            # Packed weights would be a copy in each worker.
            options.add_session_config_entry("session.disable_prepacking", "1")
        self.session = onnxruntime.InferenceSession(str(self.path), options, providers=providers)
        if self.device != "cpu" and CUDA not in self.session.get_providers():
            logger.warning(
                "model %s runs on the CPU, since onnxruntime has no working %s here: pip install onnxruntime-gpu",
                self.name,
                CUDA,
            )
        self._quiet = onnxruntime.RunOptions()
        self._quiet.log_severity_level = FATAL

    def binding(self) -> Bind:
        fitted = binding_of(self.predict, declared_of(self.inputs), calls_predict=False)
        ranks = {tensor.name: len(tensor.shape) for tensor in self.inputs if list(tensor.shape) in ([-1], [-1, 1])}
        return (lambda given: fitted([_as_column(each, ranks.get(each[0])) for each in given])) if ranks else fitted

    def predict(self, *arrays: Any) -> dict[str, Array]:
        feeds = {tensor.name: array for tensor, array in zip(self.inputs, arrays, strict=True)}
        try:
            results = self.session.run(self._names, feeds, self._quiet)
        except Exception as error:
            told = self._differing(arrays)
            if not told and not isinstance(error, self._refused):
                raise
            logger.info("model %s refused an input", self.name, exc_info=True)
            raise InvalidInput(told or f"the model refused the input: {_words_of(error)}") from error
        return {
            value.name: _by_class(value, result) if value.by_class else result
            for value, result in zip(self.served, results, strict=True)
        }

    def _differing(self, arrays: Sequence[Array]) -> str:
        """Which dimensions of one name differ in size; empty if none does. onnxruntime leaves that to its operators."""
        for symbol, places in self._alike:
            if len({arrays[index].shape[axis] for index, axis in places}) > 1:
                sizes = [(self.inputs[index].name, arrays[index].shape[axis]) for index, axis in places]
                told = ", ".join(f"input {name!r} has {size}" for name, size in sizes)
                return f"expected one size for dimension {symbol!r}; {told}"
        return ""

    def get_output_types(self) -> list[Spec]:
        return [_describe(value) for value in self.served]


def _refusal_of(onnxruntime: Any) -> type[Exception]:
    """By which exception a session refuses an input; the documentation of onnxruntime does not say its place.
    Raises ConfigurationError if it is not there: when the model is loaded, and not when a request comes.
    """
    try:
        from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument
    except ImportError:
        raise ConfigurationError(
            f"onnxruntime {onnxruntime.__version__} has no InvalidArgument where 1.32 has it: expected that version,"
            " or a newer mpserve"
        ) from None
    refusal: type[Exception] = InvalidArgument
    return refusal


def _words_of(error: Exception) -> str:
    """What an operator says of the input, without the codes around it."""
    return words_of(error).rpartition("Status Message: ")[2].rpartition("INVALID_ARGUMENT : ")[2]


def _declared(path: Path, value: Value, takes_missing: bool) -> Tensor:
    if not value.datatype or value.by_class:
        raise ConfigurationError(
            f"{path.name}: input {value.name!r} is {value.what}, which V2 or onnxruntime's Python interface cannot carry"
        )
    if value.shape is None:
        raise ConfigurationError(
            f"{path.name}: input {value.name!r} has no shape; give it one (onnx.tools.update_model_dims) and save the file again"
        )
    is_text = value.datatype == "BYTES"
    return Tensor(
        value.name,
        value.datatype,
        list(value.shape),
        content_type=TEXT if is_text else None,
        nullable=takes_missing and value.datatype in ("FP32", "FP64"),
    )


def _describe(value: Value) -> Spec:
    shape = [-1, len(value.labels) or -1] if value.by_class else list(value.shape or [-1])
    described: Spec = {"name": value.name, "datatype": value.datatype, "shape": shape}
    if value.labels:
        described["parameters"] = {"labels": list(value.labels)}
    return described


def _is_row_wise(inputs: Sequence[Value], outputs: Sequence[Value]) -> bool:
    """Whether the first dimension of everything is of any size, and of the same name where names are given."""
    values = [*inputs, *outputs]
    if not inputs or any(value.shape is None or value.shape[:1] != (-1,) for value in values):
        return False
    named = {value.symbols[0] for value in values if value.symbols[0] and not value.symbols[0].startswith(UNNAMED)}
    return len(named) <= 1


def _same_sizes(inputs: Sequence[Value]) -> list[tuple[str, list[tuple[int, int]]]]:
    """The names of sizes that several dimensions have, each with its places: the number of the input and the axis."""
    places: dict[str, list[tuple[int, int]]] = {}
    for index, value in enumerate(inputs):
        for axis, symbol in enumerate(value.symbols):
            if symbol and not symbol.startswith(UNNAMED):
                places.setdefault(symbol, []).append((index, axis))
    return [(symbol, found) for symbol, found in places.items() if len(found) > 1]


def _as_column(given: NamedArray, rank: int | None) -> NamedArray:
    """A column of the declared rank: [n] and [n, 1] are the same."""
    name, datatype, array = given
    if rank is None or {array.ndim, rank} != {1, 2} or array.size != len(array):
        return given
    return name, datatype, array.reshape([len(array), 1][:rank])


def _by_class(value: Value, rows: list[dict[Any, float]]) -> Array:
    """The scores of each row, in the order of the classes, from a map for each row."""
    labels = value.labels or list(rows[0]) if rows else value.labels
    try:
        scores = [[row[label] for label in labels] for row in rows]
    except KeyError as error:
        raise InferenceError(f"output {value.name!r}: a row has no score for class {error}") from None
    return np.array(scores, np.float32 if value.datatype == "FP32" else None).reshape(len(rows), len(labels))
