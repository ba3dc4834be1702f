"""Makes numpy arrays of what other libraries call arrays, and never a wrong number on the way.

Arrays of other libraries are recognised by their methods, so no library is imported. A missing value (masked, NA, None, NaT)
becomes NaN among numbers and None among texts. Integers are never rounded to make room for it.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from itertools import chain
from typing import Any

import numpy as np

from mpserve.errors import InvalidInput
from mpserve.protocol.datatypes import Array, array_of_objects

EXACT = 2**53
"""Up to here FP64 holds every integer."""

PLAIN = "biufcV"  # kinds of dtypes whose elements need no look; V is bfloat16, and records, which have no datatype
MISSING = frozenset({"NoneType", "NAType", "NaTType", "MaskedConstant"})
TEXT = (str, bytes)
TRUTH = (bool, np.bool_)
INTEGER = (int, np.integer)
NUMBER = (int, float, np.integer, np.floating)
LISTED = (list, tuple, np.ndarray)
NOTHING: Array = np.empty(0, object)


def to_numpy(value: Any) -> Array:
    """The array of any value: numbers, or objects that are ``bytes`` or None. Raises InvalidInput if there is no such array."""
    if isinstance(value, np.ndarray):
        return _of_array(value) if not hasattr(value, "mask") else _of_masked(value)
    if isinstance(value, list | tuple):
        return _of_list(value)
    if hasattr(value, "detach"):
        return _of_torch(value.detach().cpu())
    if hasattr(value, "toarray"):  # sparse matrices
        return to_numpy(value.toarray())
    if hasattr(value, "null_count") and hasattr(value, "to_list"):
        return _of_polars(value)
    if hasattr(value, "isna") and hasattr(value, "to_numpy"):
        return _of_pandas(value)
    if isinstance(value, Mapping | set | frozenset):
        raise InvalidInput(f"a {type(value).__name__} is no array")
    if type(value).__name__ in MISSING or isinstance(value, (*TEXT, date)):
        return _of_objects(_objects([value]).reshape(()))
    return _of_array(np.asarray(value))


def is_foreign(value: object) -> bool:
    """Whether a value is an array that ``tolist`` does not describe: numbers may be missing, or it has no ``tolist``."""
    if isinstance(value, np.ndarray):
        return hasattr(value, "mask") or value.dtype.kind in "MT"
    return (
        hasattr(value, "toarray")
        or hasattr(value, "null_count")
        or (hasattr(value, "isna") and hasattr(value, "dtype"))
    )


def is_frame(value: object) -> bool:
    """Whether a value is a table of pandas or polars, or of a library that follows their interfaces."""
    return (hasattr(value, "iloc") or hasattr(value, "get_columns")) and hasattr(value, "columns")


def frame_columns(frame: Any) -> dict[str, Any]:
    """The columns of a table by name. Raises InvalidInput if two columns have one name."""
    is_polars = hasattr(frame, "get_columns")
    named = [(each.name, each) for each in frame.get_columns()] if is_polars else list(frame.items())
    return by_name(named)


def by_name(named: Iterable[tuple[Any, Any]]) -> dict[str, Any]:
    """Values by the text of their names. Raises InvalidInput if two have one name."""
    values: dict[str, Any] = {}
    for name, value in named:
        if str(name) in values:
            raise InvalidInput(f"two outputs are named {str(name)!r}")
        values[str(name)] = value
    return values


def _of_array(array: Array) -> Array:
    kind = array.dtype.kind
    if kind == "M":
        texts = array.astype(str).astype(object)
        texts[np.isnat(array)] = None
        return _of_objects(texts)
    if kind == "O":
        return _of_objects(array)
    return array if kind in PLAIN or kind == "m" else _of_objects(array.astype(object))


def _of_masked(array: Any) -> Array:
    mask = np.ma.getmaskarray(array)
    if not mask.any():
        return _of_array(array.data)
    if array.dtype.kind == "f":
        return np.asarray(array.filled(np.nan))
    return _with_gaps(array.data.astype(object), mask)


def _of_torch(tensor: Any) -> Array:
    try:
        return np.asarray(tensor.numpy())
    except TypeError:  # bfloat16 has no numpy counterpart
        return np.asarray(tensor.float().numpy())


def _of_polars(series: Any) -> Array:
    if series.null_count() or getattr(series.dtype, "time_zone", None):  # to_numpy rounds, and drops the zone
        return _of_objects(_objects(series.to_list()))
    return _of_array(np.asarray(series.to_numpy()))


def _of_pandas(value: Any) -> Array:
    """The array of a Series, an Index, an extension array, or of a whole DataFrame of one kind."""
    missing = np.asarray(value.isna())
    dtypes = set(value.dtypes) if missing.ndim == 2 else {value.dtype}
    if len(dtypes) == 1 and (isinstance(next(iter(dtypes)), np.dtype) or not missing.any()):
        return _of_array(np.asarray(value.to_numpy()))
    return _with_gaps(np.asarray(value.to_numpy(dtype=object)), missing)  # as one dtype, integers would be rounded


def _with_gaps(objects: Array, missing: Array) -> Array:
    objects = objects.copy()
    objects[missing] = None
    return _of_objects(objects)


def _of_list(values: Sequence[Any]) -> Array:
    try:
        array = np.asarray(values)
    except (ValueError, TypeError, RuntimeError):  # uneven, or tensors that want to be asked otherwise
        return _of_mixed_list(values)
    is_plain = array.dtype.kind in "biuf" and _are_lists(values, array.ndim)
    return array if is_plain and (array.dtype.kind != "f" or _are_exact(values, array)) else _of_mixed_list(values)


def _are_lists(values: Sequence[Any], rank: int) -> bool:
    """Whether all but the elements are lists: numpy drops the mask of an array in a list."""
    for _ in range(rank - 1):
        if not set(map(type, values)) <= {list, tuple}:
            return False
        if rank > 2:
            values = list(chain.from_iterable(values))
    return True


def _are_exact(values: Sequence[Any], array: Array) -> bool:
    """Whether no integer among the values was rounded."""
    if array.ndim < 2 and set(map(type, values)) <= {float}:
        return True
    return not array.size or bool(array.min() > -EXACT and array.max() < EXACT)


def _of_mixed_list(values: Sequence[Any]) -> Array:
    kinds = _leaf_types(values)
    if any(map(_is_array, kinds)):
        return _stacked(values)
    objects = _objects(values)
    if any(issubclass(kind, LISTED) for kind in set(map(type, objects.ravel().tolist()))):
        raise InvalidInput("a list of uneven lists is no array")
    return _of_objects(objects)


def _leaf_types(values: Sequence[Any]) -> set[type]:
    """The types of the elements of nested lists; list is among them if the lists are uneven."""
    kinds = set(map(type, values))
    level: Sequence[Any] = values
    while kinds and kinds <= {list, tuple}:
        kinds = set(map(type, chain.from_iterable(level)))
        if kinds and kinds <= {list, tuple}:
            level = list(chain.from_iterable(level))
    return kinds


def _is_array(kind: type) -> bool:
    return issubclass(kind, LISTED) or (not issubclass(kind, np.generic) and hasattr(kind, "__array__"))


def _objects(values: Sequence[Any]) -> Array:
    """An object array with the shape of nested lists."""
    return np.array(values, dtype=object) if len(values) else NOTHING


def _stacked(values: Sequence[Any]) -> Array:
    arrays = [to_numpy(value) for value in values]
    shapes = {array.shape for array in arrays}
    if len(shapes) > 1:
        raise InvalidInput(f"a list of arrays of the shapes {sorted(map(list, shapes))[:4]} is no array")
    if len({array.dtype for array in arrays}) == 1:
        return np.stack(arrays)
    return _of_objects(np.stack([array.astype(object) for array in arrays]))


def _of_objects(array: Array) -> Array:
    """The array of objects of one kind, some of which may be missing."""
    elements = array.ravel().tolist()
    kinds = set(map(type, elements))
    if kinds <= {bytes}:
        return array
    gaps = any(kind.__name__ in MISSING for kind in kinds)
    if gaps:
        elements = [None if type(element).__name__ in MISSING else element for element in elements]
    if any(issubclass(kind, TEXT) for kind in kinds) and any(issubclass(kind, float | np.floating) for kind in kinds):
        # pandas has NaN for a missing text.
        elements = [None if element != element else element for element in elements]
    kinds = set(map(type, elements)) - {type(None)}
    if kinds and _all(kinds, (*TEXT, date, np.datetime64)):
        return array_of_objects([_encoded(element) for element in elements]).reshape(array.shape)
    if kinds and _all(kinds, LISTED):
        stacked = _stacked(elements)
        return stacked.reshape(array.shape + stacked.shape[1:])
    if kinds and _all(kinds, TRUTH):
        if gaps:
            raise InvalidInput("a missing value among booleans, which BOOL cannot hold")
        return np.array(elements, np.bool_).reshape(array.shape)
    if _all(kinds, NUMBER) and not kinds & {*TRUTH}:
        return _of_numbers(elements, kinds, gaps).reshape(array.shape)
    names = ", ".join(sorted(kind.__name__ for kind in kinds))
    raise InvalidInput(f"elements of type {names} are no tensor; expected numbers, booleans or text, of one kind")


def _all(kinds: Iterable[type], expected: tuple[type, ...]) -> bool:
    return all(issubclass(kind, expected) for kind in kinds)


def _of_numbers(elements: list[Any], kinds: set[type], gaps: bool) -> Array:
    integers = [element for element in elements if isinstance(element, INTEGER)]
    if kinds and _all(kinds, INTEGER) and not gaps:
        low, high = int(min(integers)), int(max(integers))
        if low < -(2**63) or high >= 2**64 or (low < 0 and high >= 2**63):
            raise InvalidInput(f"the integers {low} to {high} fit neither INT64 nor UINT64")
        return np.array(list(map(int, elements)), np.int64 if high < 2**63 else np.uint64)
    if any(abs(int(integer)) > EXACT and int(float(integer)) != integer for integer in integers):
        beside = "a missing value" if gaps else "fractions"
        raise InvalidInput(f"integers above 2**53 beside {beside}, which FP64 cannot hold exactly")
    return np.array([np.nan if element is None else float(element) for element in elements], np.float64)


def _encoded(element: Any) -> bytes | None:
    if isinstance(element, np.datetime64):
        element = None if np.isnat(element) else str(element)
    elif isinstance(element, date):  # a datetime is one
        element = element.isoformat()
    return element.encode() if isinstance(element, str) else element
