"""Parses JSON documents of V1 and V2, and describes their values in words that are short enough for an error message.

Knows JSON, no tensors and no messages.
"""

from typing import Any

import orjson

from mpserve.errors import InvalidInput
from mpserve.protocol.json.numbers import parse_with_numbers

MAX_SHOWN = 60  # characters of the client's own words in a message

_JSON_TYPE_NAMES: dict[type, str] = {
    dict: "an object",
    list: "a list",
    str: "a string",
    bool: "a boolean",
    int: "a number",
    float: "a number",
    type(None): "null",
}
_PARAMETER_TYPES = frozenset({str, int, float, bool})


def describe(value: object) -> str:
    """The type of a decoded JSON value in words: "a list"."""
    return _JSON_TYPE_NAMES.get(type(value), type(value).__name__)


def show(value: Any) -> str:
    """A decoded JSON value as the client wrote it, cut to few characters."""
    return describe(value) if isinstance(value, list | dict) else orjson.dumps(value, default=repr).decode()[:MAX_SHOWN]


def parse_object(body: bytes | memoryview, numbers: str = "") -> dict[str, Any]:
    """A request body as a JSON object. Long lists of numbers under the key `numbers` may be ``Numbers``.
    Raises InvalidInput: not JSON (with line, column and reason), or JSON and not an object. NaN and Infinity are not JSON.
    """
    try:
        document = parse_with_numbers(body, numbers) if numbers and isinstance(body, bytes) else None
        if document is None:
            document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InvalidInput(f"Unrecognized request format: {error}") from None
    return as_object(document)


def as_object(document: Any) -> dict[str, Any]:
    """A JSON document that is an object. Raises InvalidInput if it is something else."""
    if not isinstance(document, dict):
        raise InvalidInput(f"the body is {describe(document)}, expected a JSON object")
    return document


def named_objects(document: dict[str, Any], field: str) -> list[dict[str, Any]]:
    """The list of objects under `field`, which have different names; empty if absent.
    Raises InvalidInput: anything else is there, or a name is there twice.
    """
    entries = document.get(field)
    if entries is None:
        return []
    if not isinstance(entries, list):
        raise InvalidInput(f"`{field}` is {describe(entries)}, expected a list of objects")
    names = set()
    for index, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise InvalidInput(f"{field}[{index}] is {describe(entry)}, expected an object")
        name = entry.get("name")
        if not isinstance(name, str):
            raise InvalidInput(f"{field}[{index}]: name is {describe(name)}, expected a string")
        if name in names:
            raise InvalidInput(f"{field}[{index}]: the name '{name[:MAX_SHOWN]}' is there twice, expected unique names")
        names.add(name)
    return entries


def parameters_of(owner: dict[str, Any], switch: str = "") -> dict[str, Any] | None:
    """The parameters of a V2 object, or None. A parameter named `switch` must be true or false.
    Raises InvalidInput: not an object of strings, numbers and booleans.
    """
    parameters = owner.get("parameters")
    if parameters is None:
        return None
    if not isinstance(parameters, dict):
        raise InvalidInput(f"parameters is {describe(parameters)}, expected an object")
    for name, value in parameters.items():
        if type(value) not in _PARAMETER_TYPES:
            raise InvalidInput(
                f"parameter '{name[:MAX_SHOWN]}' is {describe(value)}, expected a string, number or boolean"
            )
    if type(parameters.get(switch, True)) is not bool:
        raise InvalidInput(f"parameter '{switch}' is {show(parameters[switch])}, expected true or false")
    return parameters
