"""Helpers of ``kserve.utils`` that model servers call, under the SDK's names."""

from uuid import uuid4

import numpy as np
from numpy.typing import DTypeLike

from mpserve.config.options import boolean
from mpserve.errors import InvalidInput
from mpserve.protocol.datatypes import datatype_of, numpy_dtype

strtobool = boolean


def generate_uuid() -> str:
    """A random id."""
    return str(uuid4())


def to_np_dtype(dtype: str) -> "np.dtype[np.generic] | None":
    """The numpy dtype of a V2 datatype; None if there is no such datatype."""
    try:
        return numpy_dtype(dtype)
    except InvalidInput:
        return None


def from_np_dtype(np_dtype: DTypeLike) -> str | None:
    """The V2 datatype of a numpy dtype; None if there is none."""
    try:
        return datatype_of(np.dtype(np_dtype))
    except InvalidInput:
        return None
