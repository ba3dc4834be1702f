"""The base of models from files that answer row by row: what goes in, which outputs there are, and whose fault a failure is.

The rows are those of one matrix, or of a table with a column per input. A library gets a DataFrame if the model was fitted on
named columns, or if a column is text; otherwise it gets the matrix.
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mpserve.errors import InferenceError, InvalidInput, MPServeError
from mpserve.protocol.array_likes import to_numpy
from mpserve.protocol.datatypes import Array, datatype_of
from mpserve.protocol.tensors import NamedArray
from mpserve.protocol.v1.rows import unnamed
from mpserve.runtimes.named_outputs import PROBABILITIES, NamedOutputs
from mpserve.runtimes.rows.columns import (
    as_categories,
    as_numbers,
    check_columns,
    column_of_texts,
    each_flat,
    expected_rows,
)
from mpserve.serving.fitting.binding import Bind
from mpserve.serving.fitting.known import Known
from mpserve.serving.fitting.table import Columns, columns_in, with_texts
from mpserve.serving.models.faults import RefusedByLibrary
from mpserve.serving.models.model import Spec
from mpserve.serving.models.refusals import words_of

logger = logging.getLogger(__name__)

JOINED = 64
"""Rows that are predicted together by default: a library's call for a few rows costs about as much as for one row
(``make bench-files`` shows it)."""

INPUT = "input-0"
UNNAMED = "output-0"  # what clients of KServe's servers call the only output


class RowsModel(NamedOutputs):
    """Serves a file whose model takes rows.

    Attributes:
        features: the number of columns; None: the file does not say.
        columns: the names of the columns, in their order; empty: the file does not say.
        wants_frame: whether the library is to get a DataFrame even if all columns are numbers.
        categorical: the columns of the DataFrame that are to be categories, each with one, or with a text if any kind will do.
        only_numbers: whether all other columns must be numbers; the library would take text for the codes of categories.
        only_texts: whether the model takes one column of texts, and no table.
        gaps: what stands for a missing text, by the names of columns.
        labels: the classes, in the order of the probabilities.
        refusals: the exceptions by which the library refuses rows.
    """

    aliases = frozenset({UNNAMED})
    features: int | None = None
    columns: Sequence[str] = ()
    wants_frame: bool = False
    categorical: Mapping[str, Any] = {}
    only_numbers: bool = False
    only_texts: bool = False
    gaps: Mapping[str, float | None] = {}
    labels: Sequence[Any] = ()
    refusals: tuple[type[Exception], ...] = (ValueError, TypeError)

    def __init__(self, name: str, path: Path, predict_proba: bool = False) -> None:
        super().__init__(name, path, predict_proba)
        self._described: list[Spec] = []
        self._is_unknown = False  # whether no row was found that the model takes

    def invoke_for(self, arrays: Sequence[Any], asked: tuple[str, ...]) -> dict[str, Any]:
        """The outputs of these names, or the model's own choice.
        Raises InvalidInput: there is no such output, or the model cannot take these rows.
        """
        methods = self.asked_methods(asked)
        try:
            rows = self.rows_of(arrays[0])
            answers = {name: method(rows) for name, method in methods.items()}
        except MPServeError:
            raise
        except self.refusals as error:
            if self.is_unfit(error):
                raise
            raise RefusedByLibrary(f"the model refused the input: {words_of(error)}") from error
        self._check_answers(answers, arrays[0].shape[0])
        return answers

    def _check_answers(self, answers: Mapping[str, Any], count: int) -> None:
        """Raises InferenceError: an answer is not one of each row. A library may take a table for something else."""
        for name, answer in answers.items():
            if np.shape(answer)[:1] != (count,):
                raise InferenceError(f"output {name!r}: expected {count} rows, got the shape {list(np.shape(answer))}")

    def is_unfit(self, error: Exception) -> bool:
        """Whether an error says that the model is at fault, whatever the rows."""
        return False

    def binding(self) -> Bind:
        return self.rows_in

    def takes_missing(self) -> bool:
        """Null is NaN, or None among text. A model that takes no such value refuses it in its words."""
        return True

    def wants_table(self) -> bool:
        return self.wants_frame

    def rows_in(self, given: list[NamedArray]) -> Sequence[Any]:
        """The rows in the inputs of a request: one array, or columns. Raises InvalidInput if they do not fit the model."""
        if not given:
            raise InvalidInput(f"expected {expected_rows(self.features)}, got no inputs")
        if self.only_texts:
            return [column_of_texts(given)]
        if len(given) == 1 and not self._is_column(given[0]):
            [(_, _, array)] = with_texts(given)
            if self.features is not None and (array.ndim != 2 or array.shape[1] != self.features):
                raise InvalidInput(f"expected {expected_rows(self.features)}, got shape {list(array.shape)}")
            is_table = self.wants_frame and array.ndim == 2
            return [Columns(self.columns, [array], None, self.gaps) if is_table else array]
        known = Known(self.columns, self.gaps)
        table = columns_in(with_texts(each_flat(given)), known)
        check_columns(table, self.features, self.columns)
        return [table]

    def _is_column(self, given: NamedArray) -> bool:
        """Whether an input is one column, by its name; a matrix holds all columns, whatever its name."""
        is_named = given[2].ndim < 2 and not unnamed(given[:1])
        return given[0] in self.columns and (len(self.columns) == 1 or is_named)

    def rows_of(self, rows: Any) -> Any:
        """The rows as the library takes them."""
        if type(rows) is not Columns:
            return rows
        if self.only_numbers and not rows.is_matrix:
            numbers = [
                array if name in self.categorical else as_numbers(name, array)
                for name, array in zip(rows.names, rows.arrays, strict=True)
            ]
            rows = Columns(rows.names, numbers, None, rows.gaps)
        has_text = any(array.dtype.kind == "O" for array in rows.arrays)
        is_named = self.features is None and not isinstance(rows.names, range)
        if self.wants_frame or has_text or is_named:
            frame = rows.frame("pandas")
            for name, example in self.categorical.items():
                frame[name] = as_categories(frame[name].tolist(), example)
            return frame
        return rows.arrays[0] if rows.is_matrix else np.column_stack(rows.arrays)

    def show(self, texts: Mapping[str, str]) -> None:
        """Make a sample of a table with text: these texts and the categories; other columns are zero."""
        texts = {**texts, **{name: each for name, each in self.categorical.items() if each and isinstance(each, str)}}
        if not texts.keys().isdisjoint(self.columns):
            self.sample = {name: [texts.get(name, 0.0)] for name in self.columns}

    def warmup(self) -> None:
        """Predict the sample, or a row of zeros, which shows the datatypes of the outputs.
        A model that refuses it has columns of another kind, and says nothing of its inputs and outputs.
        """
        if self.features is None:
            return
        described = []
        try:
            rows = self.rows_of(*self.rows_in(self.sampled() or [(INPUT, "FP64", np.zeros((1, self.features)))]))
        except InvalidInput:
            self._is_unknown = True
            return
        for name, method in self.methods.items():
            try:
                array = to_numpy(method(rows))
                described.append(self._describe(name, array))
            except Exception:
                logger.debug("model %s: output %s cannot be described", self.name, name, exc_info=True)
        self._described, self._is_unknown = described, not described

    def _describe(self, name: str, array: Array) -> Spec:
        spec: Spec = {"name": name, "datatype": datatype_of(array.dtype), "shape": [-1, *array.shape[1:]]}
        if array.dtype.kind == "O":
            spec["datatype"] = "BYTES"
        if len(self.labels) and name == PROBABILITIES:
            spec["parameters"] = {"labels": [_plain(label) for label in self.labels]}
        return spec

    def get_input_types(self) -> list[Spec]:
        if self.features is None or self._is_unknown:
            return []
        if self.sample is not None:
            return [{"name": name, "datatype": datatype, "shape": [-1]} for name, datatype, _ in self.sampled()]
        return [{"name": INPUT, "datatype": "FP64", "shape": [-1, self.features]}]

    def get_output_types(self) -> list[Spec]:
        return self._described


def _plain(label: Any) -> Any:
    return label.item() if isinstance(label, np.generic) else label
