"""Serves folders of MLflow (``MLmodel``): what their ``python_function`` flavor predicts, as ``mlflow models serve`` has it.

MLflow itself loads the model, reads V1's bodies and enforces the signature, so a folder of any flavor answers as it does there.
"""

import logging
from collections.abc import Mapping
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any

from mlflow.exceptions import MlflowException
from mlflow.pyfunc import load_model
from mlflow.types import DataType

from mpserve.errors import ConfigurationError, InvalidInput, UnsupportedMediaType
from mpserve.protocol.datatypes import not_utf8
from mpserve.protocol.messages import InferRequest
from mpserve.runtimes.mlflow.answers import records_of, response_of
from mpserve.runtimes.mlflow.folder import read, scoring, tell_versions
from mpserve.runtimes.mlflow.signature import Signature
from mpserve.serving.models.model import Model, Spec
from mpserve.serving.models.refusals import words_of

logger = logging.getLogger(__name__)

FORKS_WELL = frozenset({"mlflow.sklearn", "mlflow.xgboost", "mlflow.lightgbm", "mlflow.catboost", "mlflow.statsmodels"})
"""Loaders whose models all workers share. Other libraries, and code of the folder, may start threads that a fork would lose."""

CSV, PARQUET = "text/csv", "application/vnd.apache.parquet"


class MLflowModel(Model):
    """Serves one folder. V1 takes MLflow's own bodies; V2 takes an input for each column, or a tensor."""

    platform = "mlflow"

    def __init__(self, name: str, path: Path) -> None:
        super().__init__(name)
        self.path = path
        self.folder, self.flavor = read(path)
        self.signature = Signature(self.folder)
        self.served: Any = None

    def preload(self) -> None:
        tell_versions(self.path, self.flavor)
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

    def takes_missing(self) -> bool:
        """The signature says which columns may have missing values, and MLflow refuses others."""
        return True

    def predict(self, payload: Any, headers: Any = None) -> Any:
        """Answer V1, whose payload is one of MLflow's bodies, or V2. Raises InvalidInput if MLflow refuses the input."""
        try:
            if isinstance(payload, InferRequest):
                given = {k: v for k, v in (payload.parameters or {}).items() if k in self.signature.parameters}
                result = self.served.predict(self.signature.data(payload), params=given or None)
                return response_of(payload, result, self.name, self.signature.output_names)
            data, params, is_bare = self._parsed(payload, headers or {})
            result = records_of(self.served.predict(data, params=params))
            return result if is_bare else {"predictions": result}
        except MlflowException as error:
            if _status(error) != 400:
                raise
            logger.info("model %s refused an input", self.name, exc_info=True)
            raise InvalidInput(f"the model refused the input: {_refusal(error)}") from error

    def _parsed(self, payload: Any, headers: Mapping[str, str]) -> tuple[Any, Any, bool]:
        """The data and parameters in a V1 body, and whether the answer is to stand alone, as in bodies for language models."""
        if isinstance(payload, dict):
            parsed = scoring._parse_json_data(self._as_columns(payload), self.folder, self.signature.schema)
            return parsed.data, parsed.params, parsed.is_unified_llm_input
        media_type = headers.get("content-type", "").partition(";")[0].strip().lower()
        if media_type == CSV:
            try:
                text = bytes(payload).decode()
            except UnicodeDecodeError as error:
                raise InvalidInput(f"the body {not_utf8(error)}") from None
            return scoring.parse_csv_input(StringIO(text), self.signature.schema), None, False
        if media_type == PARQUET:
            return scoring.parse_parquet_input(BytesIO(payload)), None, False
        raise UnsupportedMediaType(f"the body is {media_type}, expected JSON, {CSV} or {PARQUET}")

    def _as_columns(self, body: dict[str, Any]) -> dict[str, Any]:
        """A body whose ``instances`` are rows of a table, in the words that MLflow has for such rows."""
        rows = body.get("instances")
        if not isinstance(rows, list) or not rows:
            return body
        others = {name: value for name, value in body.items() if name != "instances"}
        if self.signature.is_type_hint:
            return {**others, "inputs": rows}
        if not self.signature.columns or not all(
            isinstance(kind, DataType) for kind in self.signature.columns.values()
        ):
            return body
        if all(isinstance(row, dict) for row in rows):
            return {**others, "dataframe_records": rows}
        if all(isinstance(row, list) for row in rows):
            if any(len(row) != len(self.signature.columns) for row in rows):
                raise InvalidInput(f"expected rows of {self.signature.expected()}")
            return {**others, "dataframe_split": {"columns": list(self.signature.columns), "data": rows}}
        return body

    def get_input_types(self) -> list[Spec]:
        return self.signature.inputs()

    def get_output_types(self) -> list[Spec]:
        return self.signature.outputs()


def _status(error: Any) -> int:
    return int(error.get_http_status_code())


def _refusal(error: MlflowException) -> str:
    """The reason why MLflow refuses an input, without the input, which it repeats."""
    _, marker, reason = error.message.rpartition("'. Error: ")
    return words_of(reason if marker else error)
