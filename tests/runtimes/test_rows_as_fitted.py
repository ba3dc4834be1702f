"""Files of models get the rows that they were fitted on, or the client hears why not: in the process, with real libraries."""

import json
from pathlib import Path
from typing import Any

import catboost
import joblib
import lightgbm
import numpy as np
import pandas
import pytest
import xgboost
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.exceptions import NotFittedError
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import FeatureUnion, make_pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, OrdinalEncoder, StandardScaler, TargetEncoder

from mpserve.errors import ConfigurationError, InferenceError, InvalidInput, NotSupported
from mpserve.http.management.examples import examples_of
from mpserve.protocol.declaration import declared_of
from mpserve.protocol.v1.codec import V1Codec
from mpserve.protocol.v2.codec import V2Codec
from mpserve.serving.models.tensor_model import FunctionModel, Tensor
from tests.runtimes.model_files import loaded

RNG = np.random.default_rng(0)
COUNT = 300
X = RNG.normal(size=(COUNT, 4))


def served(estimator: Any, folder: Path) -> Any:
    joblib.dump(estimator, folder / "model.joblib")
    return loaded(folder / "model.joblib")


def answer(model: Any, body: Any, asked: tuple[str, ...] = ()) -> Any:
    """What the model answers to a body of V1 or V2 JSON."""
    declared = declared_of(model.inputs, model.takes_missing(), model.wants_table())
    codec = V1Codec("null", None) if "instances" in body else V2Codec("null")
    inputs = codec.read(json.dumps(body).encode(), declared, True).arrays(declared)
    result = model.invoke_for(model.binding()(inputs), asked)
    return np.asarray(next(iter(result.values())) if isinstance(result, dict) else result).tolist()


def columns(**named: list[Any]) -> dict[str, Any]:
    """A V2 body with an input for each column."""
    kinds = {str: "BYTES", type(None): "BYTES", bool: "BOOL", int: "INT64", float: "FP64"}
    return {
        "inputs": [
            {"name": name, "datatype": kinds[type(data[0])], "shape": [len(data)], "data": data}
            for name, data in named.items()
        ]
    }


ENCODERS = {
    "one-hot": OneHotEncoder(handle_unknown="ignore"),
    "ordinal": OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-5, encoded_missing_value=-1),
    "target": TargetEncoder(),
    "imputed": make_pipeline(
        SimpleImputer(strategy="constant", fill_value="missing"), OneHotEncoder(handle_unknown="ignore")
    ),
    "most frequent": make_pipeline(SimpleImputer(strategy="most_frequent"), OneHotEncoder(handle_unknown="ignore")),
}


@pytest.mark.parametrize("gap", [None, np.nan], ids=["None", "NaN"])
@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("form", ["file", "function", "declared"])
def test_a_missing_text_is_what_it_was_in_training(tmp_path: Path, form: str, encoder: str, gap: Any) -> None:
    """An encoder takes None for an unknown category if its table had NaN, and NaN if its table had None."""
    plans = pandas.Series(RNG.choice(np.array(["free", "pro", gap], object), COUNT), dtype=object)
    frame = pandas.DataFrame({"plan": plans, "age": RNG.integers(18, 80, COUNT)})
    prepared = ColumnTransformer([("text", ENCODERS[encoder], ["plan"]), ("age", "passthrough", ["age"])])
    fitted = make_pipeline(prepared, LogisticRegression(C=100, max_iter=2000)).fit(frame, frame["plan"].isna())
    model = served(fitted, tmp_path)
    if form != "file":
        inputs = [Tensor("plan", "BYTES", (-1,), content_type="str"), Tensor("age", "INT64", (-1,))]
        model = FunctionModel("f", predict_table, lambda: fitted, inputs if form == "declared" else ())
        model.preload()
    for texts in ([None], ["free"], ["free", None], [None, None]):
        ages = [30 + index for index in range(len(texts))]
        table = pandas.DataFrame(
            {"plan": pandas.Series([gap if t is None else t for t in texts], dtype=object), "age": ages}
        )
        expected = fitted.predict_proba(table).tolist()
        rows = [list(row) for row in zip(texts, ages, strict=True)]
        objects = [dict(age=age, plan=text) for text, age in rows]
        for body in ({"instances": rows}, {"instances": objects}, columns(age=ages, plan=texts)):
            assert answer(model, body, ("predict_proba",)) == expected, body


def predict_table(model: Any, table: pandas.DataFrame) -> Any:
    return model.predict_proba(table)


@pytest.mark.parametrize("form", ["file", "function"])
def test_an_integer_beside_a_float_stays_an_integer_in_a_table(tmp_path: Path, form: str) -> None:
    """A step that makes text of a column would make "1.0" of 1, which no encoder knows."""
    frame = pandas.DataFrame({"zone": RNG.choice([1, 2, 3], COUNT), "age": RNG.normal(50, 9, COUNT)})
    as_text = make_pipeline(
        FunctionTransformer(pandas.DataFrame.astype, kw_args={"dtype": str}), OneHotEncoder(handle_unknown="ignore")
    )
    prepared = ColumnTransformer([("zone", as_text, ["zone"]), ("age", "passthrough", ["age"])])
    fitted = make_pipeline(prepared, LogisticRegression(max_iter=2000)).fit(frame, frame["zone"] == 2)
    model = served(fitted, tmp_path)
    if form == "function":
        model = FunctionModel("f", predict_table, lambda: fitted)
        model.preload()
    for count in (1, 3, 500):  # short bodies and long ones are read differently
        rows = [[index % 3 + 1, 30.5 + index] for index in range(count)]
        expected = fitted.predict_proba(pandas.DataFrame(rows, columns=["zone", "age"])).tolist()
        assert answer(model, {"instances": rows}, ("predict_proba",)) == expected
        assert answer(model, {"instances": rows, "signature_name": ""}, ("predict_proba",)) == expected


TEXTS = ["a fine day", "good night", "awful day", "schöner Tag"]
TEXT_PIPELINES = {
    "tfidf": make_pipeline(TfidfVectorizer(), LogisticRegression()),
    "union": make_pipeline(
        FeatureUnion([("words", TfidfVectorizer()), ("letters", TfidfVectorizer(analyzer="char"))]),
        LogisticRegression(),
    ),
}


@pytest.mark.parametrize("kind", TEXT_PIPELINES)
def test_a_pipeline_on_texts_takes_one_column_of_texts_in_every_form(tmp_path: Path, kind: str) -> None:
    fitted = TEXT_PIPELINES[kind].fit(TEXTS, [1, 1, 0, 0])
    model = served(fitted, tmp_path)
    expected = fitted.predict_proba(TEXTS).tolist()
    tensor = {"name": "x", "datatype": "BYTES", "data": TEXTS}
    for body in (
        {"instances": TEXTS},
        {"instances": [[text] for text in TEXTS]},
        {"instances": [{"text": text} for text in TEXTS]},
        {"inputs": [{**tensor, "shape": [4]}]},
        {"inputs": [{**tensor, "shape": [4, 1], "parameters": {"content_type": "str"}}]},  # as MLServer's clients
    ):
        assert answer(model, body, ("predict_proba",)) == expected, body
    for instances, words in (
        ([{"a": "x", "b": "y"}], "expected one input of texts, got 'a', 'b'"),
        ([1, 2], r"expected texts of shape \[n\], got INT64"),
        ([["a", "b"]], r"expected texts of shape \[n\], got BYTES of shape \[1, 2\]"),
        (["a", None], "expected texts, got null"),
    ):
        with pytest.raises(InvalidInput, match=words):
            answer(model, {"instances": instances})


def test_columns_with_names_are_refused_where_only_their_order_is_known(tmp_path: Path) -> None:
    """Objects of JSON have no order: a client may sort them."""
    target = (X[:, 0] > X[:, 1]).astype(int)
    xgb = xgboost.XGBClassifier(n_estimators=5).fit(X, target)
    xgb.save_model(tmp_path / "model.json")
    for model, fitted in (
        (loaded(tmp_path / "model.json"), xgb),
        (served(LogisticRegression().fit(X, target), tmp_path), None),
    ):
        expected = (fitted or model.estimator).predict_proba(np.array([[1.0, -2.0, 0.5, 0.0]])).tolist()
        numbered = columns(**{f"input-{index}": [value] for index, value in enumerate([1.0, -2.0, 0.5, 0.0])})
        for body in ({"instances": [[1.0, -2.0, 0.5, 0.0]]}, numbered):
            assert answer(model, body, ("predict_proba",)) == expected
        with pytest.raises(InvalidInput, match="knows its 4 columns by their order alone"):
            answer(model, {"instances": [{"b": -2.0, "a": 1.0, "c": 0.5, "d": 0.0}]})


@pytest.mark.parametrize("make", ["xgboost", "lightgbm", "XGBClassifier", "LGBMClassifier"])
def test_text_is_no_category_of_a_booster_on_numbers(tmp_path: Path, make: str) -> None:
    """XGBoost would take the code of the category for the number."""
    frame = pandas.DataFrame(X, columns=list("abcd"))
    target = (X[:, 3] > 0).astype(int)
    if make == "xgboost":
        xgboost.train({}, xgboost.DMatrix(frame, target), 5).save_model(tmp_path / "m.json")
        model = loaded(tmp_path / "m.json")
    elif make == "lightgbm":
        lightgbm.train({"verbose": -1}, lightgbm.Dataset(frame, target), 5).save_model(tmp_path / "m.txt")
        model = loaded(tmp_path / "m.txt")
    else:
        kind: Any = {"XGBClassifier": xgboost.XGBClassifier, "LGBMClassifier": lightgbm.LGBMClassifier}[make]
        model = served(kind(n_estimators=5).fit(frame, target), tmp_path)
    row = {"a": 0.5, "b": 1.0, "c": 0.25}
    for text in ("q", "0.5"):
        with pytest.raises(InvalidInput, match="column 'd': expected numbers, got text"):
            answer(model, {"instances": [{**row, "d": text}]})
    flags = [{**row, "d": True}, {**row, "d": None}]
    assert answer(model, {"instances": flags}) == answer(model, {"instances": [{**row, "d": 1.0}, {**row, "d": None}]})


@pytest.mark.parametrize(
    "estimator",
    [
        lightgbm.LGBMClassifier(n_estimators=10, verbose=-1),
        xgboost.XGBClassifier(n_estimators=10, enable_categorical=True),
        HistGradientBoostingClassifier(max_iter=10),
        catboost.CatBoostClassifier(iterations=10, verbose=0, allow_writing_files=False, cat_features=["zone", "city"]),
    ],
    ids=lambda each: type(each).__name__,
)
def test_an_estimator_in_a_pickle_gets_its_categories(tmp_path: Path, estimator: Any) -> None:
    kinds = {"zone": pandas.CategoricalDtype([1, 2, 3]), "city": pandas.CategoricalDtype(["Oslo", "Paris", "Rome"])}
    frame = pandas.DataFrame(
        {
            "zone": RNG.choice([1, 2, 3], COUNT),
            "city": RNG.choice(["Oslo", "Paris", "Rome"], COUNT),
            "age": RNG.normal(50, 9, COUNT),
        }
    )
    target = ((frame["zone"] == 2) | (frame["city"] == "Rome")).astype(int)
    model = served(estimator.fit(frame.astype(kinds), target), tmp_path)
    rows: list[list[Any]] = [[2, "Paris", 50.5], [3, "Rome", 40.0], [1, "Oslo", 30.25]]
    if not isinstance(estimator, catboost.CatBoostClassifier):  # which takes no missing category
        rows += [[2, None, 45.5], [None, "Rome", 40.0]]
    table = pandas.DataFrame(rows, columns=list(frame.columns))
    expected = estimator.predict_proba(table.astype(kinds)).tolist()
    objects = [{"age": age, "city": city, "zone": zone} for zone, city, age in rows]
    for instances in (rows, objects):
        assert answer(model, {"instances": instances}, ("predict_proba",)) == expected
        alone = [answer(model, {"instances": [row]}, ("predict_proba",))[0] for row in instances]
        assert alone == expected


def test_an_answer_has_one_entry_for_each_row(tmp_path: Path) -> None:
    """scikit-learn gives the probabilities of several labels label by label: a batch would be divided between labels."""
    labels = np.c_[X[:, 0] > 0, X[:, 1] > 0, X[:, 2] > 0.5].astype(int)
    forest = RandomForestClassifier(5, random_state=0).fit(X, labels)
    expected = np.stack(forest.predict_proba(X[:3]), axis=1)
    model = served(forest, tmp_path)
    assert answer(model, {"instances": X[:3].tolist()}, ("predict_proba",)) == expected.tolist()
    assert answer(model, {"instances": X[:5].tolist()}) == forest.predict(X[:5]).tolist()
    uneven = RandomForestClassifier(5, random_state=0).fit(X, np.c_[labels[:, 0], np.arange(COUNT) % 3])
    with pytest.raises(NotSupported, match="differ in their numbers of classes"):
        answer(served(uneven, tmp_path), {"instances": X[:3].tolist()}, ("predict_proba",))
    halved = FunctionTransformer(first_half).fit(X)
    with pytest.raises(InferenceError, match="output 'transform': expected 4 rows, got the shape"):
        answer(served(halved, tmp_path), {"instances": X[:4].tolist()})


def first_half(rows: Any) -> Any:
    return rows[: len(rows) // 2]


def test_a_model_that_nobody_fitted_is_not_the_clients_fault(tmp_path: Path) -> None:
    with pytest.raises(NotFittedError):
        answer(served(make_pipeline(StandardScaler(), LogisticRegression()), tmp_path), {"instances": [[1.0]]})


TABLE = pandas.DataFrame({"city": ["oslo", "rome"] * 20, "rooms": [1.0, 2.0, 3.0, 4.0] * 10})
ENCODED = ColumnTransformer([("city", OneHotEncoder(), ["city"])], remainder="passthrough")
TOLD = [{"name": "city", "datatype": "BYTES", "shape": [-1]}, {"name": "rooms", "datatype": "FP64", "shape": [-1]}]


def test_a_table_with_text_declares_its_columns_and_has_a_sample_that_it_takes(tmp_path: Path) -> None:
    """The line to try at the start, ``mpserve test`` and /docs send the sample."""
    fitted = make_pipeline(ENCODED, LogisticRegression()).fit(TABLE, ["dear", "cheap"] * 20)
    model = served(fitted, tmp_path)
    model.warmup()
    assert model.get_input_types() == TOLD
    assert {output["name"] for output in model.get_output_types()} == {"predict", "predict_proba", "decision_function"}
    expected = fitted.predict(pandas.DataFrame({"city": ["oslo"], "rooms": [0.0]})).tolist()
    for example in examples_of(model).values():
        assert answer(model, example) == expected


@pytest.mark.parametrize("content", [b"", b"just text", b"a,b\n1,2\n", b"\x80\x04\x95"])
def test_a_file_that_is_no_pickle_is_told_in_one_sentence(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.joblib").write_bytes(content)
    with pytest.raises(ConfigurationError, match=r"^model\.joblib is no pickle, or not a whole one \(.*joblib\.dump"):
        loaded(tmp_path / "model.joblib")
