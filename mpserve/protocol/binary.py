"""Tensors as plain bytes: little-endian and row-major, as the binary tensor data extension and gRPC's raw contents have them.

A decoded tensor is a view on the body, and an encoded tensor is the array's own buffer, where that is possible. So a body must
not change while its tensors live, nor an array before its buffer has been sent. Knows neither messages nor HTTP.

Source: Triton's docs/protocol/extension_binary_data.md.
"""

from collections.abc import Sequence
from math import prod
from struct import Struct
from typing import Any

import numpy as np

from mpserve.errors import InvalidInput
from mpserve.protocol.datatypes import Array, cast, numpy_dtype
from mpserve.protocol.declaration import Tensor
from mpserve.protocol.json.documents import MAX_SHOWN, show
from mpserve.protocol.json.elements import check_shape, show_shape

Buffer = bytes | memoryview
HEADER = "Inference-Header-Content-Length"
_LENGTH = Struct("<I")  # before each element of BYTES


def decode_tensor(buffer: Buffer, datatype: str, shape: Sequence[int], what: str) -> Array:
    """The array of that datatype and shape in `buffer`: a read-only view if `buffer` is ``bytes``.
    The view need not be aligned. BYTES cannot be a view, and is an object array of ``bytes``. `what` names the tensor in
    messages: "input 'x'".
    Raises InvalidInput: an invalid datatype or shape, a wrong number of bytes, a BOOL that is neither 0 nor 1, or a wrong
    length inside BYTES.
    """
    try:
        return decode_buffer(buffer, datatype, shape)
    except InvalidInput as error:
        raise InvalidInput(f"{what}: {error}") from None


def decode_buffer(buffer: Buffer, datatype: str, shape: Sequence[int]) -> Array:
    """As ``decode_tensor``, for callers that name the tensor in messages themselves."""
    check_shape(shape)
    dtype = numpy_dtype(datatype)
    if dtype.kind == "O":
        return _bytes_array(buffer, shape)
    expected = prod(shape) * dtype.itemsize
    if len(buffer) != expected:
        raise InvalidInput(f"expected {expected} bytes for {datatype} of shape {show_shape(shape)}, got {len(buffer)}")
    if dtype.kind == "b" and expected:
        values = np.frombuffer(buffer, np.uint8)
        if int(values.max()) > 1:
            index = int((values > 1).argmax())
            raise InvalidInput(f"element {index} is the byte {values[index]}, expected 0 or 1 for BOOL")
    return np.frombuffer(buffer, dtype.newbyteorder("<")).reshape(shape)


def encode_tensor(array: Array, datatype: str) -> Buffer:
    """The tensor's bytes: the array's own buffer, if it is contiguous and little-endian and of that datatype already.
    Raises InvalidInput if the elements cannot be taken as `datatype`.
    """
    array = cast(array, datatype)
    if array.dtype.kind == "O":
        elements = array.ravel().tolist()
        return b"".join([part for item in elements for part in (_LENGTH.pack(len(item)), item)])
    array = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    # As bytes, since bfloat16 is unknown to Python's buffer protocol.
    return array.reshape(-1).view(np.uint8).data


def split_elements(buffer: Buffer, most: int | None = None) -> list[bytes]:
    """The elements of a BYTES tensor, at most `most`; the length of each element stands before the element.
    Raises InvalidInput if a length reaches beyond the buffer.
    """
    elements: list[bytes] = []
    view, offset, end = memoryview(buffer), 0, len(buffer)
    while offset < end and len(elements) != most:
        start = offset + _LENGTH.size
        offset = start + _LENGTH.unpack_from(view, offset)[0] if start <= end else start
        if offset > end:
            raise InvalidInput(f"element {len(elements)} reaches beyond the {end} bytes of the tensor")
        elements.append(bytes(view[start:offset]))
    return elements


def split(body: Buffer, header_length: str) -> tuple[memoryview, memoryview]:
    """The JSON of a body and the bytes after it, divided at the header Inference-Header-Content-Length.
    Raises InvalidInput if the header is not made of decimal digits alone, or is larger than the body.
    """
    if not (header_length.isascii() and header_length.isdigit()):
        raise InvalidInput(f"{HEADER} is '{header_length[:MAX_SHOWN]}', expected decimal digits")
    # Python refuses to convert thousands of digits, and a body of 10**19 bytes there is not.
    significant = header_length.lstrip("0")
    if len(significant) > len(str(len(body))) or int(significant or "0") > len(body):
        raise InvalidInput(
            f"{HEADER} is {significant[:MAX_SHOWN]}, expected at most the {len(body)} bytes of the uncompressed body"
        )
    view, length = memoryview(body), int(significant or "0")
    return view[:length], view[length:]


class Rest:
    """The bytes after the JSON, taken tensor by tensor, in the order of the JSON."""

    def __init__(self, buffer: Buffer) -> None:
        self._left = memoryview(buffer)

    def take(self, size: Any) -> memoryview:
        """The next `size` bytes; `size` is a binary_data_size. Raises InvalidInput for an invalid size, or too few bytes."""
        if type(size) is not int or size < 0:
            raise InvalidInput(f"binary_data_size is {show(size)}, expected a number of bytes")
        if size > len(self._left):
            raise InvalidInput(f"binary_data_size is {size}, but only {len(self._left)} bytes are left of the body")
        taken, self._left = self._left[:size], self._left[size:]
        return taken

    def finish(self) -> None:
        """Refuse bytes that no tensor has taken. Raises InvalidInput if there are some."""
        if self._left:
            raise InvalidInput(
                f"{len(self._left)} bytes at the body's end belong to no tensor, expected each binary tensor to have"
                " its binary_data_size among its parameters"
            )


def decode_raw(body: bytes, declared: Sequence[Tensor]) -> tuple[str, str, Array]:
    """Name, datatype and array of a model's only input, whose bytes are the whole body.
    `declared` are the model's inputs. The length of the body decides a size of -1. A body of BYTES
    is the only element, without its length, as in Triton.
    Raises InvalidInput if the declaration is ambiguous, or the body does not fit the declaration.
    """
    if len(declared) != 1:
        raise InvalidInput(f"{HEADER} is 0: a body without JSON needs a model with 1 input, it has {len(declared)}")
    name, datatype, declared_shape, *_ = declared[0]
    what, shape = f"input '{name}'", list(declared_shape)
    if datatype == "BYTES":
        if not set(shape) <= {1, -1}:
            raise InvalidInput(f"{what}: a body without JSON is one element of BYTES, expected {show_shape(shape)}")
        return name, datatype, np.array([bytes(body)], dtype=object).reshape([1] * len(shape))
    if shape.count(-1) > 1:
        raise InvalidInput(f"{what}: a body without JSON cannot tell the sizes -1 in {show_shape(shape)} apart")
    if -1 in shape:
        row = numpy_dtype(datatype).itemsize * prod(size for size in shape if size != -1)
        if row == 0 or len(body) % row:
            raise InvalidInput(
                f"{what}: expected a multiple of {row} bytes for {datatype} of shape {show_shape(shape)},"
                f" got {len(body)}"
            )
        shape[shape.index(-1)] = len(body) // row
    return name, datatype, decode_tensor(body, datatype, shape, what)


def _bytes_array(buffer: Buffer, shape: Sequence[int]) -> Array:
    count = prod(shape)
    # One element more is enough to know: a body of zeros would hold a quarter of its bytes as elements.
    elements = split_elements(buffer, count + 1)
    if len(elements) != count:
        got = "more" if len(elements) > count else len(elements)
        raise InvalidInput(
            f"expected {count} elements for BYTES of shape {show_shape(shape)}, got {got} in {len(buffer)} bytes"
        )
    # Filled, not made from the list: numpy would look into the elements.
    array = np.empty(count, dtype=object)
    array[:] = elements
    return array.reshape(shape)
