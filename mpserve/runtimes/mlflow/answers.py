"""Answers of a model of MLflow: as MLflow writes them in V1, and as MLServer has them in V2."""

import json
from collections.abc import Mapping, Set
from typing import Any

import numpy as np
import pandas

from mpserve.errors import InferenceError, InvalidInput
from mpserve.protocol.array_likes import to_numpy
from mpserve.protocol.content_types import CONTENT_TYPE, TABLE
from mpserve.protocol.datatypes import array_of_objects, datatype_of
from mpserve.protocol.messages import InferOutput, InferRequest, InferResponse
from mpserve.runtimes.mlflow.signature import OUTPUT

ALIASES = frozenset({OUTPUT, "output-0", "predict"})  # names by which a client may ask for an only output


def response_of(request: InferRequest, result: Any, model: str, known: Set[str]) -> InferResponse:
    """The V2 answer. ``known``: the names of the outputs in the signature."""
    if isinstance(result, pandas.DataFrame):
        outputs = [_output(str(name), column, True) for name, column in result.items()]
        kind = TABLE
    elif isinstance(result, Mapping):
        outputs = [_output(str(name), value) for name, value in result.items()]
        kind = "dict"
    else:
        outputs = [_output(OUTPUT, result)]
        kind = str((outputs[0].parameters or {})[CONTENT_TYPE])
        asked = [each.name for each in request.request_outputs]
        if len(asked) == 1 and asked[0] in ALIASES | known:
            outputs[0].name = asked[0]
    return InferResponse(request.id, model, outputs, parameters={CONTENT_TYPE: kind})


def records_of(result: Any) -> Any:
    """A Series as MLflow writes it: a table of one column."""
    return pandas.DataFrame(result) if isinstance(result, pandas.Series) else result


def _output(name: str, value: Any, in_table: bool = False) -> InferOutput:
    """An output, with the content type that MLServer gives it. What is no array goes as JSON texts, as there."""
    try:
        array = to_numpy(value)
        is_text = array.dtype.kind == "O" and not isinstance(value, np.ndarray)
        content_type = "str" if is_text else "np"
    except InvalidInput as error:
        if not isinstance(value, list | tuple | pandas.Series):
            raise InferenceError(f"output {name!r}: {error}") from error
        array = array_of_objects([json.dumps(each).encode() for each in value])
        content_type = "pd_json"
    parameters = None if in_table and content_type == "np" else {CONTENT_TYPE: content_type}
    return InferOutput(name, array.shape, datatype_of(array.dtype), array, parameters)
