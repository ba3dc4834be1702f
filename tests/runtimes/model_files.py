"""Files of models of tables, made by the libraries themselves, with what the libraries answer."""

import functools
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import catboost
import joblib
import lightgbm
import numpy as np
import pandas
import skops.io
import xgboost
from sklearn.compose import ColumnTransformer
from sklearn.datasets import load_iris
from sklearn.ensemble import RandomForestClassifier
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from mpserve.config.settings import Settings
from mpserve.serving.repository.loader import from_target

X, Y = load_iris(return_X_y=True)
SPECIES = load_iris().target_names[Y]
COLUMNS = ["sepal_length", "sepal_width", "petal_length", "petal_width"]
ROWS = np.random.default_rng(7).uniform(0.0, 8.0, (1000, X.shape[1]))

Outputs = dict[str, Callable[[Any], Any]]


class Made(NamedTuple):
    """A file in a model directory, its outputs as the library gives them (the first is the default), and its metadata."""

    file: str
    outputs: Outputs
    datatypes: dict[str, str]


@functools.cache
def made(folder: Path) -> dict[str, Made]:
    """A model directory with a file of every kind, by the model's name."""
    return {name: make(folder) for name, make in (MAKERS | OF_TABLES).items()}


def loaded(file: Path, **options: Any) -> Any:
    [source] = from_target(str(file), None, Settings(**options))
    model = source.obtain()
    model.native_threads = 1
    model.load()
    return model


def place(folder: Path, file: str) -> str:
    (folder / file).parent.mkdir(parents=True)
    return str(folder / file)


def labels(folder: Path) -> Made:
    model = LogisticRegression(max_iter=500).fit(X, SPECIES)
    joblib.dump(model, place(folder, "labels/model.joblib"))
    outputs = {
        "predict": model.predict,
        "predict_proba": model.predict_proba,
        "decision_function": model.decision_function,
    }
    return Made(
        "labels/model.joblib", outputs, {"predict": "BYTES", "predict_proba": "FP64", "decision_function": "FP64"}
    )


def forest(folder: Path) -> Made:
    model = RandomForestClassifier(20, random_state=0, n_jobs=-1).fit(X, Y)
    Path(place(folder, "forest@2/model.pkl")).write_bytes(pickle.dumps(model))
    outputs = {"predict": model.predict, "predict_proba": model.predict_proba}
    return Made("forest@2/model.pkl", outputs, {"predict": "INT64", "predict_proba": "FP64"})


def safe(folder: Path) -> Made:
    model = LinearRegression().fit(X, Y)
    skops.io.dump(model, place(folder, "safe/1/model.skops"))
    return Made("safe/1/model.skops", {"predict": model.predict}, {"predict": "FP64"})


def scaler(folder: Path) -> Made:
    model = StandardScaler().fit(X)
    joblib.dump(model, place(folder, "scaler/scaler.pickle"))
    return Made("scaler/scaler.pickle", {"transform": model.transform}, {"transform": "FP64"})


def xgb_booster(folder: Path) -> Made:
    model = xgboost.train({"objective": "multi:softprob", "num_class": 3}, xgboost.DMatrix(X, Y), 10)
    Path(place(folder, "xgb_booster/model.bst")).write_bytes(model.save_raw("ubj"))
    return Made(
        "xgb_booster/model.bst", {"predict": lambda rows: model.predict(xgboost.DMatrix(rows))}, {"predict": "FP32"}
    )


def xgb_classes(folder: Path) -> Made:
    model = xgboost.XGBClassifier(n_estimators=10).fit(X, Y)
    model.save_model(place(folder, "xgb_classes/model.json"))
    outputs = {"predict": model.predict, "predict_proba": model.predict_proba}
    return Made("xgb_classes/model.json", outputs, {"predict": "INT64", "predict_proba": "FP32"})


def xgb_binary(folder: Path) -> Made:
    """Stopped early, so that its best iteration is not its last."""
    model = xgboost.XGBClassifier(n_estimators=60, early_stopping_rounds=1)
    model.fit(X[::2], Y[::2] == 2, eval_set=[(X[1::2], Y[1::2] == 2)], verbose=False)
    assert model.best_iteration + 1 < len(model.get_booster().get_dump())
    model.save_model(place(folder, "xgb_binary/model.ubj"))
    outputs = {"predict": model.predict, "predict_proba": model.predict_proba}
    return Made("xgb_binary/model.ubj", outputs, {"predict": "INT64", "predict_proba": "FP32"})


def xgb_linear(folder: Path) -> Made:
    model = xgboost.XGBRegressor(booster="gblinear", n_estimators=10).fit(X, Y)
    model.save_model(place(folder, "xgb_linear/model.json"))
    return Made("xgb_linear/model.json", {"predict": model.predict}, {"predict": "FP32"})


def lgb(folder: Path) -> Made:
    model = lightgbm.train({"objective": "multiclass", "num_class": 3, "verbose": -1}, lightgbm.Dataset(X, Y), 10)
    model.save_model(place(folder, "lgb/model.bst"))
    return Made("lgb/model.bst", {"predict": model.predict}, {"predict": "FP64"})


def cat(folder: Path) -> Made:
    model = catboost.CatBoostClassifier(iterations=10, verbose=0, allow_writing_files=False).fit(X, SPECIES)
    model.save_model(place(folder, "cat/model.cbm"))
    outputs = {"predict": lambda rows: model.predict(rows).reshape(-1), "predict_proba": model.predict_proba}
    return Made("cat/model.cbm", outputs, {"predict": "BYTES", "predict_proba": "FP64"})


def cat_counts(folder: Path) -> Made:
    """Its regressor answers with the exponent of what the trees say."""
    model = catboost.CatBoostRegressor(iterations=10, verbose=0, allow_writing_files=False, loss_function="Poisson")
    model.fit(X, Y)
    model.save_model(place(folder, "cat_counts/model.cbm"))
    return Made("cat_counts/model.cbm", {"predict": model.predict}, {"predict": "FP64"})


def lgb_named(folder: Path) -> Made:
    data = lightgbm.Dataset(pandas.DataFrame(X, columns=COLUMNS), Y)
    model = lightgbm.train({"objective": "regression", "verbose": -1}, data, 10)
    model.save_model(place(folder, "lgb_named/model.txt"))
    return Made("lgb_named/model.txt", {"predict": model.predict}, {"predict": "FP64"})


def xgb_named(folder: Path) -> Made:
    model = xgboost.XGBRegressor(n_estimators=10).fit(pandas.DataFrame(X, columns=COLUMNS), Y)
    model.save_model(place(folder, "xgb_named/model.json"))
    return Made("xgb_named/model.json", {"predict": model.predict}, {"predict": "FP32"})


def table(folder: Path) -> Made:
    """A pipeline on text and numbers with gaps."""
    rng = np.random.default_rng(0)
    frame = pandas.DataFrame(
        {
            "city": rng.choice(["Paris", "Rome", "Oslo"], 400),
            "plan": rng.choice(["free", "pro", None], 400),
            "age": rng.integers(18, 80, 400),
            "income": np.where(rng.random(400) < 0.1, np.nan, rng.normal(50000, 9000, 400)),
        }
    )
    target = np.where((frame.age > 40) & (frame.plan == "pro"), "buys", "leaves")
    prepared = ColumnTransformer([
        ("text", OneHotEncoder(handle_unknown="ignore"), ["city", "plan"]),
        ("numbers", make_pipeline(SimpleImputer(), StandardScaler()), ["age", "income"]),
    ])  # fmt: skip
    model = make_pipeline(prepared, RandomForestClassifier(20, random_state=0)).fit(frame, target)
    joblib.dump(model, place(folder, "table/model.joblib"))
    return Made("table/model.joblib", {"predict": model.predict}, {})


def texts(folder: Path) -> Made:
    model = make_pipeline(TfidfVectorizer(), LogisticRegression())
    model.fit(["a fine day", "a good night", "an awful day", "ein schlechter Tag"], ["+", "+", "-", "-"])
    joblib.dump(model, place(folder, "texts/model.joblib"))
    return Made("texts/model.joblib", {"predict": model.predict}, {})


def categories(zones: Any) -> Any:
    """A table with a column of categories, and what to predict of it."""
    rng = np.random.default_rng(0)
    frame = pandas.DataFrame({"zone": rng.choice(zones, 300), "age": rng.normal(50, 9, 300)})
    return frame, (frame.zone == zones[1]) * 10.0 + frame.age


def lgb_categories(zones: Any, file: str) -> Any:
    frame, target = categories(zones)
    data = lightgbm.Dataset(frame.astype({"zone": "category"}), target)
    model = lightgbm.train({"objective": "regression", "verbose": -1}, data, 10)
    model.save_model(file)
    return model


def xgb_categories(zones: Any, file: str) -> Any:
    frame, target = categories(zones)
    model = xgboost.XGBRegressor(n_estimators=10, enable_categorical=True)
    model.fit(frame.astype({"zone": "category"}), target).save_model(file)
    return model


def cat_categories(zones: Any, file: str) -> Any:
    model = catboost.CatBoostRegressor(iterations=10, verbose=0, cat_features=["zone"], allow_writing_files=False)
    model.fit(*categories(zones)).save_model(file)
    return model


OF_TABLES = {make.__name__: make for make in (table, texts, lgb_named, xgb_named)}
MAKERS = {
    make.__name__: make
    for make in (
        labels, forest, safe, scaler, xgb_booster, xgb_classes, xgb_binary, xgb_linear, lgb, cat, cat_counts,
    )
}  # fmt: skip
