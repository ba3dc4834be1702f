"""The configuration of a model, with Triton's fields (``extension_model_configuration.md``), from the model's declaration.

Triton's clients read it: perf_analyzer takes ``max_batch_size`` and the tensors from it. This module knows no front end.
"""

from inspect import isasyncgenfunction, isgeneratorfunction
from typing import Any

from mpserve.protocol.datatypes import DATATYPES
from mpserve.serving.models.model import Spec
from mpserve.serving.repository.core import ServerCore

BACKEND = "python"
DATA_TYPES = {datatype: f"TYPE_{datatype}" for datatype in DATATYPES} | {"BYTES": "TYPE_STRING"}


async def configuration(core: ServerCore, name: str, version: str | None) -> dict[str, Any]:
    """The configuration of a model, or of one version of it. Raises MPServeError as ``ServerCore.find``."""
    instance = core.find(name, version)
    inputs, outputs = await core.describe(instance)
    predict = instance.model.predict
    limits = instance.limits
    batched = limits.size if limits is not None and limits.refuses else 0
    return {
        "name": instance.model.name,
        "platform": instance.model.platform,
        "backend": BACKEND,
        "max_batch_size": batched,
        "input": [_tensor(spec, batched) for spec in inputs],
        "output": [_tensor(spec, batched) for spec in outputs],
        "model_transaction_policy": {"decoupled": isgeneratorfunction(predict) or isasyncgenfunction(predict)},
    }


def _tensor(spec: Spec, batched: int) -> dict[str, Any]:
    """``dims`` of a batched model omit the batch (Triton, ``model_configuration.md``, "Maximum Batch Size")."""
    dims = list(spec.get("shape") or ())
    data_type = DATA_TYPES.get(str(spec.get("datatype")), "TYPE_INVALID")
    return {"name": spec.get("name"), "data_type": data_type, "dims": dims[1:] if batched else dims}
