"""The messages that every protocol is decoded to and encoded from, with the names and signatures of the kserve SDK.

They hold tensors and know no wire format: what may stand in a request is the decoders' affair, how a response is
written the encoders'.

Source: the kserve SDK's protocol/infer_type.py (the interface only).
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from mpserve.errors import InferenceError, InvalidInput, MPServeError
from mpserve.protocol.datatypes import Array, cast, datatype_of, decode_text

Parameters = dict[str, Any]


class _Record:
    """Equality by all attributes, repr by those that are set and public."""

    __hash__ = None  # type: ignore[assignment]  # mutable, so no key of a dict

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _Record) or type(other) is not type(self):
            return NotImplemented
        return self._state() == other._state()

    def __repr__(self) -> str:
        shown = {name: value for name, value in vars(self).items() if value is not None and name[0] != "_"}
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in shown.items())})"

    def _state(self) -> dict[str, Any]:
        return vars(self)


class _Tensor(_Record):
    """A named tensor, held either as a list or as a numpy array, whichever it was given as last."""

    _role: ClassVar[str]
    _fault: ClassVar[type[MPServeError]]
    _data: list[Any] | Array | None

    def __init__(
        self,
        name: str,
        shape: Sequence[int],
        datatype: str,
        data: Any = None,
        parameters: Parameters | None = None,
    ) -> None:
        """`data`: a flat or nested list, or an array; None if ``set_data_from_numpy`` follows."""
        self.name = name
        self.shape = list(shape)
        self.datatype = datatype.upper()
        self.parameters = parameters
        self.data = data

    @property
    def data(self) -> list[Any] | None:
        """The elements as a list: flat and row-major if the tensor was an array, else the list that was given.

        BYTES that are UTF-8 are given as ``str``. From then on the list is the tensor, so changes to it count; use
        ``as_numpy`` where speed matters.
        """
        if isinstance(self._data, np.ndarray):
            self._data = self._elements()
        return self._data

    @data.setter
    def data(self, data: Any) -> None:
        self._data = data if data is None or isinstance(data, list) else np.asarray(data)

    def as_numpy(self) -> Array:
        """The tensor as an array of its shape and datatype; BYTES is an object array of ``bytes``.

        Nothing is copied where the tensor is such an array already, so it is shared with the message.

        Raises:
            InvalidInput (of an input) or InferenceError (of an output): the data does not fit shape or datatype.
        """
        if self._data is None:
            raise self._fault(f"{self._role} '{self.name}' has no data")
        try:
            # Objects, since numpy's own text and bytes types cut trailing zeros off.
            dtype = object if isinstance(self._data, list) and self.datatype == "BYTES" else None
            return cast(np.asarray(self._data, dtype=dtype), self.datatype).reshape(self.shape)
        except (InvalidInput, ValueError, TypeError, OverflowError) as error:
            raise self._fault(f"{self._role} '{self.name}': {error}") from error

    def as_string(self) -> list[Any]:
        """The text of a BYTES tensor, nested as its shape: a 1-D one gives a list of ``str``, a 2-D one a list of rows.

        Raises:
            InvalidInput (of an input) or InferenceError (of an output): not a BYTES tensor, or not UTF-8.
        """
        if self.datatype != "BYTES":
            raise self._fault(f"{self._role} '{self.name}' is {self.datatype}, only BYTES can be read as text")
        try:
            return list(decode_text(self.as_numpy()).tolist())
        except UnicodeDecodeError as error:
            raise self._fault(f"{self._role} '{self.name}' holds bytes that are not UTF-8 ({error})") from error

    def set_data_from_numpy(self, input_tensor: Array, binary_data: bool = True) -> None:
        """Make the array the tensor's data; it is not copied, unless it is text to be encoded or of another byte order.

        `binary_data` is taken for the SDK's sake only: here the request says how a tensor travels.

        Raises:
            InferenceError: no array, or not of the declared datatype and shape.
        """
        if not isinstance(input_tensor, np.ndarray):
            raise InferenceError(
                f"{self._role} '{self.name}': got {type(input_tensor).__name__}, expected a numpy array"
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
        except InvalidInput as error:
            raise InferenceError(f"{self._role} '{self.name}': {error}") from None

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
        return vars(self) | {"_data": None if self._data is None else self.as_numpy().tolist()}

    def _elements(self) -> list[Any] | None:
        if not isinstance(self._data, np.ndarray):
            return self._data
        array = self._data.ravel()
        if self.datatype == "BYTES":
            array = cast(array, "BYTES")
            try:
                array = decode_text(array)
            except UnicodeDecodeError:
                return list(array)
        return list(array.tolist())


class InferInput(_Tensor):
    """An input tensor of a request."""

    _role = "input"
    _fault = InvalidInput


class InferOutput(_Tensor):
    """An output tensor of a response."""

    _role = "output"
    _fault = InferenceError


class RequestedOutput(_Record):
    """An output that a request asks for."""

    def __init__(self, name: str, parameters: Parameters | None = None) -> None:
        self.name = name
        self.parameters = parameters


class InferRequest(_Record):
    """One inference request: what a V2 model's ``predict`` is handed. `request_outputs` empty means all outputs."""

    def __init__(
        self,
        model_name: str,
        infer_inputs: list[InferInput],
        request_id: str | None = None,
        *,
        parameters: Parameters | None = None,
        request_outputs: list[RequestedOutput] | None = None,
        model_version: str | None = None,
    ) -> None:
        self.id = request_id
        self.model_name = model_name
        self.model_version = model_version
        self.inputs = infer_inputs
        self.parameters = parameters
        self.request_outputs = request_outputs or []

    def get_input_by_name(self, name: str) -> InferInput | None:
        """The input of that name, or None."""
        return next((tensor for tensor in self.inputs if tensor.name == name), None)

    def to_dict(self) -> dict[str, Any]:
        """Id, model name, inputs and parameters as plain values."""
        inputs = [tensor.to_dict() for tensor in self.inputs]
        return {"id": self.id, "model_name": self.model_name, "inputs": inputs, "parameters": self.parameters}


class InferResponse(_Record):
    """The answer to one inference request."""

    def __init__(
        self,
        response_id: str | None,
        model_name: str,
        infer_outputs: list[InferOutput],
        model_version: str | None = None,
        *,
        parameters: Parameters | None = None,
        requested_outputs: list[RequestedOutput] | None = None,
    ) -> None:
        self.id = response_id
        self.model_name = model_name
        self.model_version = model_version
        self.outputs = infer_outputs
        self.parameters = parameters
        self.requested_outputs = requested_outputs or []

    def get_output_by_name(self, name: str) -> InferOutput | None:
        """The output of that name, or None."""
        return next((tensor for tensor in self.outputs if tensor.name == name), None)

    def to_dict(self) -> dict[str, Any]:
        """Id, model name, outputs and parameters as plain values."""
        outputs = [tensor.to_dict() for tensor in self.outputs]
        return {"id": self.id, "model_name": self.model_name, "outputs": outputs, "parameters": self.parameters}
