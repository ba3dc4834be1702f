"""The columns and texts in the inputs of a request, checked and made what a library takes."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from mpserve.errors import InvalidInput
from mpserve.protocol.datatypes import Array
from mpserve.protocol.tensors import NamedArray
from mpserve.serving.fitting.binding import are_numbered
from mpserve.serving.fitting.table import Columns, texts_in


def expected_rows(features: int | None) -> str:
    """The rows of a model of so many columns, in words; None: any number."""
    return f"rows of {'any number of' if features is None else features} columns"


def check_columns(table: Columns, features: int | None, columns: Sequence[str]) -> None:
    """Raises InvalidInput if a table is not of the columns that a file tells: their number, and their names, in any order."""
    count = table.arrays[0].shape[1] if table.is_matrix else len(table.names)
    if isinstance(table.names, range):
        if features is not None and count != features:
            raise InvalidInput(f"expected {expected_rows(features)}, got {count}")
        return
    if features is not None and not columns and not are_numbered(table.names):
        raise InvalidInput(
            f"the model knows its {features} columns by their order alone, and named columns have none; expected"
            " rows, one input of shape [n,columns], or numbered names (input-0, input-1)"
        )
    missing = [name for name in columns if name not in table.names]
    if missing:
        raise InvalidInput(f"missing column {missing[0]!r}; expected {', '.join(map(repr, columns))}")
    others = [name for name in table.names if name not in columns] if columns else []
    if others:
        raise InvalidInput(f"unexpected column {others[0]!r}; expected {', '.join(map(repr, columns))}")
    if features is not None and count != features:
        raise InvalidInput(f"expected {expected_rows(features)}, got {count}")


def as_categories(values: list[Any], example: Any) -> Any:
    """The values as categories; JSON and a matrix of floats do not show that a number is an integer.
    Values that are all missing are of the kind of the example.
    """
    from pandas import Categorical

    found = [int(value) if isinstance(value, float) and value.is_integer() else value for value in values]
    if all(value != value or value is None for value in found):
        return Categorical.from_codes([-1] * len(found), categories=[example])
    return Categorical(found)


def as_numbers(name: object, array: Array) -> Array:
    """A column of numbers; booleans with gaps came as objects. Raises InvalidInput if it is text."""
    if array.dtype.kind != "O":
        return array
    elements = array.tolist()
    if not set(map(type, elements)) <= {bool, type(None)}:
        raise InvalidInput(f"column {str(name)!r}: expected numbers, got text")
    return np.array([np.nan if element is None else element for element in elements], np.float64)


def column_of_texts(given: list[NamedArray]) -> Array:
    """The texts in the only input, [n] or [n, 1], as MLServer's clients send them. Raises InvalidInput if it holds no texts."""
    name, datatype, array = given[0]
    if len(given) > 1:
        raise InvalidInput(f"expected one input of texts, got {', '.join(repr(each[0]) for each in given)}")
    if datatype != "BYTES" or array.ndim not in (1, 2) or array.size != len(array):
        raise InvalidInput(f"input {name!r}: expected texts of shape [n], got {datatype} of shape {list(array.shape)}")
    texts = texts_in(name, array.reshape(-1))
    if None in texts.tolist():
        raise InvalidInput(f"input {name!r}: expected texts, got null")
    return texts


def each_flat(given: list[NamedArray]) -> list[NamedArray]:
    """The inputs, where each of V1's instances may have several values of each column (``DataFrame.to_dict``, in KServe)."""
    shapes = {array.shape for _, _, array in given}
    if len(shapes) > 1 or len(shapes.pop()) != 2:
        return given
    return [(name, datatype, array.reshape(-1)) for name, datatype, array in given]
