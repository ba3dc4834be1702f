"""Serves folders of MLflow (``MLmodel``): what their ``python_function`` flavor predicts, as ``mlflow models serve`` has it.

MLflow itself loads the model, reads V1's bodies and enforces the signature, so a folder of any flavor answers as it does there.
The module knows MLflow 2.19 to 3.17 beyond its documentation in ``_parse_json_data``, and the words of a refused signature.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from io import BytesIO, StringIO
from pathlib import Path
from platform import python_version
from typing import Any

import numpy as np
import pandas
from mlflow.exceptions import MlflowException
from mlflow.models import Model as Folder
from mlflow.pyfunc import FLAVOR_NAME, load_model, scoring_server
from mlflow.types import DataType, Schema, TensorSpec
from packaging.requirements import InvalidRequirement, Requirement

from mpserve.errors import ConfigurationError, InferenceError, InvalidInput, UnsupportedMediaType
from mpserve.protocol.array_likes import to_numpy
from mpserve.protocol.content_types import CONTENT_TYPE, TABLE, decoded
from mpserve.protocol.datatypes import Array, cast, datatype_of
from mpserve.protocol.messages import InferOutput, InferRequest, InferResponse
from mpserve.protocol.tensors import NamedArray
from mpserve.serving.fitting.known import Known
from mpserve.serving.fitting.table import columns_of, text_of
from mpserve.serving.models.model import Model, Spec

logger = logging.getLogger(__name__)

FORKS_WELL = frozenset({"mlflow.sklearn", "mlflow.xgboost", "mlflow.lightgbm", "mlflow.catboost", "mlflow.statsmodels"})
"""Loaders whose models all workers share. Other libraries, and code of the folder, may start threads that a fork would lose."""

LONGEST = 300  # characters of what MLflow says
INPUT, OUTPUT = "input-0", "output-1"  # what MLServer calls an input and an output without a name
ALIASES = frozenset({OUTPUT, "output-0", "predict"})  # names by which a client may ask for an only output
NUMBERS = {DataType.integer: "INT32", DataType.long: "INT64", DataType.float: "FP32", DataType.double: "FP64"}
DATATYPES = {**NUMBERS, DataType.boolean: "BOOL"}  # of all other columns it is BYTES
CSV, PARQUET = "text/csv", "application/vnd.apache.parquet"

scoring: Any = scoring_server  # has no type hints
_told: set[str] = set()


class MLflowModel(Model):
    """Serves one folder. V1 takes MLflow's own bodies; V2 takes an input for each column, or a tensor."""

    platform = "mlflow"

    def __init__(self, name: str, path: Path) -> None:
        super().__init__(name)
        self.path = path
        try:
            self.folder: Any = Folder.load(str(path / "MLmodel"))
        except Exception as error:
            raise ConfigurationError(f"{path / 'MLmodel'} cannot be read: {_first_line(str(error))}") from error
        self.flavor: Mapping[str, Any] = self.folder.flavors.get(FLAVOR_NAME) or {}
        if not self.flavor:
            raise ConfigurationError(
                f"{path} has the flavors {', '.join(self.folder.flavors)}, expected {FLAVOR_NAME}, which every flavor of MLflow"
                " for Python adds"
            )
        self.served: Any = None

    def preload(self) -> None:
        _tell_versions(self.path, self.flavor)
        if self.flavor["loader_module"] in FORKS_WELL:
            self._read()

    def load(self) -> None:
        if self.served is None:
            self._read()
        if self.native_threads and self.flavor["loader_module"] == "mlflow.sklearn":
            from mpserve.runtimes.sklearn import limit_threads

            limit_threads(self.served.get_raw_model(), self.native_threads)

    def _read(self) -> None:
        try:
            self.served = load_model(str(self.path), suppress_warnings=True)
        except ModuleNotFoundError as missing:
            raise ConfigurationError(
                f"{self.path.name} needs {missing.name}, which is not installed: pip install -r"
                f" {self.path / 'requirements.txt'}"
            ) from missing

    @cached_property
    def schema(self) -> Schema | None:
        """The inputs of the signature."""
        schema: Schema | None = self.folder.get_input_schema()
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
        schema = self.folder.get_params_schema()
        return frozenset() if schema is None else frozenset(parameter.name for parameter in schema.params)

    def takes_missing(self) -> bool:
        """The signature says which columns may have missing values, and MLflow refuses others."""
        return True

    def predict(self, payload: Any, headers: Any = None) -> Any:
        """Answer V1, whose payload is one of MLflow's bodies, or V2. Raises InvalidInput if MLflow refuses the input."""
        try:
            if isinstance(payload, InferRequest):
                given = {k: v for k, v in (payload.parameters or {}).items() if k in self.parameters}
                return self._response(payload, self.served.predict(self._data(payload), params=given or None))
            data, params, is_bare = self._parsed(payload, headers or {})
            result = _records(self.served.predict(data, params=params))
            return result if is_bare else {"predictions": result}
        except MlflowException as error:
            if _status(error) != 400:
                raise
            logger.info("model %s refused an input", self.name, exc_info=True)
            raise InvalidInput(f"the model refused the input: {_refusal(error)}") from error

    def _parsed(self, payload: Any, headers: Mapping[str, str]) -> tuple[Any, Any, bool]:
        """The data and parameters in a V1 body, and whether the answer is to stand alone, as in bodies for language models."""
        if isinstance(payload, dict):
            parsed = scoring._parse_json_data(self._as_columns(payload), self.folder, self.schema)
            return parsed.data, parsed.params, parsed.is_unified_llm_input
        media_type = headers.get("content-type", "").partition(";")[0].strip().lower()
        if media_type == CSV:
            try:
                text = bytes(payload).decode()
            except UnicodeDecodeError as error:
                raise InvalidInput(f"the body is no UTF-8: {error}") from None
            return scoring.parse_csv_input(StringIO(text), self.schema), None, False
        if media_type == PARQUET:
            return scoring.parse_parquet_input(BytesIO(payload)), None, False
        raise UnsupportedMediaType(f"the body is {media_type}, expected JSON, {CSV} or {PARQUET}")

    def _as_columns(self, body: dict[str, Any]) -> dict[str, Any]:
        """A body whose ``instances`` are rows of a table, in the words that MLflow has for such rows."""
        rows = body.get("instances")
        if not isinstance(rows, list) or not rows:
            return body
        others = {name: value for name, value in body.items() if name != "instances"}
        if self.folder._is_signature_from_type_hint():
            return {**others, "inputs": rows}
        if not self.columns or not all(isinstance(kind, DataType) for kind in self.columns.values()):
            return body
        if all(isinstance(row, dict) for row in rows):
            return {**others, "dataframe_records": rows}
        if all(isinstance(row, list) for row in rows):
            if any(len(row) != len(self.columns) for row in rows):
                raise InvalidInput(f"expected rows of {self._expected()}")
            return {**others, "dataframe_split": {"columns": list(self.columns), "data": rows}}
        return body

    def _expected(self) -> str:
        return f"{len(self.columns)} columns ({', '.join(map(repr, self.columns))})"

    def _data(self, request: InferRequest) -> Any:
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
        if self.folder._is_signature_from_type_hint():
            return self._hinted(given)
        if self.schema is not None and self.schema.is_tensor_spec():
            return self._tensors(given)
        if self.schema is None and not is_table:
            named = {name: text_of(name, array) if datatype == "BYTES" else array for name, datatype, array in given}
            return next(iter(named.values())) if len(named) == 1 else self._frame(given)
        return self._frame(given)

    def _hinted(self, given: Sequence[NamedArray]) -> list[Any]:
        """The list that a ``predict`` with a type hint takes: values, or objects by name."""
        if len(given) == 1:
            [(name, datatype, array)] = given
            return list((text_of(name, array) if datatype == "BYTES" else array).reshape(-1).tolist())
        return list(self._frame(given).to_dict("records"))

    def _tensors(self, given: Sequence[NamedArray]) -> Any:
        assert self.schema is not None
        named = {name: text_of(name, array) if datatype == "BYTES" else array for name, datatype, array in given}
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
                    f"input {name!r}: expected rows of {self._expected()}, got shape {list(matrix.shape)}"
                )
            given = [(column, datatype, _lossless(matrix[:, index], kind))
                     for index, (column, kind) in enumerate(self.columns.items())]  # fmt: skip
        plain = [(name, "", self._column(name, datatype, array)) for name, datatype, array in given]
        frame: pandas.DataFrame = columns_of(plain, Known(list(self.columns))).frame("pandas")
        return frame

    def _column(self, name: str, datatype: str, array: Array) -> Array:
        kind = self.columns.get(name)
        if kind is DataType.binary:
            return array
        if kind is not None and not isinstance(kind, DataType):  # arrays, objects and maps
            if datatype != "BYTES":
                return _objects(array.tolist())
            try:
                return _objects([json.loads(each) for each in array.reshape(-1)])
            except (ValueError, TypeError) as error:
                raise InvalidInput(f"input {name!r}: expected JSON in each element: {error}") from None
        return text_of(name, array) if datatype == "BYTES" else array

    def _response(self, request: InferRequest, result: Any) -> InferResponse:
        if isinstance(result, pandas.DataFrame):
            outputs = [_output(str(name), column, True) for name, column in result.items()]
            kind = TABLE
        elif isinstance(result, Mapping):
            outputs = [_output(str(name), value) for name, value in result.items()]
            kind = "dict"
        else:
            outputs = [_output(OUTPUT, result)]
            kind = str((outputs[0].parameters or {})[CONTENT_TYPE])
            asked = [each.name for each in request.request_outputs]
            if len(asked) == 1 and asked[0] in ALIASES | {spec["name"] for spec in self.get_output_types()}:
                outputs[0].name = asked[0]
        return InferResponse(request.id, self.name, outputs, parameters={CONTENT_TYPE: kind})

    def get_input_types(self) -> list[Spec]:
        return _described(self.schema, INPUT)

    def get_output_types(self) -> list[Spec]:
        return _described(self.folder.get_output_schema(), OUTPUT)


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


def _objects(values: Sequence[Any]) -> Array:
    array = np.empty(len(values), object)
    array[:] = values
    return array


def _records(result: Any) -> Any:
    """A Series as MLflow writes it: a table of one column."""
    return pandas.DataFrame(result) if isinstance(result, pandas.Series) else result


def _output(name: str, value: Any, in_table: bool = False) -> InferOutput:
    """An output, with the content type that MLServer gives it. What is no array goes as JSON texts, as there."""
    try:
        array = to_numpy(value)
        is_text = array.dtype.kind == "O" and not isinstance(value, np.ndarray)
        content_type = "str" if is_text else "np"
    except InvalidInput as error:
        if not isinstance(value, list | tuple | pandas.Series):
            raise InferenceError(f"output {name!r}: {error}") from error
        array = _objects([json.dumps(each).encode() for each in value])
        content_type = "pd_json"
    parameters = None if in_table and content_type == "np" else {CONTENT_TYPE: content_type}
    return InferOutput(name, array.shape, datatype_of(array.dtype), array, parameters)


def _status(error: Any) -> int:
    return int(error.get_http_status_code())


def _refusal(error: MlflowException) -> str:
    """The reason why MLflow refuses an input, without the input, which it repeats."""
    _, marker, reason = error.message.rpartition("'. Error: ")
    return _first_line(reason if marker else error.message)[:LONGEST]


def _first_line(text: str) -> str:
    return (text.strip().splitlines() or [""])[0]


def _tell_versions(path: Path, flavor: Mapping[str, Any]) -> None:
    """Tell once that the folder was made by another Python or by other versions of libraries."""
    made = str(flavor.get("python_version", ""))
    others = []
    if made and made.split(".")[:2] != python_version().split(".")[:2]:
        others.append(f"Python {made} (here {python_version()})")
    file = path / "requirements.txt"
    for line in file.read_text().splitlines() if file.is_file() else ():
        if (other := _other_version(line)) is not None:
            others.append(other)
    told = f"{path} was made with {', '.join(others)}: its answers may differ"
    if others and told not in _told:
        _told.add(told)
        logger.warning("%s", told)


def _other_version(line: str) -> str | None:
    """What a line of ``requirements.txt`` wants and what is here; None if that fits."""
    try:
        wanted = Requirement(line.partition("#")[0].strip())
    except InvalidRequirement:  # an option, or an empty line
        return None
    names = ["mlflow", "mlflow-skinny"] if wanted.name == "mlflow" else [wanted.name]
    for name in names:
        try:
            here = version(name)
        except PackageNotFoundError:
            continue
        return None if wanted.specifier.contains(here, prereleases=True) else f"{wanted} (here {here})"
    return None  # a folder also lists what the model does not need; what it does need is missed when it is loaded
