"""Texts and other bytes that go in, and documents that come out: what runtimes of texts and images share.

A document is an element of BYTES that is JSON. V1 clients get the value, V2 clients the text.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import orjson

from mpserve.errors import InvalidInput
from mpserve.protocol.datatypes import Array, Document
from mpserve.protocol.declaration import Tensor
from mpserve.protocol.tensors import NamedArray
from mpserve.serving.fitting.table import text_of


def documents(values: Sequence[Any]) -> Array:
    """A document for each value, which JSON can carry."""
    column = np.empty(len(values), dtype=object)
    column[:] = [Document(orjson.dumps(value)) for value in values]
    return column


def only_bytes(tensor: Tensor, given: list[NamedArray]) -> list[Array]:
    """The rows of the only input, of one element each, whatever its name. Raises InvalidInput if they are not as declared."""
    if len(given) != 1:
        raise InvalidInput(f"expected one input, {tensor.name!r}, got {len(given)}")
    name, datatype, array = given[0]
    if datatype != "BYTES":
        raise InvalidInput(f"input {name!r}: expected {'text, ' * bool(tensor.content_type)}BYTES, got {datatype}")
    if array.ndim == 0 or array.size != array.shape[0]:
        raise InvalidInput(f"input {name!r}: expected shape [-1] or [-1, 1], got {list(array.shape)}")
    return [text_of(name, array.reshape(-1)) if tensor.content_type else array.reshape(-1)]
