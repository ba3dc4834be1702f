"""Examples of requests to a model, from its own ``sample``, on which it warms up, or from its declared inputs."""

import json
import logging
from typing import Any, NamedTuple
from urllib.parse import quote

import numpy as np
import orjson

from mpserve.http.management.schemas import MAX_EXAMPLE, declared, infer_request
from mpserve.protocol.tensors import NamedArray
from mpserve.serving.execution.model_instance import ModelInstance
from mpserve.serving.models.model import Model
from mpserve.serving.models.tensor_model import TensorModel
from mpserve.serving.repository.core import ServerCore

logger = logging.getLogger(__name__)

Examples = dict[str, Any]


class Example(NamedTuple):
    """A request: its path, and its JSON, which is empty for a GET."""

    path: str
    body: str


async def example_of(core: ServerCore, instance: ModelInstance, most: int) -> Example:
    """A request to the newest version of a model, of ``most`` characters; for its metadata if no such request is known."""
    name = quote(instance.model.name, safe="")
    examples = examples_of(instance.model)
    try:
        document = examples.get("v2") or examples.get("v1") or await _declared(core, instance)
        body = json.dumps(document, allow_nan=False)
    except Exception:  # of the model's code; or the sample is no JSON
        document, body = None, ""
    if not isinstance(document, dict) or len(body) > most or not {"inputs", "instances"} & set(document):
        return Example(f"/v2/models/{name}", "")
    return Example(f"/v1/models/{name}:predict" if "instances" in document else f"/v2/models/{name}/infer", body)


async def _declared(core: ServerCore, instance: ModelInstance) -> Any:
    inputs = declared((await core.describe(instance))[0])
    return infer_request(inputs).get("examples", [None])[0] if inputs else None


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
    return {"name": name, "shape": list(array.shape), "datatype": datatype, "data": _plain(array.ravel())}


def _instances(arrays: list[NamedArray]) -> Examples:
    """Rows of the arrays, if they have as many each."""
    if any(array.ndim == 0 for _, _, array in arrays) or len({len(array) for _, _, array in arrays}) > 1:
        return {}
    columns = {name: _plain(array) for name, _, array in arrays}
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    return {"v1": {"instances": rows if len(columns) > 1 else next(iter(columns.values()))}}


def _plain(value: Any) -> Any:
    """The value in JSON: bytes as text, and a float with no more digits than its datatype has."""
    if isinstance(value, np.ndarray):
        is_short = value.dtype.kind == "f" and value.dtype.itemsize < 8
        return _plain((value.astype(str).astype(float) if is_short else value).tolist())
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value.decode(errors="replace") if isinstance(value, bytes) else value
