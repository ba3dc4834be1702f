"""How each library shows that it refused a table: ``SIGNS`` has one function for each way, of the frames of its failure.

A sign is looked for in the names of modules, functions and variables of the library, so a library is never imported. A release
that renames one of them shows no sign; the failure is then the model's, as any other. ``tests/serving/models/test_refusals.py``
asks the libraries that are installed.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from types import FrameType
from typing import Any, NamedTuple

import numpy as np

from mpserve.errors import text_of
from mpserve.serving.fitting.table import Columns

CHECKS = ("sklearn.utils.validation", "mlflow.models.utils")
"""Modules that check inputs. An error from deeper frames began there too: numpy's, say, for a text that is no number."""

CONSTRUCTOR = "__init__"
CATBOOST = "catboost.core"
ENCODERS = "sklearn.preprocessing._encoders"
COUNTS = ("n_features_in_", "num_features", "num_feature", "n_features_")
"""Attributes or methods that tell the number of features, of scikit-learn's interface, XGBoost, LightGBM and CatBoost."""

ONNX = {"float": "f4", "double": "f8", "float16": "f2", "bool": "b1", "string": "O"} | {
    f"{sign}int{8 * size}": f"{kind}{size}" for sign, kind in (("", "i"), ("u", "u")) for size in (1, 2, 4, 8)
}


class Failure(NamedTuple):
    """A failure within a library: the error, the library's frames from the outermost on, and the client's tables there."""

    error: BaseException
    frames: Sequence[FrameType]
    tables: Sequence[Any]


def module_of(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", ""))


def arguments_of(frame: FrameType) -> list[Any]:
    """The tables among the arguments of a call."""
    code = frame.f_code
    count = code.co_argcount + code.co_kwonlyargcount + bool(code.co_flags & 4) + bool(code.co_flags & 8)
    names = code.co_varnames[code.co_name == CONSTRUCTOR : count]
    return list(tables_in([frame.f_locals.get(name) for name in names]))


def tables_in(value: Any) -> Iterator[Any]:
    """The tables in lists, tuples and dicts."""
    if isinstance(value, Mapping):
        value = list(value.values())
    elif type(value) is Columns:
        value = [*value.arrays, value.made]
    if isinstance(value, list | tuple):
        for each in value:
            yield from tables_in(each)
    elif hasattr(type(value), "shape") or hasattr(
        type(value), "num_row"
    ):  # to compute them may crash, see ``_half_made``
        yield value


def shape_of(table: Any) -> tuple[int, ...]:
    """The shape of an array or a frame, or of XGBoost's matrix."""
    return (table.num_row(), table.num_col()) if hasattr(table, "num_row") else tuple(table.shape)


def _is_text_for_a_number(failure: Failure) -> bool:
    """Whether numpy found text where the library asked for numbers."""
    return "string to float" in text_of(failure.error) and any(map(_holds_text, failure.tables))


def _is_unknown_category(failure: Failure) -> bool:
    """Whether an encoder of scikit-learn refused values that stand in the client's table."""
    frame = failure.frames[-1]
    unknown = frame.f_locals.get("diff") if module_of(frame) == ENCODERS else None
    if unknown is None or not len(unknown):
        return False
    return any(set(unknown) <= set(np.asarray(table, object).ravel().tolist()) for table in failure.tables)


def _is_unreadable(failure: Failure) -> bool:
    """Whether CatBoost's own predict could not make a Pool of the client's table: it found a value that is of the wrong type."""
    for before, frame in pairwise(failure.frames):
        makes_pool = frame.f_code.co_name == CONSTRUCTOR and type(frame.f_locals.get("self")).__name__ == "Pool"
        if makes_pool and module_of(frame) == module_of(before) == CATBOOST:
            return any(each is table for each in arguments_of(frame) for table in failure.tables)
    return False


def _failed_validation(failure: Failure) -> bool:
    """Whether a check of scikit-learn or MLflow raised that looked at the client's table, or at what became of its gaps."""
    check = next((frame for frame in failure.frames if module_of(frame).startswith(CHECKS)), None)
    if check is None:
        return False
    looked_at = arguments_of(check)
    return any(each is table for each in looked_at for table in failure.tables) or any(map(_has_gaps, failure.tables))


def _differs_from_features(failure: Failure) -> bool:
    """Whether a table has other columns than an object of scikit-learn, XGBoost, LightGBM or CatBoost was fitted on."""
    for owner, _, tables in _takers(failure):
        count, names = _features(owner), getattr(owner, "feature_names_in_", None)
        if count is not None and any(len(shape_of(table)) != 2 or shape_of(table)[1] != count for table in tables):
            return True
        if names is not None and any(
            hasattr(table, "columns") and not set(names) <= set(table.columns) for table in tables
        ):
            return True
    return False


def _differs_from_signature(failure: Failure) -> bool:
    """Whether a table differs from the input of an ONNX session under whose name it was handed over."""
    return any(
        hasattr(owner, "get_inputs") and any(_is_other(told, frame, tables) for told in owner.get_inputs())
        for owner, frame, tables in _takers(failure)
    )


SIGNS: Sequence[Callable[[Failure], bool]] = (
    _is_text_for_a_number,
    _is_unknown_category,
    _is_unreadable,
    _failed_validation,
    _differs_from_features,
    _differs_from_signature,
)
"""Each says whether the client's table is the reason. A further library gets a further function."""


def _has_gaps(table: Any) -> bool:
    if hasattr(table, "isna"):
        return bool(np.asarray(table.isna()).any())
    return isinstance(table, np.ndarray) and table.dtype.kind == "f" and not bool(np.isfinite(table).all())


def _holds_text(table: Any) -> bool:
    """Whether an array, or a column of a frame, may hold text."""
    kinds = [getattr(dtype, "kind", "O") for dtype in getattr(table, "dtypes", [getattr(table, "dtype", None)])]
    return any(kind in "OSUT" for kind in kinds)


def _takers(failure: Failure) -> Iterator[tuple[Any, FrameType, Sequence[Any]]]:
    """The objects of the library that took a table of the client's, each with the frame of its method, and these tables."""
    half_made = _half_made(failure.frames)
    for frame in failure.frames:
        owner, taken = frame.f_locals.get("self"), arguments_of(frame)
        tables = [table for table in failure.tables if any(table is value for value in taken)]
        if owner is not None and tables and not any(owner is each for each in half_made):
            yield owner, frame, tables


def _half_made(frames: Iterable[FrameType]) -> list[Any]:
    """The objects whose constructors have not returned. To ask a half-made Pool of CatBoost for its shape ends the process."""
    return [frame.f_locals.get("self") for frame in frames if frame.f_code.co_name == CONSTRUCTOR]


def _features(owner: Any) -> int | None:
    for name in COUNTS:
        try:
            count = getattr(owner, name, None)
            count = count() if callable(count) else count
        except Exception:  # before fit, a property may raise whatever it likes
            continue
        if isinstance(count, int | np.integer) and count > 0:
            return int(count)
    return None


def _is_other(told: Any, frame: FrameType, tables: Sequence[Any]) -> bool:
    """Whether a table was handed over for this input, and is of another datatype or shape."""
    fed: dict[str, Any] = next((value for value in frame.f_locals.values() if isinstance(value, dict)), {})
    array = fed.get(told.name)
    if array is None or not any(array is table for table in tables):
        return False
    expected = ONNX.get(told.type.removeprefix("tensor(").removesuffix(")"))
    if expected is not None and array.dtype != np.dtype(expected):
        return True
    sizes = zip(told.shape, array.shape, strict=False)
    return len(told.shape) != array.ndim or any(isinstance(want, int) and want != got for want, got in sizes)
