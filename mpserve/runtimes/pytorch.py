"""Models in torch: a base class, and the two kinds of file that torch writes.

The only module that imports torch; it is imported only when a model needs it.
"""

from collections.abc import Iterator, Sequence
from inspect import Parameter, Signature
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mpserve.errors import ConfigurationError, InvalidInput
from mpserve.protocol.declaration import Tensor, declared_of
from mpserve.protocol.tensors import NamedArray
from mpserve.runtimes.declared import in_order, narrowed, place_of
from mpserve.serving.fitting.binding import Bind, binding_of
from mpserve.serving.models.refusals import words_of
from mpserve.serving.models.tensor_model import TensorModel

DATATYPES = {
    torch.bool: "BOOL",
    torch.uint8: "UINT8",
    torch.int8: "INT8",
    torch.int16: "INT16",
    torch.int32: "INT32",
    torch.int64: "INT64",
    torch.float16: "FP16",
    torch.float32: "FP32",
    torch.float64: "FP64",
}
"""torch's dtypes that numpy also has -> their V2 names."""

GUARD = "Guard failed"
"""How an archive's words begin when an input is outside of the sizes that it was exported for."""


class TorchModel(TensorModel):
    """A ``TensorModel`` whose ``predict`` takes and returns torch tensors.

    The inputs are on ``self.device`` already, and ``predict`` runs under ``torch.inference_mode()``. Keep the weights
    on the CPU in ``preload()``, where all workers share them, and move them with ``.to(self.device)`` in ``load()``; on
    a CPU that copies nothing.
    """

    platform = "pytorch"

    def invoke(self, arrays: Sequence[NDArray[Any]]) -> Any:
        with torch.inference_mode():
            result = self.predict(*(self.to_tensor(array) for array in arrays))
        return _in_steps(result) if isinstance(result, Iterator) else result

    def to_tensor(self, array: NDArray[Any]) -> Any:
        """The array as a tensor on ``self.device``; an array of bytes stays as it is, since torch has no such type."""
        if array.dtype == np.object_:
            return array
        # from_numpy shares memory, and warns when a read-only array could thus be written to.
        return torch.from_numpy(array if array.flags.writeable else array.copy()).to(self.device)


@torch.inference_mode()  # applies to each step of a generator, and not between two steps
def _in_steps(parts: Iterator[Any]) -> Iterator[Any]:
    yield from parts


class FileModel(TorchModel):
    """The base of both kinds of file: ``module`` is called with the inputs in their order.
    A configuration may have declared inputs and outputs before ``preload``; they are told apart by Triton's names.
    """

    module: Any
    _places: Sequence[int] = ()  # of the outputs that are declared, among those that the network gives

    def __init__(self, name: str, path: Path) -> None:
        super().__init__(name)
        self.path = path

    def preload(self) -> None:
        self.read()
        places = [place_of(tensor.name) for tensor in self.outputs]
        self._places = [index if place is None or None in places else place for index, place in enumerate(places)]

    def read(self) -> None:
        """Read the file: ``module``, and its inputs."""
        raise NotImplementedError

    def predict(self, *tensors: Any) -> Any:
        result = self.module(*tensors)
        if isinstance(result, dict):
            return {tensor.name: result[tensor.name] for tensor in self.outputs} if self.outputs else result
        if isinstance(result, list):  # of outputs, not one output to stack
            result = tuple(result)
        if self._places and isinstance(result, tuple):
            return tuple([result[place] for place in self._places])
        return result


class TorchScriptModel(FileModel):
    """Serves a TorchScript file, made by ``torch.jit.save``.

    The file says the names of its inputs, and no datatypes or shapes. JSON numbers have no width, so floating inputs are taken
    in the width of the network's own parameters.
    """

    platform = "pytorch_torchscript"
    floating: torch.dtype | None = None
    arguments: Sequence[Parameter] = ()

    def read(self) -> None:
        self.module = torch.jit.load(str(self.path), map_location="cpu").eval()
        dtypes = (parameter.dtype for parameter in self.module.parameters())
        self.floating = next((dtype for dtype in dtypes if dtype.is_floating_point), None)
        self.arguments = [
            Parameter(each.name, Parameter.POSITIONAL_OR_KEYWORD, default=None if optional else Parameter.empty)
            for each in self.module.forward.schema.arguments[1:]
            for optional in [each.has_default_value()]
            if "Tensor" in str(each.type) or not optional
        ]
        self.inputs = in_order(self.inputs, [each.name for each in self.arguments])
        needed = [each.name for each in self.arguments if each.default is Parameter.empty]
        if self.inputs and not len(needed) <= len(self.inputs) <= len(self.arguments):
            raise ConfigurationError(
                f"{self.path.name} takes {', '.join(each.name for each in self.arguments)}, and its configuration declares"
                f" {len(self.inputs)} inputs"
            )

    def load(self) -> None:
        self.module = self.module.to(self.device)

    def predict(self, *tensors: Any) -> Any:
        try:
            return super().predict(*tensors)
        except torch.jit.Error as error:  # many lines, with paths of the machine on which the file was made
            raise RuntimeError(words_of(str(error).rstrip().rpartition("\n")[2])) from error

    def binding(self) -> Bind:
        if self.inputs:
            return super().binding()
        bind = binding_of(_Signed(Signature(self.arguments)), declared_of(()), calls_predict=False)

        def bind_numbers(given: list[NamedArray]) -> Sequence[Any]:
            for name, datatype, _ in given:
                if datatype == "BYTES":
                    raise InvalidInput(f"input {name!r}: expected numbers, got BYTES")
            return bind(given)

        return bind_numbers

    def to_tensor(self, array: NDArray[Any]) -> Any:
        tensor = super().to_tensor(array)
        return tensor.to(self.floating) if self.floating and array.dtype.kind == "f" else tensor


class _Signed:
    """A function of a signature, which is never called."""

    def __init__(self, signature: Signature) -> None:
        self.__signature__ = signature

    def __call__(self) -> None:
        raise NotImplementedError


class ExportedModel(FileModel):
    """Serves a ``torch.export`` archive (.pt2), made by ``torch.export.save``, with the inputs that it declares."""

    platform = "pytorch_export"

    def read(self) -> None:
        self.program = torch.export.load(str(self.path))
        self.inputs = self._inputs_as(self.inputs)
        self.module = self.program.module()

    def _inputs_as(self, declared: Sequence[Tensor]) -> Sequence[Tensor]:
        own = declared_inputs(self.program)
        ordered = in_order(declared, [tensor.name for tensor in own])
        if not own or not ordered:
            return own or ordered
        if len(own) != len(ordered):
            raise ConfigurationError(
                f"{self.path.name} takes {', '.join(tensor.name for tensor in own)}, and its configuration declares"
                f" {len(ordered)} inputs"
            )
        return [narrowed(self.path.name, *pair) for pair in zip(own, ordered, strict=True)]

    def load(self) -> None:
        if self.device != "cpu":
            # Module.to would leave the tensors that the graph itself makes on the CPU.
            from torch.export.passes import move_to_device_pass

            self.module = move_to_device_pass(self.program, self.device).module()

    def predict(self, *tensors: Any) -> Any:
        try:
            return super().predict(*tensors)
        except AssertionError as error:
            if not str(error).startswith(GUARD):
                raise
            raise InvalidInput(f"the model refused the input: {error}") from None


def declared_inputs(program: torch.export.ExportedProgram) -> tuple[Tensor, ...]:
    """An archive's inputs, with -1 for dynamic dimensions; none if an input is no tensor, or has no V2 datatype."""
    values = {node.name: node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder"}
    inputs: list[Tensor] = []
    for name in program.graph_signature.user_inputs:
        value = values.get(name) if isinstance(name, str) else None
        if not isinstance(value, torch.Tensor) or value.dtype not in DATATYPES:
            return ()
        shape = [size if isinstance(size, int) else -1 for size in value.shape]
        inputs.append(Tensor(str(name), DATATYPES[value.dtype], shape))
    return tuple(inputs)
