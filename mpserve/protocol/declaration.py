"""What a model declares of its inputs and outputs: ``Tensor``, one name, datatype and shape. Knows no model."""

from collections.abc import Sequence
from typing import Any, NamedTuple


class Tensor(NamedTuple):
    """A declared input or output: V2 name, datatype and shape; -1 stands for any size."""

    name: str
    datatype: str
    shape: Sequence[int]

    def fits(self, shape: Sequence[int]) -> bool:
        """Whether the declaration allows ``shape``."""
        for want, got in zip(self.shape, shape, strict=False):
            if want not in (got, -1):
                return False
        return len(shape) == len(self.shape)

    def describe(self) -> dict[str, Any]:
        """Name, datatype and shape, as the V2 metadata of a model has them."""
        return {"name": self.name, "datatype": self.datatype, "shape": list(self.shape)}
