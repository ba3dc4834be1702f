"""Folders of MLflow, made by mlflow-skinny with the libraries themselves, and what ``mlflow.pyfunc`` answers of each."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cloudpickle
import lightgbm
import mlflow
import numpy as np
import pandas
import xgboost
from mlflow.models import infer_signature
from mlflow.pyfunc import PythonModel
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema, TensorSpec
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import RandomForestClassifier
from sklearn.impute import SimpleImputer
from sklearn.linear_model import ElasticNet, LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder

from tests.runtimes.model_files import COLUMNS, ROWS, SPECIES, X, Y

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # the server knows no tests

PINS = ["scikit-learn"]  # else MLflow loads each model once more to find what it needs
FRAME = pandas.DataFrame(X, columns=COLUMNS)
QUESTIONS = pandas.DataFrame(ROWS, columns=COLUMNS)


class Greeter(PythonModel):
    """Text and numbers, a column that may be left out, dates, and a parameter."""

    def predict(self, context, model_input, params=None) -> Any:
        mark = (params or {}).get("mark", "!")
        nights = model_input["nights"] if "nights" in model_input else pandas.Series(0, model_input.index)
        return pandas.DataFrame(
            {
                "greeting": [f"{'nobody' if pandas.isna(name) else name}{mark}" for name in model_input["name"]],
                "leaves": (model_input["comes"] + pandas.to_timedelta(nights.fillna(0), unit="D")).dt.day,
            }
        )


class Doubler(PythonModel):
    """Named tensors, and a dict of arrays."""

    def predict(self, context, model_input, params=None) -> Any:
        return {"twice": model_input["x"] * 2, "sum": model_input["x"].sum(axis=1) + model_input["y"]}


class Unsigned(PythonModel):
    """No signature: it says what it got."""

    def predict(self, context, model_input, params=None) -> Any:
        if isinstance(model_input, pandas.DataFrame):
            return [f"{name} {value}" for name, column in model_input.items() for value in column]
        return [f"{type(value).__name__} {value}" for value in np.asarray(model_input).reshape(-1).tolist()]


class Faulty(PythonModel):
    """Fails by a fault of its own."""

    def predict(self, context, model_input, params=None) -> Any:
        raise KeyError("a fault of the author")


def wine(path: str) -> None:
    """As in MLServer's and KServe's example: numbers by name, and a named output."""
    quality = pandas.DataFrame({"quality": Y})
    model = ElasticNet(alpha=0.01, random_state=42).fit(FRAME, quality)
    mlflow.sklearn.save_model(model, path, signature=infer_signature(FRAME, quality), pip_requirements=PINS)


def flowers(path: str) -> None:
    model = LogisticRegression(max_iter=500).fit(FRAME, SPECIES)
    mlflow.sklearn.save_model(
        model, path, signature=infer_signature(FRAME, model.predict(FRAME)), pip_requirements=PINS
    )


def trees(path: str) -> None:
    mlflow.xgboost.save_model(
        xgboost.XGBRegressor(n_estimators=10).fit(FRAME, Y),
        path,
        signature=infer_signature(FRAME),
        pip_requirements=PINS,
    )


def leaves(path: str) -> None:
    data = lightgbm.Dataset(FRAME, Y)
    model = lightgbm.train({"objective": "regression", "verbose": -1}, data, 10)
    mlflow.lightgbm.save_model(model, path, signature=infer_signature(FRAME), pip_requirements=PINS)


def mixed(path: str) -> None:
    """A pipeline on text and numbers with gaps."""
    table = pandas.DataFrame({"city": ["Paris", "Rome", "Oslo"] * 20, "rooms": [1.0, 2.0, np.nan] * 20})
    prepared = ColumnTransformer(
        [("text", OneHotEncoder(handle_unknown="ignore"), ["city"]), ("numbers", SimpleImputer(), ["rooms"])]
    )
    model = make_pipeline(prepared, RandomForestClassifier(5, random_state=0)).fit(table, ["a", "b", "c"] * 20)
    signature = infer_signature(table, model.predict(table))
    mlflow.sklearn.save_model(
        model, path, signature=signature, serialization_format="cloudpickle", pip_requirements=PINS
    )


def matrix(path: str) -> None:
    """A signature of one tensor without a name."""
    model = LogisticRegression(max_iter=500).fit(X, Y)
    mlflow.sklearn.save_model(model, path, signature=infer_signature(X, model.predict(X)), pip_requirements=PINS)


def greeter(path: str) -> None:
    inputs = Schema([
        ColSpec(DataType.string, "name"), ColSpec(DataType.datetime, "comes"),
        ColSpec(DataType.long, "nights", required=False),
    ])  # fmt: skip
    outputs = Schema([ColSpec(DataType.string, "greeting"), ColSpec(DataType.long, "leaves")])
    params = ParamSchema([ParamSpec("mark", DataType.string, "!")])
    signature = mlflow.models.ModelSignature(inputs, outputs, params)
    mlflow.pyfunc.save_model(path, python_model=Greeter(), signature=signature, pip_requirements=PINS)


def doubler(path: str) -> None:
    inputs = Schema([TensorSpec(np.dtype("float32"), (-1, 2), "x"), TensorSpec(np.dtype("float32"), (-1,), "y")])
    mlflow.pyfunc.save_model(
        path, python_model=Doubler(), signature=mlflow.models.ModelSignature(inputs), pip_requirements=PINS
    )


def unsigned(path: str) -> None:
    mlflow.pyfunc.save_model(path, python_model=Unsigned(), pip_requirements=PINS)


def faulty(path: str) -> None:
    mlflow.pyfunc.save_model(path, python_model=Faulty(), pip_requirements=PINS)


MAKERS: dict[str, Callable[[str], None]] = {
    make.__name__: make
    for make in (wine, flowers, trees, leaves, mixed, matrix, greeter, doubler, unsigned, faulty)
}  # fmt: skip


def made(folder: Path) -> Path:
    """A model directory with a folder of every kind."""
    for name, make in MAKERS.items():
        make(str(folder / name))
    return folder
