"""Whose fault it is if a library refuses its input: the client's, if it was the client's table; else the model's."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas
import pytest
from sklearn.compose import ColumnTransformer, make_column_transformer
from sklearn.decomposition import PCA
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, StandardScaler

from mpserve.errors import InferenceError, InvalidInput
from mpserve.serving.models import faults
from mpserve.serving.models.faults import blame
from mpserve.serving.models.refusals import words_of
from mpserve.serving.models.tensor_model import FunctionModel
from tests.asgi import serving
from tests.cases import each

catboost, lightgbm, onnxruntime, skl2onnx, xgboost = map(
    pytest.importorskip, ("catboost", "lightgbm", "onnxruntime", "skl2onnx", "xgboost")
)

X = np.random.default_rng(0).random((40, 4))
Y = (X[:, 0] > 0.5).astype(int)
FRAME = pandas.DataFrame(X, columns=list("abcd"))
CITIES = pandas.DataFrame({"city": ["P", "Q"] * 20, "n": range(40)})
THREE, FLAT, TEXT, GAP = X[:1, :3].copy(), X[0].copy(), np.array([["a"] * 4], object), np.array([[1, 2, 3, np.nan]])


def onnx() -> Callable[[Any], Any]:
    model = skl2onnx.convert_sklearn(
        LogisticRegression().fit(X, Y), initial_types=[("X", skl2onnx.common.data_types.FloatTensorType([None, 4]))]
    )
    session = onnxruntime.InferenceSession(model.SerializeToString())
    return lambda x: session.run(None, {"X": x})


PIPELINE = make_pipeline(StandardScaler(), LogisticRegression()).fit(X, Y)
NAMED = make_pipeline(StandardScaler(), LogisticRegression()).fit(FRAME, Y)
ENCODED = make_pipeline(
    ColumnTransformer([("city", OneHotEncoder(), ["city"])], remainder="passthrough"), LogisticRegression()
).fit(CITIES, [0, 1] * 20)
XGB = xgboost.XGBClassifier(n_estimators=2).fit(X, Y)
LGB = lightgbm.LGBMClassifier(n_estimators=2, verbose=-1).fit(X, Y)
CAT = catboost.CatBoostClassifier(iterations=2, verbose=0, allow_writing_files=False).fit(X, Y)
CATS = catboost.CatBoostClassifier(iterations=2, verbose=0, allow_writing_files=False, cat_features=["city"])
CATS.fit(CITIES[["city", "n"]], [0, 1] * (len(CITIES) // 2))
IMPUTED = make_pipeline(make_column_transformer((SimpleImputer(), ["n"])), LogisticRegression()).fit(
    CITIES, [0, 1] * (len(CITIES) // 2)
)
ONNX = onnx()


def fault(predict: Callable[[Any], Any], given: Any) -> tuple[type, str]:
    with pytest.raises(Exception) as caught:
        predict(given)
    found = blame(caught.value, "m", "predict", [given])
    return type(found).__mro__[1] if isinstance(found, InvalidInput) else type(found), str(found)


@each("predict, given, says", [
    (PIPELINE.predict, THREE, "X has 3 features, but StandardScaler is expecting 4 features as input."),
    (PIPELINE.predict, FLAT, "Expected 2D array, got 1D array instead:"),
    (PIPELINE.predict, TEXT, "could not convert string to float: 'a'"), (PIPELINE.predict, GAP, "Input X contains NaN."),
    (lambda x: {"p": PIPELINE.predict_proba(x)}, THREE, "X has 3 features"),
    (NAMED.predict, FRAME[["a", "b"]], "The feature names should match those that were passed during fit."),
    (ENCODED.predict, CITIES[["n"]], "columns are missing: {'city'}"),
    (ENCODED.predict, CITIES.assign(city="R"), "Found unknown categories ['R'] in column 0"),
    (XGB.predict, THREE, "Feature shape mismatch, expected: 4, got 3"), (XGB.predict, TEXT, "could not convert string"),
    (LGB.predict, THREE, "X has 3 features"), (LGB.booster_.predict, THREE, "The number of features in data (3)"),
    (LGB.booster_.predict, FLAT, "must be 2 dimensional"), (CAT.predict, THREE, "Feature 3 is present in model but not in pool"),
    (CATS.predict, CITIES.assign(city=1.5)[["city", "n"]], "Invalid type for cat_feature"),
    (CATS.predict, CITIES.assign(n="q")[["city", "n"]], "Bad value for num_feature"),
    (IMPUTED.predict, CITIES.assign(n="q"), "Cannot use mean strategy with non-numeric data:"),
    (ONNX, np.float32(THREE), "INVALID_ARGUMENT : Got invalid dimensions for input: X"), (ONNX, X, "Unexpected input data type"),
    (ONNX, np.float32(FLAT), "Invalid rank for input: X"),
])  # fmt: skip
def test_a_table_that_reached_the_library_as_it_was_sent_is_the_clients_fault(
    predict: Any, given: Any, says: str
) -> None:
    kind, words = fault(predict, given)
    assert (kind, says in words, "\n" in words) == (InvalidInput, True, False), words


def broken(step: Callable[[Any], Any], columns: int) -> Callable[[Any], Any]:
    last = LogisticRegression().fit(X[:, :columns], Y)
    pipeline = make_pipeline(FunctionTransformer(step), last)
    pipeline.steps[-1] = (pipeline.steps[-1][0], last)
    predict: Callable[[Any], Any] = pipeline.predict
    return predict


def after_pca() -> Callable[[Any], Any]:
    pipeline = make_pipeline(PCA(2), LogisticRegression()).fit(X, Y)
    pipeline[-1].coef_ = np.zeros((1, 9))  # damaged: whatever the client sends, it fails
    predict: Callable[[Any], Any] = pipeline.predict
    return predict


@each("predict, given", [
    (lambda x: PIPELINE.predict(x[:, :3]), X), (lambda x: PIPELINE.predict(x[0]), X), (lambda x: XGB.predict(x[:, :3]), X),
    (lambda x: PIPELINE.predict(x.astype(str) + "?"), X), (lambda x: int("a"), THREE), (lambda x: x[99], X),
    (broken(lambda x: x[:, :2], 4), X), (broken(lambda x: 1 / 0, 4), THREE), (after_pca(), X),
    (lambda x: ONNX(x[:, :3]), np.float32(X)),
    (lambda x: LogisticRegression().predict(x), X), (lambda x: PIPELINE.predict(np.log(x - 2)), X),
])  # fmt: skip
@pytest.mark.filterwarnings("ignore")
def test_a_table_that_the_models_own_code_made_is_the_models_fault(predict: Any, given: Any) -> None:
    kind, words = fault(predict, given)
    assert kind is InferenceError, words


async def test_a_client_reads_the_librarys_words_and_the_log_has_the_traceback(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(faults, "_told", [])
    caplog.set_level("DEBUG")
    model = FunctionModel("m", lambda model, x: model.predict(x), lambda: PIPELINE)
    async with serving(model, max_batch_size=4) as client:
        v1 = await client.post("/v1/models/m:predict", json={"instances": THREE.tolist()})
        tensor = {"name": "x", "shape": [1, 3], "datatype": "FP64", "data": THREE.ravel().tolist()}
        v2 = await client.post("/v2/models/m/infer", json={"inputs": [tensor]})
        good = await client.post("/v1/models/m:predict", json={"instances": X.tolist()[:4]})
    for answer in (v1, v2):
        assert (answer.status_code, list(answer.json().values())) == (
            400, ["X has 3 features, but StandardScaler is expecting 4 features as input."],
        )  # fmt: skip
    assert good.json() == {"predictions": PIPELINE.predict(X[:4]).tolist()}
    refusals = [record for record in caplog.records if "the model's library refused the input" in record.getMessage()]
    # A client cannot fill the log: the second refusal comes soon after the first.
    assert [record.levelname for record in refusals] == ["WARNING", "DEBUG"]
    assert "in _check_n_features" in caplog.text


def predict_table(model: Any, table: pandas.DataFrame) -> Any:
    return model.predict(table)


def predict_arrays(model: Any, *, x: Any) -> Any:
    return model.predict(x)


R, P, Q = (("BYTES", np.array([letter], object)) for letter in (b"R", b"P", b"q"))


@each("predict, model, inputs, says", [
    (predict_table, ENCODED, [("city", *R), ("n", "INT64", np.array([1]))], "Found unknown categories"),
    (predict_table, IMPUTED, [("n", *Q), ("city", *P)], "non-numeric"),
    (predict_arrays, PIPELINE, [("x", "FP64", THREE)], "X has 3 features"),
])  # fmt: skip
def test_a_table_that_was_made_of_the_clients_columns_is_the_clients(
    predict: Any, model: Any, inputs: Any, says: str
) -> None:
    served = FunctionModel("m", predict, lambda: model)
    served.preload()
    given = served.binding()(inputs)
    with pytest.raises(Exception) as caught:
        served.invoke(given)
    found = blame(caught.value, "m", "predict", given)
    assert isinstance(found, InvalidInput), found
    assert says in str(found)


@each("said, words", [
    ("expected int/float/str, got NaN", "expected int/float/str, got NaN"),
    ("[12:34:56] /workspace/src/data.cc:123: Check failed: a\nStack trace:", "Check failed: a"),
    ("no file /home/me/model.json here", "no file ... here"),
    ("Cannot use mean:\n  could not convert 'q'\nmore", "Cannot use mean: could not convert 'q'"),
    ("\n  first \n second", "first"), ("first:", "first:"), ("x" * 999, "x" * 300), (KeyError(), "KeyError"),
])  # fmt: skip
def test_a_librarys_words_are_one_line_without_paths_of_the_server(said: Any, words: str) -> None:
    assert words_of(said) == words
