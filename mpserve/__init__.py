"""Serve Python models over the KServe V1 and V2 protocols, with real worker processes and no ``multiprocessing``.

Users import all names from here. A name is imported on first use, so that ``import mpserve`` imports neither numpy nor torch.
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
    from mpserve.serving.models.tensor_model import TensorModel

_NAMES = {
    "mpserve.errors": (
        "InferenceError", "InvalidInput", "ModelNotFound", "ModelNotReady", "NotSupported", "PredictorError", "ServerNotReady",
    ),
    "mpserve.protocol.declaration": ("Tensor",),
    "mpserve.protocol.messages": ("InferInput", "InferOutput", "InferRequest", "InferResponse", "RequestedOutput"),
    "mpserve.runtimes.pytorch": ("TorchModel",),
    "mpserve.server": ("ModelServer", "asgi_app"),
    "mpserve.serving.models.model": ("Model",),
    "mpserve.serving.models.predictor": ("PredictorConfig",),
    "mpserve.serving.models.tensor_model": ("TensorModel",),
}  # fmt: skip
_MODULES = {name: module for module, names in _NAMES.items() for name in names}

__all__ = [
    "InferInput", "InferOutput", "InferRequest", "InferResponse", "InferenceError", "InvalidInput", "Model", "ModelNotFound",
    "ModelNotReady", "ModelServer", "NotSupported", "PredictorConfig", "PredictorError", "RequestedOutput", "ServerNotReady",
    "Tensor", "TensorModel", "TorchModel", "__version__", "asgi_app",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'mpserve' has no attribute {name!r}")
    try:
        module = import_module(_MODULES[name])
    except ModuleNotFoundError as missing:
        if missing.name != "torch":
            raise
        raise ModuleNotFoundError(
            f"mpserve.{name} needs torch, which is not installed: pip install 'mpserve[torch]'", name="torch"
        ) from None
    return getattr(module, name)


def __dir__() -> list[str]:
    return __all__
