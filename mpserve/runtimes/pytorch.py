"""Models in torch: a base class for one's own, and the two kinds of file that torch makes.

The only module that imports torch; it is imported only when a model needs it.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mpserve.serving.tensors import TensorModel


class TorchModel(TensorModel):
    """A ``TensorModel`` whose ``predict`` takes and returns torch tensors.

    The inputs are on ``self.device`` already, and ``predict`` runs under ``torch.inference_mode()``. Keep the weights on the CPU in
    ``preload()``, where all workers share them, and move them with ``.to(self.device)`` in ``load()``; on a CPU that copies nothing.
    """

    platform = "pytorch"

    def invoke(self, arrays: Sequence[NDArray[Any]]) -> Any:
        with torch.inference_mode():
            return self.predict(*(self.to_tensor(array) for array in arrays))

    def to_tensor(self, array: NDArray[Any]) -> Any:
        """The array as a tensor on ``self.device``; arrays of bytes, which torch does not know, stay as they are."""
        if array.dtype == np.object_:
            return array
        # from_numpy shares memory, and warns when a read-only array could thus be written to.
        return torch.from_numpy(array if array.flags.writeable else array.copy()).to(self.device)


class TorchScriptModel(TorchModel):
    """Serves a TorchScript file, made by ``torch.jit.save``."""

    platform = "pytorch_torchscript"

    def __init__(self, name: str, path: Path) -> None:
        super().__init__(name)
        self.path = path

    def preload(self) -> None:
        self.module: Any = torch.jit.load(str(self.path), map_location="cpu").eval()

    def load(self) -> None:
        self.module = self.module.to(self.device)

    def predict(self, *tensors: Any) -> Any:
        return self.module(*tensors)


class ExportedModel(TorchModel):
    """Serves a ``torch.export`` archive (.pt2), made by ``torch.export.save``."""

    platform = "pytorch_export"

    def __init__(self, name: str, path: Path) -> None:
        super().__init__(name)
        self.path = path

    def preload(self) -> None:
        self.module: Any = torch.export.load(str(self.path)).module()

    def load(self) -> None:
        self.module = self.module.to(self.device)

    def predict(self, *tensors: Any) -> Any:
        return self.module(*tensors)
