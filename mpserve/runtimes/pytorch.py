"""Models in torch: a base class, and the two kinds of file that torch writes.

The only module that imports torch; it is imported only when a model needs it.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mpserve.protocol.declaration import Tensor
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
    """The base of both kinds of file: ``module`` is called with the inputs in their order."""

    module: Any

    def __init__(self, name: str, path: Path) -> None:
        super().__init__(name)
        self.path = path

    def predict(self, *tensors: Any) -> Any:
        result = self.module(*tensors)
        return tuple(result) if isinstance(result, list) else result  # a list of outputs, not one output to stack


class TorchScriptModel(FileModel):
    """Serves a TorchScript file, made by ``torch.jit.save``.

    The file does not say what its inputs are. JSON numbers have no width, so floating inputs are taken in the width of
    the network's own parameters.
    """

    platform = "pytorch_torchscript"
    floating: torch.dtype | None = None

    def preload(self) -> None:
        self.module = torch.jit.load(str(self.path), map_location="cpu").eval()
        dtypes = (parameter.dtype for parameter in self.module.parameters())
        self.floating = next((dtype for dtype in dtypes if dtype.is_floating_point), None)

    def load(self) -> None:
        self.module = self.module.to(self.device)

    def to_tensor(self, array: NDArray[Any]) -> Any:
        tensor = super().to_tensor(array)
        return tensor.to(self.floating) if self.floating and array.dtype.kind == "f" else tensor


class ExportedModel(FileModel):
    """Serves a ``torch.export`` archive (.pt2), made by ``torch.export.save``, with the inputs that it declares."""

    platform = "pytorch_export"

    def preload(self) -> None:
        self.program = torch.export.load(str(self.path))
        self.inputs = declared_inputs(self.program)
        self.module = self.program.module()

    def load(self) -> None:
        if self.device != "cpu":
            # Module.to would leave the tensors that the graph itself makes on the CPU.
            from torch.export.passes import move_to_device_pass

            self.module = move_to_device_pass(self.program, self.device).module()


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
