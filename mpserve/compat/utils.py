"""Helpers of ``kserve.utils`` and ``kserve_storage`` that model servers call, under the SDK's names."""

from pathlib import Path
from uuid import uuid4

import numpy as np
from numpy.typing import DTypeLike

from mpserve.config.options import boolean
from mpserve.errors import ConfigurationError, InvalidInput
from mpserve.protocol.datatypes import datatype_of, numpy_dtype

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
