"""The rows of one request in what a model has returned for a batch, before they are made tensors.

What becomes of an answer's values may depend on all of them: a missing integer makes floats of its column. So the answer is
divided first, unless its arrays have their datatypes already, as most have. Knows no request.
"""

from typing import Any

import numpy as np

FIXED = "biufcV"  # kinds of dtypes that no element changes
TEXTS = ({str}, {bytes})


def is_settled(result: Any) -> bool:
    """Whether the datatypes of the arrays in an answer depend on no element."""
    if type(result) is np.ndarray:
        kind = result.dtype.kind
        return kind in FIXED or kind in "SU" or (kind == "O" and set(map(type, result.ravel().tolist())) in TEXTS)
    if isinstance(result, dict):
        return all(map(is_settled, result.values()))
    if isinstance(result, tuple):
        return all(map(is_settled, result))
    return hasattr(result, "detach") or hasattr(result, "toarray")  # tensors, and sparse matrices


def has_rows(result: Any, count: int) -> bool:
    """Whether an answer can be divided: each of its arrays has so many rows."""
    if isinstance(result, dict):
        return all(has_rows(value, count) for value in result.values())
    if isinstance(result, tuple):
        return all(has_rows(value, count) for value in result)
    if not hasattr(result, "__getitem__") or isinstance(result, str | bytes):
        return False
    try:
        return len(result) == count
    except TypeError:  # an array of no dimensions
        return False


def rows_of(result: Any, start: int, end: int) -> Any:
    """These rows of an answer that has rows."""
    if isinstance(result, dict):
        return {name: rows_of(value, start, end) for name, value in result.items()}
    if isinstance(result, tuple):
        parts = [rows_of(value, start, end) for value in result]
        return type(result)(*parts) if hasattr(result, "_fields") else tuple(parts)
    return result.iloc[start:end] if hasattr(result, "iloc") else result[start:end]
