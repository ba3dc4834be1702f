"""An output as classes instead of values: the highest values, each as ``value:index`` (Triton, classification extension).

Knows outputs and no requests.

Source: Triton's docs/protocol/extension_classification.md, and the classifications of its servers (classification.cc).
"""

from math import prod

import numpy as np

from mpserve.errors import InvalidInput
from mpserve.protocol.datatypes import Array, json_values
from mpserve.protocol.messages import InferOutput

_WITHOUT_ORDER = ("BOOL", "BYTES")


def classified(output: InferOutput, count: int) -> InferOutput:
    """The ``count`` highest values of each row, or all values if a row has fewer, as BYTES [rows, count].
    The first dimension is the batch, and the other dimensions together are a row. An output of one dimension is one row, with
    classes BYTES [count]. Of equal values the first comes first; NaN comes last. A value is written so that it reads back as
    the same value (Triton cuts it to six decimals), FP16 and BF16 as FP32.
    Raises InvalidInput if the output is BOOL or BYTES; InferenceError if the output does not fit its declaration.
    """
    if output.datatype in _WITHOUT_ORDER:
        raise InvalidInput(
            f"output {output.name!r} is {output.datatype}, which cannot be classified; expected an output of numbers"
        )
    array = np.asarray(json_values(output.as_numpy(), "null"))
    rows = array.reshape(array.shape[0] if array.ndim > 1 else 1, prod(array.shape[1:] or array.shape))
    order = _descending(rows)[:, :count]
    values = np.take_along_axis(rows, order, axis=1)
    texts = [f"{value!s}:{index}".encode() for value, index in zip(values.flat, order.flat, strict=True)]
    shape = order.shape if array.ndim > 1 else order.shape[1:]
    return InferOutput(output.name, shape, "BYTES", np.array(texts, dtype=object).reshape(shape), output.parameters)


def _descending(rows: Array) -> Array:
    """The indexes of each row's values, the highest first."""
    if rows.dtype.kind == "f":
        rows = np.where(np.isnan(rows), -np.inf, rows)
    # Backwards twice, since a stable sort keeps equal values in order only upwards.
    order: Array = rows.shape[1] - 1 - np.argsort(rows[:, ::-1], axis=1, kind="stable")[:, ::-1]
    return order
