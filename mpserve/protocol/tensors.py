"""The tensors of a message: ``InferInput``, ``InferOutput`` and ``RequestedOutput``, as the kserve SDK has them.

They hold values and know no wire format.

Source: the kserve SDK's protocol/infer_type.py (the interface only).
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from mpserve.errors import InferenceError, InvalidInput, MPServeError
from mpserve.protocol.array_likes import to_numpy
from mpserve.protocol.datatypes import FIXED, Array, cast, datatype_of, decode_text, not_utf8

Parameters = dict[str, Any]
NamedArray = tuple[str, str, Array]
"""A tensor without parameters: its name, its datatype and its array. A tuple costs a fifth of an ``InferInput``."""

REGION = "shared_memory_region"
"""The parameter of a tensor that names the shared memory of its data (Triton, ``extension_shared_memory.md``)."""


class Record:
    """Equality and repr by the public attributes; repr omits attributes that are None or False."""

    __hash__ = None  # type: ignore[assignment]  # mutable, so no key of a dict

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Record) or type(other) is not type(self):
            return NotImplemented
        return self._state() == other._state()

    def __repr__(self) -> str:
        public = self._public().items()
        shown = (f"{name}={value!r}" for name, value in public if value is not None and value is not False)
        return f"{type(self).__name__}({', '.join(shown)})"

    def _public(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name[0] != "_"}

    def _state(self) -> dict[str, Any]:
        return self._public()


class _Tensor(Record):
    """A named tensor with a list or a numpy array of data. Messages call it `role`; wrong data raises `fault`."""

    role: ClassVar[str]
    fault: ClassVar[type[MPServeError]]
    _data: list[Any] | Array | None
    _bytes_as_text = True
    _missing: Array | None = None  # the data, if its missing values keep it from being of the datatype

    def __init__(
        self, name: str, shape: Sequence[int], datatype: str, data: Any = None, parameters: Parameters | None = None
    ) -> None:
        """`data`: a flat or nested list, or an array; None if ``set_data_from_numpy`` follows."""
        self.name = name
        self.shape = list(shape)
        self.datatype = datatype if datatype in FIXED else datatype.upper()
        self.parameters = parameters
        self._data = data if type(data) is np.ndarray else self._held(data)
        self._binary_data = False

    @property
    def data(self) -> list[Any] | None:
        """The elements as a list: flat and row-major if the tensor was an array, else the list that was given.

        BYTES that are UTF-8 are given as ``str``, in a message from gRPC as ``bytes`` (SDK). From then on
        the list is the tensor, so changes to it count; use ``as_numpy`` where speed matters.
        """
        if isinstance(self._data, np.ndarray):
            self._data = self._elements()
        return self._data

    @data.setter
    def data(self, data: Any) -> None:
        self._data = self._held(data)
        self._binary_data = False

    def _held(self, data: Any) -> list[Any] | Array | None:
        if data is None or isinstance(data, list):
            return data
        try:
            return to_numpy(data)
        except InvalidInput as error:
            raise self.fault(f"{self.role} '{self.name}': {error}") from error

    @property
    def binary_data(self) -> bool:
        """Whether ``InferRequest.to_rest`` sends the tensor as bytes: as ``set_data_from_numpy`` was last told."""
        return self._binary_data

    @property
    def in_shared_memory(self) -> bool:
        """Whether its data is not here, but where its parameters say."""
        return self._data is None and REGION in (self.parameters or ())

    def as_numpy(self) -> Array:
        """The tensor as an array of its shape and datatype; BYTES is an object array of ``bytes``.

        Nothing is copied where the tensor is such an array already, so it is shared with the message.
        Raises InvalidInput (of an input) or InferenceError (of an output) if the data does not fit shape or datatype.
        """
        data = self._data
        if isinstance(data, np.ndarray) and data.dtype is FIXED.get(self.datatype) and list(data.shape) == self.shape:
            return data
        if data is None:
            raise self.fault(f"{self.role} '{self.name}' has no data")
        if data is self._missing and isinstance(data, np.ndarray):
            return data
        try:
            if isinstance(data, np.ndarray):  # masked, perhaps
                return cast(to_numpy(data), self.datatype).reshape(self.shape)
            # Objects, since numpy's own text and bytes types cut trailing zeros off.
            dtype = object if self.datatype == "BYTES" else None
            return cast(np.asarray(data, dtype=dtype), self.datatype).reshape(self.shape)
        except (InvalidInput, ValueError, TypeError, OverflowError) as error:
            raise self.fault(f"{self.role} '{self.name}': {error}") from error

    def missing_text(self) -> MPServeError:
        """The error for a BYTES tensor that lacks a text, where there is no null."""
        return self.fault(f"{self.role} '{self.name}' holds a missing text, which only JSON can carry, as null")

    def as_string(self) -> list[Any]:
        """The text of a BYTES tensor, nested as its shape: a 1-D one gives a list of ``str``, a 2-D one a list of rows.
        Raises InvalidInput (of an input) or InferenceError (of an output): not a BYTES tensor, or not UTF-8.
        """
        if self.datatype != "BYTES":
            raise self.fault(f"{self.role} '{self.name}' is {self.datatype}, only BYTES can be read as text")
        try:
            return list(decode_text(self.as_numpy(), or_none=True).tolist())
        except UnicodeDecodeError as error:
            raise self.fault(f"{self.role} '{self.name}' {not_utf8(error)}") from error

    def set_data_from_numpy(self, input_tensor: Array, binary_data: bool = True) -> None:
        """Make the array the tensor's data; it is not copied, unless it is text to be encoded or of another byte order.

        `binary_data` says how an input is sent (``InferRequest.to_rest``); how an output is sent, the request says.
        Raises InferenceError: no array, or not of the declared datatype and shape.
        """
        if not isinstance(input_tensor, np.ndarray):
            raise InferenceError(
                f"{self.role} '{self.name}': got {type(input_tensor).__name__}, expected a numpy array"
            )
        try:
            datatype = datatype_of(input_tensor.dtype)
            if datatype != self.datatype:
                raise InvalidInput(f"got datatype {datatype} from the numpy array, expected {self.datatype}")
            if list(input_tensor.shape) != list(self.shape):
                raise InvalidInput(
                    f"got a numpy array of shape {list(input_tensor.shape)}, expected {list(self.shape)}"
                )
            self._data = cast(np.asarray(input_tensor), datatype)
            self._binary_data = binary_data
        except InvalidInput as error:
            raise InferenceError(f"{self.role} '{self.name}': {error}") from None

    def keep_missing(self) -> None:
        """Take the array that is the data as it is: NaN among integers, and None among text, are missing values."""
        if isinstance(self._data, np.ndarray):
            self._missing = self._data

    def to_dict(self) -> dict[str, Any]:
        """Name, shape, datatype, data (as ``data`` gives it) and parameters."""
        return {
            "name": self.name,
            "shape": self.shape,
            "datatype": self.datatype,
            "data": self._elements(),
            "parameters": self.parameters,
        }

    def _state(self) -> dict[str, Any]:
        # List or array, nested or flat: the same values are the same tensor.
        return self._public() | {"data": None if self._data is None else self.as_numpy().tolist()}

    def _elements(self) -> list[Any] | None:
        if not isinstance(self._data, np.ndarray):
            return self._data
        array = self._data.ravel()
        if self.datatype == "BYTES" and self._data is not self._missing:
            array = cast(array, "BYTES")
            if not self._bytes_as_text:
                return list(array)
            try:
                array = decode_text(array, or_none=True)
            except UnicodeDecodeError:
                return list(array)
        return list(array.tolist())


def leave_bytes(tensors: Sequence[_Tensor]) -> None:
    """Let ``data`` give BYTES as ``bytes``: gRPC carries bytes, which JSON does not have."""
    for tensor in tensors:
        tensor._bytes_as_text = False


class InferInput(_Tensor):
    """An input tensor of a request."""

    role = "input"
    fault = InvalidInput


class InferOutput(_Tensor):
    """An output tensor of a response."""

    role = "output"
    fault = InferenceError


class RequestedOutput(Record):
    """An output that a request asks for."""

    def __init__(self, name: str, parameters: Parameters | None = None) -> None:
        self.name = name
        self.parameters = parameters

    @property
    def binary_data(self) -> bool | None:
        """Whether it is asked for as bytes; None where the request as a whole decides (``use_binary_outputs``)."""
        return (self.parameters or {}).get("binary_data")
