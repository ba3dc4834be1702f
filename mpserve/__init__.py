"""Serve Python models over the KServe V1 and V2 protocols, with real worker processes and no ``multiprocessing``.

Everything a user needs is imported from here. The names are loaded on first use, so that importing a part of mpserve in
the arbiter does not bring the whole, nor torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mpserve.version import VERSION as __version__

if TYPE_CHECKING:
    from mpserve.errors import (
        InferenceError,
        InvalidInput,
        ModelNotFound,
        ModelNotReady,
        NotSupported,
        PredictorError,
        ServerNotReady,
    )
    from mpserve.protocol.declaration import Tensor
    from mpserve.protocol.messages import InferInput, InferOutput, InferRequest, InferResponse, RequestedOutput
    from mpserve.runtimes.pytorch import TorchModel
    from mpserve.server import ModelServer, asgi_app
    from mpserve.serving.models.model import Model
    from mpserve.serving.models.predictor import PredictorConfig
    from mpserve.serving.models.tensors import TensorModel

_HOMES = {
    "InferenceError": "mpserve.errors",
    "InvalidInput": "mpserve.errors",
    "ModelNotFound": "mpserve.errors",
    "ModelNotReady": "mpserve.errors",
    "NotSupported": "mpserve.errors",
    "PredictorError": "mpserve.errors",
    "ServerNotReady": "mpserve.errors",
    "InferInput": "mpserve.protocol.messages",
    "InferOutput": "mpserve.protocol.messages",
    "InferRequest": "mpserve.protocol.messages",
    "InferResponse": "mpserve.protocol.messages",
    "RequestedOutput": "mpserve.protocol.messages",
    "TorchModel": "mpserve.runtimes.pytorch",
    "ModelServer": "mpserve.server",
    "asgi_app": "mpserve.server",
    "Model": "mpserve.serving.models.model",
    "PredictorConfig": "mpserve.serving.models.predictor",
    "Tensor": "mpserve.protocol.declaration",
    "TensorModel": "mpserve.serving.models.tensors",
}

__all__ = [
    "InferInput",
    "InferOutput",
    "InferRequest",
    "InferResponse",
    "InferenceError",
    "InvalidInput",
    "Model",
    "ModelNotFound",
    "ModelNotReady",
    "ModelServer",
    "NotSupported",
    "PredictorConfig",
    "PredictorError",
    "RequestedOutput",
    "ServerNotReady",
    "Tensor",
    "TensorModel",
    "TorchModel",
    "__version__",
    "asgi_app",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'mpserve' has no attribute {name!r}")
    try:
        home = import_module(_HOMES[name])
    except ModuleNotFoundError as missing:
        if missing.name != "torch":
            raise
        raise ModuleNotFoundError(
            f"mpserve.{name} needs torch, which is not installed: pip install 'mpserve[torch]'", name="torch"
        ) from None
    return getattr(home, name)


def __dir__() -> list[str]:
    return __all__
