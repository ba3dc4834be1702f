"""Texts and other bytes that go in, and documents that come out: what runtimes of texts and images share.

A document is an element of BYTES that is JSON. V1 clients get the value, V2 clients the text.
"""

from collections.abc import Sequence
from typing import Any

import orjson

from mpserve.errors import InvalidInput
from mpserve.protocol.datatypes import Array, Document, array_of_objects
from mpserve.protocol.declaration import Tensor
from mpserve.protocol.tensors import NamedArray
from mpserve.serving.fitting.table import texts_in
from mpserve.serving.models.model import Spec


def documents(values: Sequence[Any]) -> Array:
    """A document for each value, which JSON can carry."""
    return array_of_objects([Document(orjson.dumps(value)) for value in values])


def described(name: str) -> Spec:
    """The metadata of an output of documents."""
    return {"name": name, "datatype": "BYTES", "shape": [-1], "parameters": {"content_type": "json"}}


def only_bytes(tensor: Tensor, given: list[NamedArray]) -> list[Array]:
    """The rows of the only input, of one element each, whatever its name. Raises InvalidInput if they are not as declared."""
    if len(given) != 1:
        raise InvalidInput(f"expected one input, {tensor.name!r}, got {len(given)}")
    name, datatype, array = given[0]
    if datatype != "BYTES":
        raise InvalidInput(f"input {name!r}: expected {'text, ' * bool(tensor.content_type)}BYTES, got {datatype}")
    if array.ndim == 0 or array.size != array.shape[0]:
        raise InvalidInput(f"input {name!r}: expected shape [-1] or [-1, 1], got {list(array.shape)}")
    return [texts_in(name, array.reshape(-1)) if tensor.content_type else array.reshape(-1)]
