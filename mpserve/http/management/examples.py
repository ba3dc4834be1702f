"""A small request that a model answers, made from its ``sample`` or from its declared inputs: for a line to try."""

import json
from typing import Any, NamedTuple
from urllib.parse import quote

from mpserve.http.management.schemas import declared, infer_request
from mpserve.protocol.tensors import NamedArray
from mpserve.serving.execution.model_instance import ModelInstance
from mpserve.serving.models.model import Model
from mpserve.serving.models.tensor_model import TensorModel
from mpserve.serving.repository.core import ServerCore


class Example(NamedTuple):
    """A request: its path, and its JSON, which is empty for a GET."""

    path: str
    body: str


async def example_of(core: ServerCore, instance: ModelInstance, most: int) -> Example:
    """A request to the newest version of a model, of ``most`` characters; for its metadata if no such request is known."""
    model, name = instance.model, quote(instance.model.name, safe="")
    metadata = Example(f"/v2/models/{name}", "")
    try:
        body = json.dumps(_sampled(model) or await _declared(core, instance), allow_nan=False)
    except Exception:  # of the model's code; or the sample is no JSON
        return metadata
    if body == "null" or len(body) > most:
        return metadata
    is_v1 = '"instances"' in body[:20]
    return Example(f"/v1/models/{name}:predict" if is_v1 else f"/v2/models/{name}/infer", body)


def _sampled(model: Model) -> Any:
    if isinstance(model, TensorModel):
        return None if model.sample is None else {"inputs": [_input(array) for array in model.sampled()]}
    return model.sample if isinstance(model.sample, dict) and "instances" in model.sample else None


def _input(array: NamedArray) -> dict[str, Any]:
    name, datatype, values = array
    data = [value.decode() if isinstance(value, bytes) else value for value in values.ravel().tolist()]
    return {"name": name, "shape": list(values.shape), "datatype": datatype, "data": data}


async def _declared(core: ServerCore, instance: ModelInstance) -> Any:
    inputs = declared((await core.describe(instance))[0])
    return infer_request(inputs).get("examples", [None])[0] if inputs else None
