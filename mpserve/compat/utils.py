"""Helpers and constants of the kserve SDK that model servers use, under the SDK's names."""

from enum import Enum
from pathlib import Path
from uuid import uuid4

import numpy as np
from numpy.typing import DTypeLike

from mpserve.config.options import boolean
from mpserve.config.settings import Settings
from mpserve.errors import ConfigurationError, InvalidInput
from mpserve.protocol.datatypes import datatype_of, numpy_dtype

DEFAULT_HTTP_PORT = 8080
DEFAULT_GRPC_PORT = 8081
EXPLAINER_BASE_URL_FORMAT = "{0}://{1}"
INFERENCE_CONTENT_LENGTH_HEADER = "inference-header-content-length"
KSERVE_LOGLEVEL = Settings.from_environment().log_level.upper()
MAX_GRPC_MESSAGE_LENGTH = Settings().grpc_max_receive_message_length


class PredictorProtocol(Enum):
    """The protocol between a transformer and its predictor."""

    REST_V1 = "v1"
    REST_V2 = "v2"
    GRPC_V2 = "grpc-v2"


strtobool = boolean


def generate_uuid() -> str:
    """A random id."""
    return str(uuid4())


def to_np_dtype(dtype: str) -> "np.dtype[np.generic] | None":
    """The numpy dtype of a V2 datatype, or None."""
    try:
        return numpy_dtype(dtype)
    except InvalidInput:
        return None


def from_np_dtype(np_dtype: DTypeLike) -> str | None:
    """The V2 datatype of a numpy dtype, or None."""
    try:
        return datatype_of(np.dtype(np_dtype))
    except InvalidInput:
        return None


class Storage:
    """``kserve_storage.Storage`` without downloads."""

    @staticmethod
    def download(uri: str | Path, out_dir: str | None = None) -> str:
        """The local path of ``uri``. Raises ConfigurationError: there is no local path, or ``out_dir`` is given."""
        path = str(uri).removeprefix("file://")
        if out_dir is not None or not Path(path).exists():
            raise ConfigurationError(
                f"Storage.download({str(uri)!r}{'' if out_dir is None else f', {out_dir!r}'}): expected the path of a"
                " model that is on this machine. KServe puts it under /mnt/models before the container starts;"
                " pip install kserve-storage brings the package that downloads"
            )
        return path
