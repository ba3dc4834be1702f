"""A model of each format of files, made by its library itself, with what the library answers, and what is refused."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import mlflow
import numpy as np
import onnx
import onnxruntime
import pandas
import skops.io
import spacy
import torch
from skl2onnx import to_onnx
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder
from transformers import pipeline

from tests.runtimes import huggingface_folders, mlflow_folders, onnx_files
from tests.runtimes.model_files import (
    COLUMNS,
    ROWS,
    Made,
    X,
    Y,
    cat,
    cat_categories,
    labels,
    lgb,
    lgb_categories,
    place,
    safe,
    table,
    xgb_booster,
    xgb_categories,
)

ZONES = ["Oslo", "Paris", "Rome"]
PEOPLE = [["Paris", "pro", 50, 41000.5], ["Rome", None, 23, 52000.0]]
PLACES = [["Rome", 40.5], ["Oslo", 55.25], ["Paris", 60.5]]
ZONE_ROWS = [["Rome"], ["Oslo"]]
FLATS = [["Paris", 2.0], ["Rome", None]]
TABLE = [["Paris", 40.5, 9.0], ["Rome", 60.5, None]]
SINGLES = ROWS.astype(np.float32)
TEXTS = np.array(
    [
        " ".join(np.random.default_rng(seed).choice(huggingface_folders.WORDS, 3 + seed % 6))
        for seed in range(len(ROWS))
    ],
    dtype=object,
)

Predict = Callable[[Any], Any]
"""What the library itself answers to rows, as an array."""
Text = tuple[str, Callable[[Path], Predict], list[list[Any]]]
"""A model of which a column is text: its name, what makes its file, and rows."""


def file_of(make: Callable[[Path], Made]) -> Callable[[Path], Predict]:
    return lambda folder: make(folder).outputs["predict"]


def safe_text(folder: Path) -> Predict:
    rows = np.array([[zone] for zone in ZONES], dtype=object)
    model = make_pipeline(OneHotEncoder(), LogisticRegression()).fit(rows, ["a", "b", "c"])
    skops.io.dump(model, place(folder, "safe_text/model.skops"))
    predict: Predict = model.predict
    return predict


def table_text(folder: Path) -> Predict:
    predict = table(folder).outputs["predict"]
    return lambda rows: predict(pandas.DataFrame(rows, columns=["city", "plan", "age", "income"]))


def of_categories(make: Any, file: str) -> Callable[[Path], Predict]:
    kinds = object if file.endswith("cbm") else pandas.CategoricalDtype(ZONES)

    def made(folder: Path) -> Predict:
        trained = make(ZONES, place(folder, file))
        return lambda rows: trained.predict(pandas.DataFrame(rows, columns=["zone", "age"]).astype({"zone": kinds}))

    return made


def onnx_line(folder: Path) -> Predict:
    onnx.save(to_onnx(LinearRegression().fit(X, Y), SINGLES[:1]), place(folder, "onnx_line/model.onnx"))
    session = onnxruntime.InferenceSession(folder / "onnx_line/model.onnx")
    return lambda rows: session.run(None, {"X": rows})[0]


def onnx_text(folder: Path) -> Predict:
    (folder / "onnx_table").mkdir()
    onnx_files.table(folder / "onnx_table")
    session = onnxruntime.InferenceSession(folder / "onnx_table/table.onnx")

    def predict(rows: Any) -> Any:
        city, age, income = zip(*rows, strict=True)
        feeds = {
            "city": np.array(city, object)[:, None], "age": np.array(age, np.float32)[:, None],
            "income": np.array(income, np.float32)[:, None],
        }  # fmt: skip
        return session.run(["label"], feeds)[0]

    return predict


def network() -> Any:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2)).eval()


def of_network(module: Any) -> Predict:
    @torch.inference_mode()
    def predict(rows: Any) -> Any:
        return module(torch.from_numpy(rows)).numpy()

    return predict


def script(folder: Path) -> Predict:
    torch.jit.save(torch.jit.script(network()), place(folder, "script/model.pt"))
    return of_network(torch.jit.load(folder / "script/model.pt"))


def export(folder: Path) -> Predict:
    rows = (torch.zeros(2, 4),)
    program = torch.export.export(network(), rows, dynamic_shapes=({0: torch.export.Dim("batch")},))
    torch.export.save(program, place(folder, "export/model.pt2"))
    return of_network(program.module())


def of_mlflow(make: Callable[[str], None], columns: Any = COLUMNS) -> Callable[[Path], Predict]:
    def made(folder: Path) -> Predict:
        make(str(folder / make.__name__))
        loaded = mlflow.pyfunc.load_model(str(folder / make.__name__), suppress_warnings=True)
        return lambda rows: loaded.predict(pandas.DataFrame(rows, columns=columns))

    return made


def classes(folder: Path) -> Predict:
    classify = pipeline("text-classification", model=str(huggingface_folders.texts(folder / "classes")), device="cpu")
    return lambda rows: np.array([each["label"] for each in classify(rows.tolist(), batch_size=64)], object)


def documents(folder: Path) -> Predict:
    nlp = spacy.blank("en")
    nlp.add_pipe("sentencizer")
    patterns = [{"label": "CITY", "pattern": city} for city in ("paris", "rome")]
    nlp.add_pipe("entity_ruler").add_patterns(patterns)  # type: ignore[attr-defined]
    nlp.to_disk(folder / "documents")
    return lambda rows: np.array([doc.to_json() for doc in nlp.pipe(rows.tolist())], object)


class Refusal(NamedTuple):
    """How a request is refused: the status, and words of the error."""

    status: int
    words: str


class Format(NamedTuple):
    """A row of the table.

    Attributes:
        name: of the model.
        make: makes a file of a model of the rows, and gives what its library answers.
        text: a model that takes text; "own": the rows are texts.
        rows: what the model is asked for.
        input: the name of its input.
        batch: whether requests are joined.
        refusals: what is refused, and how, by the columns of the table.
        read: what an element of a V2 answer is.
    """

    name: str
    make: Callable[[Path], Predict]
    text: Text | str | None = None
    rows: Any = ROWS
    input: str = "input-0"
    batch: str = "yes"
    refusals: Mapping[str, Refusal] = {}
    read: Callable[[Any], Any] = lambda element: element

    @property
    def datatype(self) -> str:
        return {"f8": "FP64", "f4": "FP32", "O": "BYTES"}[self.rows.dtype.str[1:]]


GAPS = "expected numbers, booleans or strings, got float and null"
NO_TEXT = "expected numbers, booleans or strings, got null and str"
WRONG, MISSING, TEXT = "Wrong input", "Missing values", "Text"
THREE = {WRONG: Refusal(400, "expected rows of 4 columns, got shape [1000, 3]")}
FORMATS = {
    "scikit-learn": Format(
        "labels", file_of(labels), ("table", table_text, PEOPLE),
        refusals={**THREE, MISSING: Refusal(400, "Input X contains NaN.")},
    ),
    "skops": Format(
        "safe", file_of(safe), ("safe_text", safe_text, ZONE_ROWS),
        refusals={**THREE, MISSING: Refusal(400, "Input X contains NaN.")},
    ),
    "XGBoost": Format(
        "xgb_booster", file_of(xgb_booster),
        ("xgb_text", of_categories(xgb_categories, "xgb_text/model.json"), PLACES), refusals=THREE,
    ),
    "LightGBM": Format(
        "lgb", file_of(lgb), ("lgb_text", of_categories(lgb_categories, "lgb_text/model.txt"), PLACES), refusals=THREE
    ),
    "CatBoost": Format(
        "cat", file_of(cat), ("cat_text", of_categories(cat_categories, "cat_text/model.cbm"), PLACES), refusals=THREE
    ),
    "MLflow, scikit-learn": Format(
        "flowers", of_mlflow(mlflow_folders.flowers),
        ("mixed", of_mlflow(mlflow_folders.mixed, ["city", "rooms"]), FLATS), batch="no",
        refusals={
            WRONG: Refusal(400, "expected rows of 4 columns ('sepal_length', 'sepal_width', 'petal_length', 'petal_width')"),
            MISSING: Refusal(400, "Input X contains NaN."),
        },
    ),
    "MLflow, XGBoost": Format(
        "trees", of_mlflow(mlflow_folders.trees), batch="no",
        refusals={
            WRONG: Refusal(400, "expected rows of 4 columns ('sepal_length', 'sepal_width', 'petal_length', 'petal_width')"),
            TEXT: Refusal(400, "could not convert string to float: 'Paris'"),
        },
    ),
    "ONNX": Format(
        "onnx_line", onnx_line, ("onnx_table", onnx_text, TABLE), SINGLES, "X",
        refusals={
            WRONG: Refusal(400, "input 'X': expected shape [-1, 4], got [1000, 3]"),
            MISSING: Refusal(400, f"input 'X': {GAPS}"),
        },
    ),
    "TorchScript": Format(
        "script", script, None, SINGLES,
        refusals={
            WRONG: Refusal(500, "mat1 and mat2 shapes cannot be multiplied (1000x3 and 4x8)"),
            MISSING: Refusal(400, f"input 0: {GAPS}"),
            TEXT: Refusal(400, "input '0': expected numbers, got BYTES"),
        },
    ),
    "torch.export": Format(
        "export", export, None, SINGLES, "input",
        refusals={
            WRONG: Refusal(400, "input 'input': expected shape [-1, 4], got [1000, 3]"),
            MISSING: Refusal(400, f"input 'input': {GAPS}"),
            TEXT: Refusal(400, "input 'input': expected numbers for FP32, got a string"),
        },
    ),
    "Hugging Face": Format(
        "classes", classes, "own", TEXTS,
        refusals={
            WRONG: Refusal(400, "input 'input-0': expected text, BYTES, got FP64"),
            MISSING: Refusal(400, f"input 'text': {NO_TEXT}"),
        },
    ),
    "spaCy": Format(
        "documents", documents, "own", TEXTS, read=json.loads,
        refusals={
            WRONG: Refusal(400, "input 'input-0': expected text, BYTES, got FP64"),
            MISSING: Refusal(400, f"input 'text': {NO_TEXT}"),
        },
    ),
}  # fmt: skip
