"""Inputs as a file declares them, beside those that its configuration (Triton's ``config.pbtxt``) declares."""

import re
from collections.abc import Sequence

from mpserve.errors import ConfigurationError
from mpserve.protocol.declaration import Tensor

_PLACED = re.compile(r".*__([0-9]{1,9})")  # Triton's names for what has a place and no name, such as INPUT__0


def place_of(name: str) -> int | None:
    """The place that a name says, counted from 0."""
    found = _PLACED.fullmatch(name)
    return int(found[1]) if found else None


def in_order(declared: Sequence[Tensor], names: Sequence[str]) -> list[Tensor]:
    """The declared tensors in the order of the arguments of these names: by name, else by the places that they say, else as
    they are (Triton's rules for torch).
    """
    if {tensor.name for tensor in declared} <= set(names):
        return sorted(declared, key=lambda tensor: list(names).index(tensor.name))
    places = [place_of(tensor.name) for tensor in declared]
    if None in places:
        return list(declared)
    return [tensor for _, tensor in sorted(zip(places, declared, strict=True), key=lambda pair: pair[0] or 0)]


def narrowed(file: str, own: Tensor, declared: Tensor) -> Tensor:
    """The input of a file, under the name and with the sizes that its configuration gives to it.
    Raises ConfigurationError if they contradict each other.
    """
    fits = len(own.shape) == len(declared.shape) and all(
        size == wanted or -1 in (size, wanted) for size, wanted in zip(own.shape, declared.shape, strict=False)
    )
    if own.datatype != declared.datatype or not fits:
        raise ConfigurationError(
            f"{file}: input {own.name!r} is {own.datatype} {list(own.shape)}, and its configuration declares"
            f" {declared.name!r} as {declared.datatype} {list(declared.shape)}"
        )
    sizes = [wanted if size == -1 else size for size, wanted in zip(own.shape, declared.shape, strict=True)]
    return own._replace(name=declared.name, shape=sizes)
