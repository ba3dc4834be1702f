"""Whether a library has refused the client's own input. Asked only after a model has failed, so it costs no good request.

The client is blamed only for a table that reached the library as it was sent: the library was handed the request's own array, or
nothing but mpserve stands between. And only if the library's check of that table raised, or the table differs from the number of
features, the columns or the signature that the library knows (``library_checks``). So a fault in the code of the model's author
stays the model's. Libraries are known by the names of their modules, and are never imported.
"""

import re
import sys
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Any

from mpserve.errors import first_line, text_of
from mpserve.serving.models.library_checks import SIGNS, Failure, arguments_of, module_of, shape_of, tables_in

LIBRARIES = frozenset({"sklearn", "xgboost", "lightgbm", "catboost", "onnxruntime", "mlflow"})
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
    if first is None or any(
        map(_is_authors, frames[first:])
    ):  # a part of the author's within the library: a pipeline's step
        return None
    sent = list(tables_in(given))
    is_direct = all(_root(frame) == "mpserve" for frame in frames[:first])
    tables = [
        table for table in arguments_of(frames[first]) if is_direct or any(_is_same(table, each) for each in sent)
    ]
    failure = Failure(error, frames[first:], tables)
    return words_of(error) if tables and any(is_sign(failure) for is_sign in SIGNS) else None


def _frames(traceback: TracebackType | None) -> Iterator[FrameType]:
    while traceback is not None:
        yield traceback.tb_frame
        traceback = traceback.tb_next


def _root(frame: FrameType) -> str:
    return module_of(frame).partition(".")[0]


def _is_authors(frame: FrameType) -> bool:
    """Whether a frame is of no library, of no other installed package, and not of mpserve."""
    if _root(frame) in LIBRARIES | {"mpserve"} or _root(frame) in sys.stdlib_module_names:
        return False
    return "site-packages" not in frame.f_code.co_filename and not frame.f_code.co_filename.startswith("<")


def _is_same(table: Any, sent: Any) -> bool:
    """Whether a library was handed what the client sent: the same object, or XGBoost's matrix of it."""
    return table is sent or (hasattr(table, "num_row") and shape_of(table) == shape_of(sent))
