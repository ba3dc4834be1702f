"""``InferParameter`` maps and the plain values that a model sees as parameters."""

from collections.abc import Mapping
from typing import Any

from mpserve.errors import InferenceError, InvalidInput
from mpserve.protocol.json.documents import MAX_SHOWN
from mpserve.protocol.protobuf import inference_pb2 as pb
from mpserve.protocol.tensors import Parameters

_INT64 = range(-(2**63), 2**63)
_UINT64 = range(2**64)


def read_parameters(parameters: Mapping[str, pb.InferParameter]) -> Parameters | None:
    """The values by name; None if there are none. Raises InvalidInput: a parameter without a value."""
    if not parameters:  # nearly always, and to iterate over an empty map costs nearly twenty times as much
        return None
    values = {}
    for name, parameter in parameters.items():
        field = parameter.WhichOneof("parameter_choice")
        if field is None:
            raise InvalidInput(f"parameter '{name[:MAX_SHOWN]}' has no value")
        values[name] = getattr(parameter, field)
    return values


def write_parameters(target: Any, parameters: Parameters | None) -> None:
    """Put the values into the map field ``target``; None counts as not there.
    Raises InferenceError: a value that no InferParameter can hold.
    """
    for name, value in (parameters or {}).items():
        if value is None:
            continue
        plain = value.item() if hasattr(value, "item") else value  # of a numpy scalar
        setattr(target[name], _field(name, plain), plain)


def _field(name: str, value: object) -> str:
    if isinstance(value, bool):
        return "bool_param"
    if isinstance(value, int) and (value in _INT64 or value in _UINT64):
        return "int64_param" if value in _INT64 else "uint64_param"
    if isinstance(value, float):
        return "double_param"
    if isinstance(value, str):
        return "string_param"
    raise InferenceError(
        f"parameter '{name}' is {value!r}, expected a boolean, an integer of 64 bits, a float or a string"
    )
