"""What an ONNX file says of itself: inputs, outputs, class labels, and whether its weights lie in other files.

Reads the fields that are needed from the mapped file, so that a large one costs no memory, and onnxruntime is not needed in the
arbiter. Serves nothing.

Source: onnx/onnx.proto (ONNX 1.23); the numbers are those of its fields.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mpserve.errors import ConfigurationError, InvalidInput
from mpserve.protocol.protobuf.wire import fields, numbers

DATATYPES = {
    1: "FP32", 2: "UINT8", 3: "INT8", 4: "UINT16", 5: "INT16", 6: "INT32", 7: "INT64", 8: "BYTES", 9: "BOOL", 10: "FP16",
    11: "FP64", 12: "UINT32", 13: "UINT64",
}  # fmt: skip
"""Types of elements that V2 and onnxruntime's Python interface both have; it has no bfloat16."""

_OTHER_TYPES = {14: "complex64", 15: "complex128", 16: "bfloat16", 17: "float8", 21: "uint4", 22: "int4", 23: "float4"}
_LOOK_FOR_MISSING = frozenset({"Imputer", "IsNaN"})


class Value(NamedTuple):
    """An input or output.

    Attributes:
        datatype: its V2 datatype; empty if it has none.
        shape: its sizes, -1 for any; None: the file does not say how many there are.
        symbols: the names of the sizes that are any; empty where they have none.
        by_class: whether it is a list with a map from class to score for each row, as ZipMap makes.
        what: what it is, in words.
        labels: the classes, if it holds a score for each.
    """

    name: str
    datatype: str
    shape: tuple[int, ...] | None
    symbols: tuple[str, ...]
    by_class: bool
    what: str
    labels: Sequence[str | int] = ()


class OnnxFile(NamedTuple):
    """Attributes:
    inputs, outputs: in the order of the file.
    takes_missing: whether the graph looks for NaN.
    has_external_data: whether weights lie in other files.
    """

    inputs: list[Value]
    outputs: list[Value]
    takes_missing: bool
    has_external_data: bool


def read(path: Path) -> OnnxFile:
    """Raises ConfigurationError if the file is no ONNX model."""
    try:
        graphs = _messages(np.memmap(path, np.uint8, "r").data, 7)
        if not graphs:
            raise InvalidInput("it has no graph")
        return _graph(graphs[0])
    except (InvalidInput, ValueError) as error:
        raise ConfigurationError(f"{path.name} is no ONNX model: {error}") from None
    except OSError as error:
        raise ConfigurationError(f"{path.name} cannot be read: {error.strerror}") from None


def _graph(graph: memoryview) -> OnnxFile:
    inputs, outputs, weights = [], [], set()
    labels: dict[str, Sequence[str | int]] = {}
    takes_missing = is_external = False
    for number, content in fields(graph):
        if not isinstance(content, memoryview):
            continue
        if number == 1:
            node = _Node(content)
            takes_missing = takes_missing or node.looks_for_missing
            labels |= dict.fromkeys(node.outputs, node.labels)
        elif number == 5:
            weights.add(_text(content, 8))
            is_external = is_external or bool(_messages(content, 13))
        elif number == 11:
            inputs.append(content)
        elif number == 12:
            outputs.append(content)
    return OnnxFile(
        # Files before ONNX IR 4 list their weights as inputs too.
        [value for value in map(_value, inputs) if value.name not in weights],
        [value._replace(labels=labels.get(value.name, ())) for value in map(_value, outputs)],
        takes_missing,
        is_external,
    )


class _Node:
    """The part of a node that is looked at."""

    def __init__(self, node: memoryview) -> None:
        self.outputs = [str(content, "utf-8") for content in _messages(node, 2)]
        kind = _text(node, 4)
        self.labels: list[str | int] = []
        self.looks_for_missing = kind in _LOOK_FOR_MISSING
        if kind == "ZipMap":
            for attribute in _messages(node, 5):
                self.labels += [str(content, "utf-8") for content in _messages(attribute, 9)]
                self.labels += _numbers(attribute, 8)
        elif kind.startswith("TreeEnsemble"):
            attributes = {_text(attribute, 1): attribute for attribute in _messages(node, 5)}
            tracks = attributes.get("nodes_missing_value_tracks_true")
            self.looks_for_missing = tracks is not None and any(_numbers(tracks, 8))


def _value(info: memoryview) -> Value:
    name = _text(info, 1)
    kinds = {number: content for type_ in _messages(info, 2) for number, content in fields(type_)}
    tensor, sequence = kinds.get(1), kinds.get(4)
    if isinstance(tensor, memoryview):
        datatype, told = _element(tensor)
        shapes = _messages(tensor, 2)
        sizes = [_size(dim) for dim in _messages(shapes[0], 1)] if shapes else None
        shape = None if sizes is None else tuple([size for size, _ in sizes])
        return Value(name, datatype, shape, tuple([symbol for _, symbol in sizes or ()]), False, told)
    if isinstance(sequence, memoryview):
        for element in _messages(sequence, 1):
            for scores in (score for map_ in _messages(element, 5) for score in _messages(map_, 2)):
                for tensor in _messages(scores, 1):
                    datatype, _ = _element(tensor)
                    return Value(name, datatype, (-1, -1), ("", ""), True, "a list of maps")
        return Value(name, "", None, (), False, "a sequence")
    return Value(name, "", None, (), False, "a map, an optional or a sparse tensor")


def _element(tensor: memoryview) -> tuple[str, str]:
    """The V2 datatype of a tensor type, and its type in words."""
    element = next(iter(_numbers(tensor, 1)), 0)
    datatype = DATATYPES.get(element, "")
    return datatype, f"a tensor of {datatype or _OTHER_TYPES.get(element, f'ONNX type {element}')}"


def _size(dim: memoryview) -> tuple[int, str]:
    """The size of a dimension, -1 for any, and the name of one that may be any."""
    sizes = _numbers(dim, 1)
    return (sizes[0], "") if sizes and sizes[0] >= 0 else (-1, _text(dim, 2))


def _messages(message: memoryview, number: int) -> list[memoryview]:
    return [content for each, content in fields(message) if each == number and isinstance(content, memoryview)]


def _numbers(message: memoryview, number: int) -> list[int]:
    return [value for each, content in fields(message) if each == number for value in numbers(content)]


def _text(message: memoryview, number: int) -> str:
    return str(next(iter(_messages(message, number)), b""), "utf-8")
