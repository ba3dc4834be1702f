"""The signature of a folder of MLflow: its inputs and outputs as V2's metadata, and V2's inputs as the model takes them."""

import json
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import pandas
from mlflow.types import DataType, Schema, TensorSpec

from mpserve.errors import InvalidInput
from mpserve.protocol.content_types import CONTENT_TYPE, TABLE, decoded
from mpserve.protocol.datatypes import Array, array_of_objects, cast, datatype_of
from mpserve.protocol.messages import InferRequest
from mpserve.protocol.tensors import NamedArray
from mpserve.serving.fitting.known import Known
from mpserve.serving.fitting.table import columns_in, texts_in, with_texts
from mpserve.serving.models.model import Spec

INPUT, OUTPUT = "input-0", "output-1"  # what MLServer calls an input and an output without a name
NUMBERS = {DataType.integer: "INT32", DataType.long: "INT64", DataType.float: "FP32", DataType.double: "FP64"}
DATATYPES = {**NUMBERS, DataType.boolean: "BOOL"}  # of all other columns it is BYTES


class Signature:
    """What a folder says of its inputs and outputs. ``folder``: what ``folder.read`` gives."""

    def __init__(self, folder: Any) -> None:
        self._folder = folder

    @property
    def is_type_hint(self) -> bool:
        """Whether the signature is the type hint of ``predict``, which takes a list."""
        return bool(self._folder._is_signature_from_type_hint())

    @cached_property
    def schema(self) -> Schema | None:
        """The inputs of the signature."""
        schema: Schema | None = self._folder.get_input_schema()
        return schema

    @cached_property
    def columns(self) -> dict[str, Any]:
        """The types of the columns by name; empty if the signature has none, or has tensors."""
        if self.schema is None or self.schema.is_tensor_spec() or not self.schema.has_input_names():
            return {}
        return {str(spec.name): spec.type for spec in self.schema.inputs}

    @cached_property
    def parameters(self) -> frozenset[str]:
        """The names of the signature's parameters."""
        schema = self._folder.get_params_schema()
        return frozenset() if schema is None else frozenset(parameter.name for parameter in schema.params)

    @cached_property
    def output_names(self) -> frozenset[str]:
        return frozenset(spec["name"] for spec in self.outputs())

    def expected(self) -> str:
        """The columns in words."""
        return f"{len(self.columns)} columns ({', '.join(map(repr, self.columns))})"

    def data(self, request: InferRequest) -> Any:
        """The inputs of a V2 request as the model takes them: a DataFrame, an array, or arrays by name."""
        if not request.inputs:
            raise InvalidInput("expected at least one input, got none")
        is_table = (request.parameters or {}).get(CONTENT_TYPE) == TABLE
        for each in request.inputs:
            own = (each.parameters or {}).get(CONTENT_TYPE)
            is_table = is_table or own == TABLE
            if (
                self.columns.get(each.name) is DataType.datetime
                and each.datatype == "BYTES"
                and own in (None, "np", TABLE)
            ):
                each.parameters = {**(each.parameters or {}), CONTENT_TYPE: "datetime"}
        given = decoded(request.inputs, request.parameters)
        if self.is_type_hint:
            return self._hinted(given)
        if self.schema is not None and self.schema.is_tensor_spec():
            return self._tensors(given)
        if self.schema is None and not is_table:
            named = {name: array for name, _, array in with_texts(given)}
            return next(iter(named.values())) if len(named) == 1 else self._frame(given)
        return self._frame(given)

    def _hinted(self, given: Sequence[NamedArray]) -> list[Any]:
        """The list that a ``predict`` with a type hint takes: values, or objects by name."""
        if len(given) == 1:
            [(_, _, array)] = with_texts(given)
            return list(array.reshape(-1).tolist())
        return list(self._frame(given).to_dict("records"))

    def _tensors(self, given: Sequence[NamedArray]) -> Any:
        assert self.schema is not None
        named = {name: array for name, _, array in with_texts(given)}
        if not self.schema.has_input_names() or (len(named) == len(self.schema.inputs) == 1):
            if len(named) != 1:
                raise InvalidInput(f"expected one input, got {len(named)}: {', '.join(map(repr, named))}")
            [array] = named.values()
            return {self.schema.input_names()[0]: array} if self.schema.has_input_names() else array
        return named

    def _frame(self, given: Sequence[NamedArray]) -> pandas.DataFrame:
        if len(given) == 1 and given[0][0] not in self.columns and given[0][2].ndim == 2 and self.columns:
            name, datatype, matrix = given[0]
            if matrix.shape[1] != len(self.columns):
                raise InvalidInput(
                    f"input {name!r}: expected rows of {self.expected()}, got shape {list(matrix.shape)}"
                )
            given = [(column, datatype, _lossless(matrix[:, index], kind))
                     for index, (column, kind) in enumerate(self.columns.items())]  # fmt: skip
        plain = [(name, "", self._column(name, datatype, array)) for name, datatype, array in given]
        frame: pandas.DataFrame = columns_in(plain, Known(list(self.columns))).frame("pandas")
        return frame

    def _column(self, name: str, datatype: str, array: Array) -> Array:
        kind = self.columns.get(name)
        if kind is DataType.binary:
            return array
        if kind is not None and not isinstance(kind, DataType):  # arrays, objects and maps
            if datatype != "BYTES":
                return array_of_objects(array.tolist())
            try:
                return array_of_objects([json.loads(each) for each in array.reshape(-1)])
            except (ValueError, TypeError) as error:
                raise InvalidInput(f"input {name!r}: expected JSON in each element: {error}") from None
        return texts_in(name, array) if datatype == "BYTES" else array

    def inputs(self) -> list[Spec]:
        return _described(self.schema, INPUT)

    def outputs(self) -> list[Spec]:
        return _described(self._folder.get_output_schema(), OUTPUT)


def _described(schema: Schema | None, unnamed: str) -> list[Spec]:
    specs = [] if schema is None else schema.inputs
    prefix, _, first = unnamed.rpartition("-")
    return [_spec(spec, spec.name or f"{prefix}-{index + int(first)}") for index, spec in enumerate(specs)]


def _spec(spec: Any, name: str) -> Spec:
    if isinstance(spec, TensorSpec):
        datatype = "BYTES" if spec.type.kind in "OSU" else datatype_of(spec.type)
        return {"name": name, "datatype": datatype, "shape": list(spec.shape)}
    described: Spec = {"name": name, "datatype": DATATYPES.get(spec.type, "BYTES"), "shape": [-1, 1]}
    parameters: dict[str, Any] = {}
    if spec.type is DataType.string:
        parameters[CONTENT_TYPE] = "str"
    elif spec.type is DataType.datetime:
        parameters[CONTENT_TYPE] = "datetime"
    if not spec.required:
        parameters["required"] = False
    return described | ({"parameters": parameters} if parameters else {})


def _lossless(column: Array, kind: Any) -> Array:
    """A column of a matrix in its own datatype; as it is, if that would change a value."""
    try:
        return cast(column, NUMBERS[kind]) if kind in NUMBERS and column.dtype.kind in "iuf" else column
    except InvalidInput:
        return column
