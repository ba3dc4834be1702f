"""Inputs as the columns of a table, and as a DataFrame of pandas or polars, which are imported when the first frame is made.

Knows no model. A runtime for tables builds on ``columns_in`` and ``Columns.frame``.
"""

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any

import numpy as np

from mpserve.errors import InvalidInput
from mpserve.protocol.datatypes import Array, array_of_objects, cast, not_utf8
from mpserve.protocol.declaration import Tensor
from mpserve.protocol.tensors import NamedArray
from mpserve.protocol.v1.rows import unnamed
from mpserve.serving.fitting.known import NOTHING, Known

LIBRARIES = ("pandas", "polars")


class Columns:
    """Arrays by name, in their order; or one matrix, whose columns have the names.
    A batch joins the rows of its requests before the model makes a frame of them, so its schedulers see an array: the
    ``shape`` begins with the number of rows, and an equal ``dtype`` means that rows can be joined.

    Args:
        names: of the columns; integers if nobody has named them.
        call: calls the model's predict with the arguments of which these columns are the first; None: the model's own
            ``invoke`` takes the columns.
        gaps: what stands for a missing text in a DataFrame of pandas, by the names of columns that are known to be text.
    """

    __slots__ = ("arrays", "call", "gaps", "made", "names")

    def __init__(
        self,
        names: Sequence[str] | range,
        arrays: Sequence[Array],
        call: Callable[..., Any] | None = None,
        gaps: Mapping[str, float | None] = NOTHING.gaps,
    ) -> None:
        self.names = names
        self.arrays = arrays
        self.call = call
        self.gaps = gaps
        self.made: Any = None  # the frame, which is the client's own table

    @property
    def shape(self) -> tuple[int, ...]:
        """The number of rows; empty if the arrays do not agree."""
        shapes = {array.shape[:1] for array in self.arrays}
        return shapes.pop() if len(shapes) == 1 else ()

    @property
    def dtype(self) -> object:
        return tuple(self.names), tuple([(array.dtype, array.shape[1:]) for array in self.arrays])

    @property
    def is_matrix(self) -> bool:
        return len(self.arrays) == 1 and self.arrays[0].ndim == 2

    @classmethod
    def joined(cls, parts: "Sequence[Columns]") -> "Columns":
        """The rows of all parts, whose ``dtype`` is equal."""
        arrays = [np.concatenate(column) for column in zip(*(part.arrays for part in parts), strict=True)]
        return cls(parts[0].names, arrays, parts[0].call, parts[0].gaps)

    def frame(self, library: str) -> Any:
        """A DataFrame of ``"pandas"`` or ``"polars"``; a missing value of polars is null, not NaN."""
        self.made = self._polars() if library == "polars" else self._pandas()
        return self.made

    def _polars(self) -> Any:
        columns = self.arrays[0].T if self.is_matrix else self.arrays
        named = {
            str(name): column.tolist() if column.dtype.kind == "O" else column
            for name, column in zip(self.names, columns, strict=True)
        }
        return import_module("polars").DataFrame(named, nan_to_null=True)

    def _pandas(self) -> Any:
        frames = import_module("pandas")
        arrays: Sequence[Any] = self.arrays
        if self.is_matrix and not self.gaps and arrays[0].dtype.kind != "O":
            return frames.DataFrame(arrays[0], columns=self.names)
        columns = list(arrays[0].T) if self.is_matrix else arrays
        named = {}
        for name, column in zip(self.names, columns, strict=True):
            gap = self.gaps.get(str(name), np.nan)
            filled = _filled(column, gap, str(name) in self.gaps)
            # Of a bare array of text, pandas 3 makes None NaN.
            named[name] = filled if gap is not None or filled is column else frames.Series(filled, dtype=object)
        return frames.DataFrame(named)


def columns_in(given: Sequence[NamedArray], known: Known = NOTHING) -> Columns:
    """The columns in the inputs: each input [n] or [n, 1] is a column, and a single input [n, k] has all columns.
    ``known``: its names name columns that nobody has named, and they order columns of just these names.
    Raises InvalidInput if an input is no column, or the columns differ in length.
    """
    names = known.names
    if len(given) == 1 and _is_matrix(given[0][2], names):
        matrix = given[0][2]
        return Columns(names if len(names) == matrix.shape[1] else range(matrix.shape[1]), [matrix], None, known.gaps)
    columns = {name: as_column(name, array) for name, _, array in given}
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"{name!r} has {length}" for name, length in lengths.items())
        raise InvalidInput(f"expected columns of one length; {told}")
    if unnamed(list(columns)):
        named = names if len(names) == len(columns) else range(len(columns))
        return Columns(named, list(columns.values()), None, known.gaps)
    if names and columns.keys() == set(names):
        columns = {name: columns[name] for name in names}
    return Columns(list(columns), list(columns.values()), None, known.gaps)


def as_declared(declared: Sequence[Tensor], given: list[NamedArray]) -> list[NamedArray]:
    """The inputs as the declared columns: a single matrix is divided into them, and each column gets the declared rank.
    What does not fit is left as it is, for ``fit_inputs`` to refuse. Raises InvalidInput if a value does not fit its column.
    """
    by_name = {tensor.name: tensor for tensor in declared}
    if len(given) == 1 and len(declared) > 1 and given[0][0] not in by_name:
        name, _, matrix = given[0]
        if matrix.ndim != 2 or matrix.shape[1] != len(declared):
            raise InvalidInput(
                f"input {name!r}: expected {len(declared)} columns ({', '.join(map(repr, by_name))}), got shape"
                f" {list(matrix.shape)}"
            )
        given = [_divided(tensor, matrix[:, index]) for index, tensor in enumerate(declared)]
    elif len(given) == len(declared) and unnamed([name for name, _, _ in given]):
        given = [_divided(tensor, array) for tensor, (_, _, array) in zip(declared, given, strict=True)]
    fitted = []
    for name, datatype, array in given:
        rank = len(by_name[name].shape) if name in by_name else 0
        is_column = {array.ndim, rank} == {1, 2} and array.size == len(array)
        fitted.append((name, datatype, array.reshape([len(array), 1][:rank]) if is_column else array))
    return fitted


def _filled(column: Array, gap: float | None, is_text: bool) -> Array:
    """A column in which this value stands for each that is missing, whatever else the column holds.
    A column that is known to be text came as numbers if it holds nothing.
    """
    if column.dtype.kind == "O":
        elements = column.tolist()
        if None not in elements:
            return column
        filled = [gap if element is None else element for element in elements]
    elif is_text and column.dtype.kind == "f" and np.isnan(column).all():
        filled = [gap] * len(column)
    else:
        return column
    return array_of_objects(filled)


def as_column(name: str, array: Array) -> Array:
    if array.ndim == 2 and array.shape[1] == 1:
        return array.reshape(-1)
    if array.ndim != 1:
        raise InvalidInput(f"input {name!r}: expected a column of shape [n] or [n,1], got {list(array.shape)}")
    return array


def texts_in(name: str, array: Array) -> Array:
    """An array of UTF-8 bytes as an array of ``str``. None, and what a content type has decoded, stays as it is.
    Raises InvalidInput if the bytes are not UTF-8.
    """
    if array.dtype.kind != "O":  # moments
        return array
    elements = array.ravel().tolist()
    try:
        texts = [element.decode() if isinstance(element, bytes) else element for element in elements]
    except UnicodeDecodeError as error:
        raise InvalidInput(
            f"input {name!r} {not_utf8(error)}; a model gets bytes only where it declares BYTES, or annotates the parameter"
            " of predict with bytes"
        ) from None
    return np.array(texts, dtype=object).reshape(array.shape)


def with_texts(given: Sequence[NamedArray]) -> list[NamedArray]:
    """The inputs, with those of BYTES as ``str``. Raises InvalidInput as ``texts_in``."""
    return [(name, kind, texts_in(name, array) if kind == "BYTES" else array) for name, kind, array in given]


def _is_matrix(array: Array, names: Sequence[str]) -> bool:
    return array.ndim == 2 and (array.shape[1] != 1 or len(names) == 1)


def _divided(tensor: Tensor, column: Array) -> NamedArray:
    try:
        return tensor.name, tensor.datatype, cast(column, tensor.datatype)
    except InvalidInput as error:
        raise InvalidInput(f"input {tensor.name!r}: {error}") from None
