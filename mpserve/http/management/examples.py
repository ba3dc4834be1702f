"""Examples of requests to a model, from its own ``sample``, on which it warms up."""

import logging
from typing import Any

import orjson

from mpserve.http.management.schemas import MAX_EXAMPLE
from mpserve.protocol.tensors import NamedArray
from mpserve.serving.models.model import Model
from mpserve.serving.models.tensor_model import TensorModel

logger = logging.getLogger(__name__)

Examples = dict[str, Any]


def examples_of(model: Model) -> Examples:
    """The example of a V1 and of a V2 request, as ``v1`` and ``v2``; those that the sample gives."""
    try:
        if not isinstance(model, TensorModel):
            return {"v1": orjson.loads(orjson.dumps(model.sample))} if isinstance(model.sample, dict) else {}
        arrays = model.sampled()
        if not arrays or any(array.size > MAX_EXAMPLE for _, _, array in arrays):
            return {}
        return {"v2": {"inputs": [_input(*each) for each in arrays]}, **_instances(arrays)}
    except Exception:  # a sample may be anything
        logger.warning("the sample of model %s is left out of /openapi.json", model.name, exc_info=True)
        return {}


def _input(name: str, datatype: str, array: Any) -> Examples:
    return {"name": name, "shape": list(array.shape), "datatype": datatype, "data": _plain(array.ravel().tolist())}


def _instances(arrays: list[NamedArray]) -> Examples:
    """Rows of the arrays, if they have as many each."""
    if any(array.ndim == 0 for _, _, array in arrays) or len({len(array) for _, _, array in arrays}) > 1:
        return {}
    columns = {name: _plain(array.tolist()) for name, _, array in arrays}
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    return {"v1": {"instances": rows if len(columns) > 1 else next(iter(columns.values()))}}


def _plain(value: Any) -> Any:
    """The value in JSON: bytes as text."""
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value.decode(errors="replace") if isinstance(value, bytes) else value
