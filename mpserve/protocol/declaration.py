"""``Tensor``, a declared input or output of a model: name, datatype and shape. Knows no model."""

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

KNOWN = 4096  # pairs of shapes that are remembered. Clients may send as many shapes as they like
TEXT = "str"


class Tensor(NamedTuple):
    """A declared input or output: V2 name, datatype and shape; -1 stands for any size.

    Attributes:
        content_type: ``"str"`` for BYTES that are UTF-8 text, which the model gets as ``str`` (MLServer's word); else None.
        nullable: whether an input may have missing values: null in JSON is NaN among numbers, and None among text.
    """

    name: str
    datatype: str
    shape: Sequence[int]
    content_type: str | None = None
    nullable: bool = False

    def fits(self, shape: Sequence[int]) -> bool:
        return allows(tuple(self.shape), tuple(shape))

    def describe(self) -> dict[str, Any]:
        described: dict[str, Any] = {"name": self.name, "datatype": self.datatype, "shape": list(self.shape)}
        if self.content_type is not None:
            described["parameters"] = {"content_type": self.content_type}
        return described


class Declared(tuple[Tensor, ...]):
    """The declared inputs of a model, as a codec needs them; the shapes are tuples that ``allows`` takes.

    Attributes:
        takes_null: whether every input may have missing values, a declared input or any other.
        nullable: the names of the declared inputs that may.
        by_column: whether the model makes a table of undeclared inputs, in which each column keeps its own datatype.
    """

    takes_null: bool = False
    by_column: bool = False
    nullable: frozenset[str] = frozenset()


def declared_of(tensors: Iterable[Tensor], takes_null: bool = False, by_column: bool = False) -> Declared:
    declared = Declared(tensor._replace(shape=tuple(tensor.shape)) for tensor in map(_whole, tensors))
    declared.takes_null = takes_null
    declared.by_column = by_column and not declared
    declared.nullable = frozenset(tensor.name for tensor in declared if tensor.nullable)
    return declared


def nullable(declared: Sequence[Tensor], name: str) -> bool:
    """Whether the input of that name may have missing values."""
    if not isinstance(declared, Declared):  # of a client's message
        return False
    return declared.takes_null or name in declared.nullable


def _whole(tensor: Tensor | tuple[Any, ...]) -> Tensor:
    return tensor if isinstance(tensor, Tensor) else Tensor(*tensor)


@lru_cache(KNOWN)
def allows(declared: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    if len(declared) != len(shape):
        return False
    return all(want in (got, -1) for want, got in zip(declared, shape, strict=True))
