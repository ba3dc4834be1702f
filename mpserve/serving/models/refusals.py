"""Whether a library has refused the client's own input. Asked only after a model has failed, so it costs no good request.

The client is blamed only for a table that reached the library as it was sent: the library was handed the request's own array, or
nothing but mpserve stands between. And only if the library's check of that table raised, or the table differs from the number of
features, the columns or the signature that the library knows. So a fault in the code of the model's author stays the model's.
Libraries are known by the names of their modules, and are never imported.
"""

import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from types import FrameType, TracebackType
from typing import Any

import numpy as np

from mpserve.errors import first_line, text_of
from mpserve.serving.fitting.table import Columns

LIBRARIES = frozenset({"sklearn", "xgboost", "lightgbm", "catboost", "onnxruntime", "mlflow"})
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
SOURCE = re.compile(r"^\[\d\d:\d\d:\d\d\] \S+:\d+: ")  # the time and the place before XGBoost's words
PATH = re.compile(r"(?<![\w.])/[\w.+-]+(?:/[\w.+-]+)+")
LONGEST = 300  # characters of a library's words


def words_of(said: BaseException | str) -> str:
    """What a library says, for a client: one line of bounded length, without paths of the server. A line that ends in a colon
    says nothing without the next one.
    """
    line = first_line(said)
    if line.endswith(":"):
        whole = text_of(said) if isinstance(said, BaseException) else said
        line = " ".join([line, *map(str.strip, whole.strip().splitlines()[1:2])])
    return PATH.sub("...", SOURCE.sub("", line))[:LONGEST]


def refusal(error: BaseException, given: Any) -> str | None:
    """The library's words if a library refused the input, and it was the client's. ``given``: what the model was handed."""
    frames = list(_frames(error.__traceback__))
    first = next((index for index, frame in enumerate(frames) if _root(frame) in LIBRARIES), None)
    if first is None:
        return None
    sent = list(_flat(given))
    authors = [frame for frame in frames[:first] if _root(frame) != "mpserve"]
    if any(
        _root(frame) != "mpserve" and _root(frame) not in LIBRARIES and _is_authors(frame) for frame in frames[first:]
    ):
        return None  # a part of the author's within the library: a step of a pipeline
    handed = [
        value for value in _arguments(frames[first]) if not authors or any(_is_same(value, each) for each in sent)
    ]
    is_no_number = "string to float" in text_of(error) and any(map(_holds_text, handed))
    if handed and (is_no_number or _failed_check(frames[first:], handed) or _differs(frames[first:], handed)):
        return words_of(error)
    return None


def _frames(traceback: TracebackType | None) -> Iterator[FrameType]:
    while traceback is not None:
        yield traceback.tb_frame
        traceback = traceback.tb_next


def _root(frame: FrameType) -> str:
    return _module(frame).partition(".")[0]


def _module(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", ""))


def _is_authors(frame: FrameType) -> bool:
    """Whether a frame is of no library, and of no other installed package."""
    if _root(frame) in LIBRARIES or _root(frame) in sys.stdlib_module_names:
        return False
    return "site-packages" not in frame.f_code.co_filename and not frame.f_code.co_filename.startswith("<")


def _arguments(frame: FrameType) -> list[Any]:
    code = frame.f_code
    count = code.co_argcount + code.co_kwonlyargcount + bool(code.co_flags & 4) + bool(code.co_flags & 8)
    names = code.co_varnames[code.co_name == CONSTRUCTOR : count]
    return list(_flat([frame.f_locals.get(name) for name in names]))


def _half_made(frames: Iterable[FrameType]) -> list[Any]:
    """The objects whose constructors have not returned. To ask a half-made Pool of CatBoost for its shape ends the process."""
    return [frame.f_locals.get("self") for frame in frames if frame.f_code.co_name == CONSTRUCTOR]


def _flat(value: Any) -> Iterator[Any]:
    """The tables in lists, tuples and dicts."""
    if isinstance(value, Mapping):
        value = list(value.values())
    elif type(value) is Columns:
        value = [*value.arrays, value.made]
    if isinstance(value, list | tuple):
        for each in value:
            yield from _flat(each)
    elif hasattr(type(value), "shape") or hasattr(type(value), "num_row"):  # to compute them may crash, see _half_made
        yield value


def _is_same(value: Any, sent: Any) -> bool:
    """Whether a library was handed what the client sent: the same object, or XGBoost's matrix of it."""
    return value is sent or (hasattr(value, "num_row") and _shape(value) == _shape(sent))


def _shape(value: Any) -> tuple[int, ...]:
    return (value.num_row(), value.num_col()) if hasattr(value, "num_row") else tuple(value.shape)


def _failed_check(frames: Sequence[FrameType], handed: Sequence[Any]) -> bool:
    """Whether a check of inputs raised that looked at the client's own table, or at what became of its gaps."""
    if _is_unknown_category(frames[-1], handed) or _is_unreadable(frames, handed):
        return True
    check = next((frame for frame in frames if _module(frame).startswith(CHECKS)), None)
    if check is None:
        return False
    looked_at = _arguments(check)
    return any(each is value for each in looked_at for value in handed) or any(map(_has_gaps, handed))


def _is_unknown_category(frame: FrameType, handed: Sequence[Any]) -> bool:
    """Whether an encoder of scikit-learn refused values that stand in the client's table."""
    unknown = frame.f_locals.get("diff") if _module(frame) == ENCODERS else None
    if unknown is None or not len(unknown):
        return False
    return any(set(unknown) <= set(np.asarray(table, object).ravel().tolist()) for table in handed)


def _is_unreadable(frames: Sequence[FrameType], handed: Sequence[Any]) -> bool:
    """Whether CatBoost's own predict could not make a Pool of the client's table: it found a value that is of the wrong type."""
    for before, frame in pairwise(frames):
        makes_pool = frame.f_code.co_name == CONSTRUCTOR and type(frame.f_locals.get("self")).__name__ == "Pool"
        if makes_pool and _module(frame) == _module(before) == CATBOOST:
            return any(each is value for each in _arguments(frame) for value in handed)
    return False


def _has_gaps(value: Any) -> bool:
    if hasattr(value, "isna"):
        return bool(np.asarray(value.isna()).any())
    return isinstance(value, np.ndarray) and value.dtype.kind == "f" and not bool(np.isfinite(value).all())


def _holds_text(value: Any) -> bool:
    """Whether an array, or a column of a table, may hold text."""
    kinds = [getattr(dtype, "kind", "O") for dtype in getattr(value, "dtypes", [getattr(value, "dtype", None)])]
    return any(kind in "OSUT" for kind in kinds)


def _differs(frames: Iterable[FrameType], handed: Sequence[Any]) -> bool:
    """Whether a table differs from what an object of the library knows that took it."""
    frames = list(frames)
    half_made = _half_made(frames)
    for frame in frames:
        owner, taken = frame.f_locals.get("self"), _arguments(frame)
        tables = [table for table in handed if any(table is value for value in taken)]
        if owner is None or not tables or any(owner is each for each in half_made):
            continue
        count, names = _features(owner), getattr(owner, "feature_names_in_", None)
        if count is not None and any(len(_shape(table)) != 2 or _shape(table)[1] != count for table in tables):
            return True
        if names is not None and any(
            hasattr(table, "columns") and not set(names) <= set(table.columns) for table in tables
        ):
            return True
        if hasattr(owner, "get_inputs") and _differs_from_signature(owner.get_inputs(), frame, tables):
            return True
    return False


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


def _differs_from_signature(signature: Iterable[Any], frame: FrameType, tables: Sequence[Any]) -> bool:
    """Whether a table differs from the input of an ONNX session under whose name it was handed over."""
    fed: dict[str, Any] = next((value for value in frame.f_locals.values() if isinstance(value, dict)), {})
    for told in signature:
        array = fed.get(told.name)
        if array is None or not any(array is table for table in tables):
            continue
        expected = ONNX.get(told.type.removeprefix("tensor(").removesuffix(")"))
        if expected is not None and array.dtype != np.dtype(expected):
            return True
        sizes = zip(told.shape, array.shape, strict=False)
        if len(told.shape) != array.ndim or any(isinstance(want, int) and want != got for want, got in sizes):
            return True
    return False
