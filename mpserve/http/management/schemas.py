"""The JSON Schemas of a model's V1 and V2 requests and responses (OpenAPI 3.1), from its declared inputs and outputs."""

from collections.abc import Sequence
from math import prod
from typing import Any

from mpserve.protocol.declaration import Tensor
from mpserve.serving.models.model import Spec

Schema = dict[str, Any]

MAX_EXAMPLE = 1024  # maximum elements of an input in an example


def declared(specs: Sequence[Spec]) -> list[Tensor]:
    """Tensors of V2 metadata. Raises KeyError, TypeError or ValueError: the metadata is malformed."""
    return [Tensor(str(spec["name"]), str(spec["datatype"]), [int(size) for size in spec["shape"]]) for spec in specs]


def infer_request(inputs: Sequence[Tensor]) -> Schema:
    """A V2 request with these inputs, in any order."""
    schema = _narrowed("InferRequest", "inputs", "InferInput", inputs)
    if inputs and _small(inputs):
        schema["examples"] = [{"inputs": [_example(tensor) for tensor in inputs]}]
    return schema


def infer_response(outputs: Sequence[Tensor]) -> Schema:
    """A V2 response with some of these outputs."""
    return _narrowed("InferResponse", "outputs", "InferOutput", outputs)


def predict_request(inputs: Sequence[Tensor]) -> Schema:
    """A V1 request: rows of one input, or objects with a row of each input. The first dimension is the batch."""
    if not inputs:
        return _reference("PredictRequest")
    several = len(inputs) > 1
    rows = {tensor.name: _row(tensor) for tensor in inputs}
    row: Schema = {"type": "object", "required": list(rows), "properties": rows} if several else rows[inputs[0].name]
    if several and all(len(tensor.shape) <= 2 for tensor in inputs):  # the columns of a table
        size = {"minItems": len(inputs), "maxItems": len(inputs)}
        row = {"anyOf": [row, {"type": "array", "prefixItems": list(rows.values()), **size}]}
    schema: Schema = {
        "type": "object",
        "required": ["instances"],
        "properties": {"instances": {"type": "array", "items": row}},
    }
    if _small(inputs):
        examples = {tensor.name: _example_row(tensor) for tensor in inputs}
        schema["examples"] = [{"instances": [examples if several else examples[inputs[0].name]]}]
    return schema


def _narrowed(message: str, field: str, entry: str, tensors: Sequence[Tensor]) -> Schema:
    """The schema ``message``, in which each ``entry`` of the list ``field`` is one of these tensors."""
    if not tensors:
        return _reference(message)
    entries = [{"allOf": [_reference(entry), {"properties": _head(tensor)}]} for tensor in tensors]
    return {"allOf": [_reference(message), {"properties": {field: {"items": {"anyOf": entries}}}}]}


def _reference(schema: str) -> Schema:
    return {"$ref": f"#/components/schemas/{schema}"}


def _head(tensor: Tensor) -> Schema:
    sizes = [{"const": size} if size >= 0 else {"type": "integer"} for size in tensor.shape]
    return {
        "name": {"const": tensor.name},
        "datatype": {"const": tensor.datatype},
        "shape": {"prefixItems": sizes, "minItems": len(sizes), "maxItems": len(sizes)} if sizes else {"maxItems": 0},
    }


def _row(tensor: Tensor) -> Schema:
    schema, _ = _element(tensor)
    if tensor.nullable:
        schema = {"anyOf": [schema, {"type": "null"}]}
    for size in reversed(tensor.shape[1:]):
        schema = {"type": "array", "items": schema} | ({"minItems": size, "maxItems": size} if size >= 0 else {})
    return schema


def _example(tensor: Tensor) -> Schema:
    """An example of a V2 input. A size that is not fixed is 1, as in all examples."""
    shape = [abs(size) for size in tensor.shape]
    data = [_element(tensor)[1]] * prod(shape)
    return {"name": tensor.name, "shape": shape, "datatype": tensor.datatype, "data": data}


def _example_row(tensor: Tensor) -> Any:
    _, value = _element(tensor)
    for size in reversed(tensor.shape[1:]):
        value = [value] * abs(size)
    return value


def _small(inputs: Sequence[Tensor]) -> bool:
    return all(prod(map(abs, tensor.shape)) <= MAX_EXAMPLE for tensor in inputs)


def _element(tensor: Tensor) -> tuple[Schema, Any]:
    """The schema of an element in JSON, and an example."""
    if "INT" in tensor.datatype:
        return {"type": "integer"}, 0
    if tensor.datatype == "BYTES":
        return {"type": ["string", "object"]}, ""  # in V1, bytes that are not text are {"b64": ...}
    return ({"type": "boolean"}, False) if tensor.datatype == "BOOL" else ({"type": "number"}, 0.0)
