"""``Tensor``, a declared input or output of a model: name, datatype and shape. Knows no model."""

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

KNOWN = 4096  # pairs of shapes that are remembered. Clients may send as many shapes as they like


class Tensor(NamedTuple):
    """A declared input or output: V2 name, datatype and shape; -1 stands for any size."""

    name: str
    datatype: str
    shape: Sequence[int]

    def fits(self, shape: Sequence[int]) -> bool:
        return allows(tuple(self.shape), tuple(shape))

    def describe(self) -> dict[str, Any]:
        return {"name": self.name, "datatype": self.datatype, "shape": list(self.shape)}


def declared_of(tensors: Iterable[Tensor]) -> tuple[Tensor, ...]:
    """The tensors, with shapes that ``allows`` takes."""
    return tuple(Tensor(name, datatype, tuple(shape)) for name, datatype, shape in tensors)


@lru_cache(KNOWN)
def allows(declared: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    if len(declared) != len(shape):
        return False
    return all(want in (got, -1) for want, got in zip(declared, shape, strict=True))
