"""Helpers of the kserve SDK that read payloads and make answers, under the SDK's names. pandas is imported only if it is needed.

Source: the kserve SDK's utils/utils.py and protocol/infer_type.py (the interface only).
"""

from collections.abc import Sequence
from importlib import import_module
from typing import Any

import numpy as np

from mpserve.errors import InferenceError, InvalidInput
from mpserve.protocol.array_likes import frame_columns, is_frame, to_numpy
from mpserve.protocol.binary import encode_tensor, split_elements
from mpserve.protocol.datatypes import Array, datatype_of
from mpserve.protocol.messages import InferOutput, InferRequest, InferResponse


def serialize_byte_tensor(input_tensor: Array) -> Array:
    """A 0-D object array of ``bytes`` with the elements of a tensor of bytes or text, each after its length in 4 bytes.

    An empty tensor becomes an empty array. Raises InferenceError: the elements are of another kind.
    """
    if input_tensor.size == 0:
        return np.empty([0], dtype=object)
    try:
        return np.asarray(bytes(encode_tensor(input_tensor, "BYTES")), dtype=object)
    except InvalidInput as error:
        raise InferenceError(f"cannot serialize the tensor: {error}") from None


def deserialize_bytes_tensor(encoded_tensor: bytes) -> Array:
    """The 1-D object array of ``bytes`` of a serialised tensor. Raises InvalidInput: a length is wrong."""
    return np.array(split_elements(encoded_tensor), dtype=object)


def get_predict_input(payload: dict[str, Any] | InferRequest, columns: Sequence[str] | None = None) -> Any:
    """The input of a model such as scikit-learn's: an array, a list of text, or a pandas DataFrame.

    V1: the rows, or a DataFrame with ``columns`` if the rows are objects. V2: the first input, as text if it is BYTES in UTF-8;
    with the parameter ``content_type`` "pd", a DataFrame with a column for each input.

    Raises:
        InvalidInput: the payload has no input, or its rows have different shapes.
    """
    if isinstance(payload, InferRequest):
        return _from_request(payload)
    if not isinstance(payload, dict):
        raise InvalidInput(f"the payload is {type(payload).__name__}, expected a dict or an InferRequest")
    instances = payload.get("inputs", payload.get("instances"))
    if not isinstance(instances, list):
        raise InvalidInput('Expected "inputs" or "instances" to be a list')
    first = instances[0] if instances else None
    if isinstance(first, list) and first:
        first = first[0] if isinstance(first[0], dict) else None
    try:
        if isinstance(first, dict):
            pandas = import_module("pandas")
            return pandas.concat([pandas.DataFrame(_columns(row), columns=columns) for row in instances], axis=0)
        return instances if isinstance(first, str) else np.array(instances)
    except (ValueError, TypeError) as error:
        raise InvalidInput(f"the instances do not fit together: {error}") from error


def get_predict_response(payload: dict[str, Any] | InferRequest, result: Any, model_name: str) -> Any:
    """The answer with a result (array, list or DataFrame), in the protocol of the payload.

    V1: ``{"predictions": ...}``, with an object for each row of a DataFrame. V2: an output for each column of a DataFrame, or
    one output "output-0".

    Raises:
        InvalidInput: the payload is neither a dict nor an ``InferRequest``.
        InferenceError: the result has no datatype in V2.
    """
    if isinstance(payload, dict):
        rows = result.to_dict(orient="records") if hasattr(result, "iterrows") else result
        return {"predictions": rows.tolist() if type(rows) is np.ndarray else rows}
    if not isinstance(payload, InferRequest):
        raise InvalidInput(f"the payload is {type(payload).__name__}, expected a dict or an InferRequest")
    columns = frame_columns(result) if is_frame(result) else {"output-0": result}
    return InferResponse(
        payload.id,
        model_name,
        [_output(name, column) for name, column in columns.items()],
        use_binary_outputs=payload.use_binary_outputs,
        requested_outputs=payload.request_outputs,
    )


def _from_request(request: InferRequest) -> Any:
    if (request.parameters or {}).get("content_type") == "pd":
        return request.as_dataframe()
    if not request.inputs:
        raise InvalidInput("the request has no inputs, expected one at least")
    first = request.inputs[0]
    if first.datatype == "BYTES":
        texts = first.data
        if texts and isinstance(texts[0], str):
            return texts
    return first.as_numpy()


def _columns(row: Any) -> Any:
    """The columns of a row. A field that is not a list becomes a column of one value."""
    if not isinstance(row, dict):
        return row
    return {name: value if isinstance(value, list) else [value] for name, value in row.items()}


def _output(name: str, values: Any) -> InferOutput:
    try:
        array = to_numpy(values)
        output = InferOutput(name, array.shape, datatype_of(array.dtype))
    except InvalidInput as error:
        raise InferenceError(f"output '{name}': {error}") from None
    output.set_data_from_numpy(array)
    return output
