"""Model files of scikit-learn, XGBoost, LightGBM and CatBoost: served without code, they answer as their libraries do."""

import json
import logging
import pickle
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import catboost
import httpx
import joblib
import numpy as np
import pandas
import pytest
import skops.io
from sklearn.ensemble import RandomForestClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

from mpserve.config.settings import Settings
from mpserve.errors import ConfigurationError, InvalidInput, ModelLoadError
from mpserve.protocol.declaration import declared_of
from mpserve.protocol.protobuf import inference_pb2 as pb
from mpserve.protocol.v1.rows import tensors_in
from mpserve.serving.models.model import Model
from tests.e2e.calls import call
from tests.running import Server
from tests.runtimes.model_files import (
    COLUMNS,
    MAKERS,
    ROWS,
    SPECIES,
    Made,
    X,
    Y,
    cat_categories,
    lgb_categories,
    loaded,
    made,
    xgb_categories,
)
from tests.runtimes.served import serving_files

IRIS = [[6.8, 2.8, 4.8, 1.4], [6.0, 3.4, 4.5, 1.6]]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Made]]:
    folder = tmp_path_factory.mktemp("models")
    return folder, made(folder)


class Served:
    """A server of all files, with two workers and batches."""

    def __init__(self, server: Server, address: str) -> None:
        self.server, self.address = server, address

    def infer(self, model: str, body: Any, **headers: str) -> Any:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.server.client.post(f"/v2/models/{model}/infer", content=content, headers=headers)


@pytest.fixture(scope="module")
def served(files: tuple[Path, dict[str, Made]], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving_files(files[0], tmp_path_factory.mktemp("server"), 2000, "eleven models") as served:
        yield Served(*served)


def array_of(datatype: str, shape: list[int], data: Any) -> Any:
    dtype = {"BYTES": object, "FP32": np.float32, "FP64": np.float64, "INT64": np.int64, "INT32": np.int32}[datatype]
    return np.array(data, dtype).reshape(shape)


def equal(got: Any, expected: Any) -> bool:
    expected = np.asarray(expected)
    return got.shape == expected.shape and got.tolist() == expected.tolist()


@pytest.mark.parametrize("name", MAKERS)
def test_a_file_answers_as_its_library_over_every_protocol(
    served: Served, files: tuple[Path, dict[str, Made]], name: str
) -> None:
    outputs = files[1][name].outputs
    default = next(iter(outputs))
    expected = {output: np.asarray(method(ROWS)) for output, method in outputs.items()}

    v1 = served.server.predict(name, ROWS.tolist())
    assert v1.status_code == 200, v1.text
    assert np.array(v1.json()["predictions"], expected[default].dtype).tolist() == expected[default].tolist()

    tensor = {"name": "input-0", "datatype": "FP64", "shape": list(ROWS.shape)}
    asked = [{"name": output} for output in reversed(outputs)]
    v2 = served.infer(name, {"inputs": [{**tensor, "data": ROWS.tolist()}], "outputs": asked}).json()["outputs"]
    assert [output["name"] for output in v2] == [output["name"] for output in asked]
    for output in v2:
        assert equal(array_of(output["datatype"], output["shape"], output["data"]), expected[output["name"]]), output[
            "name"
        ]

    head = json.dumps(
        {
            "inputs": [{**tensor, "parameters": {"binary_data_size": ROWS.nbytes}}],
            "parameters": {"binary_data_output": True},
        }
    ).encode()
    binary = served.infer(name, head + ROWS.tobytes(), **{"inference-header-content-length": str(len(head))})
    size = int(binary.headers["inference-header-content-length"])
    [output] = json.loads(binary.content[:size])["outputs"]
    assert output["name"] == default
    if output["datatype"] != "BYTES":
        assert binary.content[size:] == np.ascontiguousarray(expected[default]).tobytes()

    request = pb.ModelInferRequest(model_name=name, raw_input_contents=[ROWS.tobytes()])
    request.inputs.add(name="x", datatype="FP64", shape=ROWS.shape)
    request.outputs.add(name=default)
    answer = call(served.address, "ModelInfer", request, pb.ModelInferResponse)
    assert [output.name for output in answer.outputs] == [default]
    values = expected[default]
    assert list(answer.outputs[0].shape) == list(values.shape)
    [raw] = answer.raw_output_contents
    if answer.outputs[0].datatype == "BYTES":
        texts = b"".join(len(text).to_bytes(4, "little") + text for text in map(str.encode, values.tolist()))
        assert raw == texts
    else:
        assert raw == np.ascontiguousarray(values).tobytes()


@pytest.mark.parametrize("name", MAKERS)
def test_metadata_is_that_of_the_file(served: Served, files: tuple[Path, dict[str, Made]], name: str) -> None:
    metadata = served.server.client.get(f"/v2/models/{name}").json()
    assert metadata["inputs"] == [{"name": "input-0", "datatype": "FP64", "shape": [-1, 4]}]
    assert {output["name"]: output["datatype"] for output in metadata["outputs"]} == files[1][name].datatypes
    if name in ("labels", "cat"):
        [probabilities] = [output for output in metadata["outputs"] if output["name"] == "predict_proba"]
        assert probabilities["shape"] == [-1, 3]
        assert probabilities["parameters"] == {"labels": sorted(set(SPECIES))}
    assert metadata["versions"] == [{"forest": "2"}.get(name, "1")]


@pytest.mark.parametrize("name", ["labels", "xgb_booster", "lgb"])
def test_the_iris_requests_of_kserve_run_unchanged(
    served: Served, files: tuple[Path, dict[str, Made]], name: str
) -> None:
    v1 = served.server.client.post(f"/v1/models/{name}:predict", json={"instances": IRIS})
    predict = files[1][name].outputs["predict"]
    first = np.asarray(predict(np.array(IRIS)))
    assert np.array(v1.json()["predictions"], first.dtype).tolist() == first.tolist()
    v2 = served.infer(name, {"inputs": [{"name": "input-0", "shape": [2, 4], "datatype": "FP32", "data": IRIS}]}).json()
    expected = np.asarray(predict(np.array(IRIS, np.float32)))
    assert np.array(v2["outputs"][0]["data"], expected.dtype).tolist() == expected.reshape(-1).tolist()
    named = {"outputs": [{"name": "output-0"}]}  # as KServe's servers call it
    body = {"inputs": [{"name": "input-0", "shape": [2, 4], "datatype": "FP32", "data": IRIS}], **named}
    assert served.infer(name, body).json()["outputs"] == [v2["outputs"][0] | {"name": "output-0"}]


@pytest.mark.parametrize("name", MAKERS)
def test_wrong_inputs_are_refused_in_words(served: Served, name: str) -> None:
    for rows, words in (([[1.0, 2.0, 3.0]], "expected rows of 4 columns, got shape [1, 3]"), (
        [1.0, 2.0, 3.0, 4.0], "expected rows of 4 columns, got shape [4]"), ([["a", "b", "c", "d"]], ""),
    ):  # fmt: skip
        refused = served.server.predict(name, rows)
        assert refused.status_code == 400, refused.text
        assert words in refused.json()["error"]
        assert "/" not in refused.json()["error"]
        assert "\n" not in refused.json()["error"]
    body = {
        "inputs": [{"name": "x", "datatype": "FP64", "shape": [1, 4], "data": [1, 2, 3, 4]}],
        "outputs": [{"name": "no"}],
    }
    refused = served.infer(name, body)
    assert refused.status_code == 400
    assert "'no'" in refused.json()["error"]
    assert "expected 'predict'" in refused.json()["error"] or "expected 'transform'" in refused.json()["error"]


@pytest.mark.parametrize("name", ["xgb_booster", "xgb_linear", "lgb", "cat"])
def test_a_missing_value_is_nan_where_the_library_takes_it(
    served: Served, files: tuple[Path, dict[str, Made]], name: str
) -> None:
    rows = ROWS.copy()
    rows[::3, 1] = np.nan
    head = json.dumps(
        {
            "inputs": [
                {
                    "name": "x",
                    "datatype": "FP64",
                    "shape": list(rows.shape),
                    "parameters": {"binary_data_size": rows.nbytes},
                }
            ]
        }
    ).encode()
    answer = served.infer(name, head + rows.tobytes(), **{"inference-header-content-length": str(len(head))})
    expected = np.asarray(files[1][name].outputs["predict"](rows))
    [output] = answer.json()["outputs"]
    assert equal(array_of(output["datatype"], output["shape"], output["data"]), expected)


def test_probabilities_may_be_the_answer_to_clients_that_ask_for_nothing(files: tuple[Path, dict[str, Made]]) -> None:
    folder, by_name = files
    for there in map(by_name.__getitem__, MAKERS):
        model = loaded(folder / there.file, predict_proba=True)
        expected = "predict_proba" if "predict_proba" in there.outputs else next(iter(there.outputs))
        assert list(model.invoke([X[:2]])) == [expected]
    assert Settings.from_environment({"PREDICT_PROBA": "true"}).predict_proba


def test_the_threads_of_an_estimator_keep_to_the_budget_of_the_worker(tmp_path: Path) -> None:
    pipeline = make_pipeline(FunctionTransformer(), RandomForestClassifier(2, n_jobs=-1)).fit(X, Y)
    joblib.dump(pipeline, tmp_path / "a.joblib")
    assert loaded(tmp_path / "a.joblib").estimator[-1].n_jobs == 1


def test_catboost_in_a_pickle_predicts_with_the_threads_of_the_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[int] = []
    made_by_catboost = catboost.CatBoost._base_predict

    def counted(self: Any, pool: Any, kind: str, start: int, end: int, count: int, *others: Any) -> Any:
        threads.append(count)
        return made_by_catboost(self, pool, kind, start, end, count, *others)

    monkeypatch.setattr(catboost.CatBoost, "_base_predict", counted)
    fitted = catboost.CatBoostClassifier(iterations=3, verbose=0, allow_writing_files=False).fit(X, Y)
    joblib.dump(fitted, tmp_path / "a.joblib")
    joblib.dump(make_pipeline(StandardScaler().fit(X), fitted), tmp_path / "b.joblib")
    for name in ("a.joblib", "b.joblib"):
        model = loaded(tmp_path / name)
        model.native_threads = 3
        model.invoke_for([X[:2]], ("predict", "predict_proba"))
    assert threads == [3] * 4


def test_a_skops_file_with_unknown_types_is_refused_until_they_are_trusted(tmp_path: Path) -> None:
    file = tmp_path / "a.skops"
    skops.io.dump(make_pipeline(FunctionTransformer(np.sqrt), RandomForestClassifier(2)).fit(X, Y), file)
    pipeline = make_pipeline(FunctionTransformer(SquareRoot()), RandomForestClassifier(2)).fit(X, Y)
    skops.io.dump(pipeline, file)
    kind = f"{SquareRoot.__module__}.SquareRoot"
    with pytest.raises(ConfigurationError, match=f"types that skops does not trust: .*{kind}.*--trusted_types="):
        loaded(file)


class SquareRoot:
    def __call__(self, rows: Any) -> Any:
        return np.sqrt(rows)


def test_a_pickle_is_told_to_run_code_and_refused_if_it_holds_no_estimator(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mpserve.runtimes import sklearn as runtime

    monkeypatch.setattr(runtime, "_warned", [])
    file = tmp_path / "a.pkl"
    file.write_bytes(pickle.dumps({"weights": [1]}))
    with caplog.at_level(logging.INFO):
        for _ in range(2):
            with pytest.raises(
                ConfigurationError, match=r"a\.pkl holds a dict, expected an object with predict, predict_proba"
            ):
                loaded(file)
    assert [
        record.getMessage() for record in caplog.records if "run any code of its author" in record.getMessage()
    ] == [caplog.records[0].getMessage()]
    file.write_bytes(b"cnowhere.at_all\nThing\n.")
    with pytest.raises(ModelLoadError, match=r"No module named 'nowhere'"):
        loaded(file)


def test_a_file_of_another_version_of_scikit_learn_is_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    import sklearn

    content = pickle.dumps(RandomForestClassifier(3).fit(X, Y))
    version = sklearn.__version__.encode()
    assert content.count(version) == 1  # pickle repeats it by reference
    (tmp_path / "a.pkl").write_bytes(content.replace(version, b"1.0.0"[: len(version)].ljust(len(version), b"0")))
    with caplog.at_level(logging.WARNING):
        model = loaded(tmp_path / "a.pkl")
    assert isinstance(model, Model)
    [line] = [record.getMessage() for record in caplog.records]
    assert line.startswith("a.pkl was made by scikit-learn 1.0.0, and this is ")


def test_requests_for_different_outputs_at_once_get_each_its_own(
    served: Served, files: tuple[Path, dict[str, Made]]
) -> None:
    """Requests that wait at the same moment are joined into batches, and a batch has one set of outputs."""
    outputs = files[1]["labels"].outputs

    def ask(number: int) -> None:
        names = [[], ["predict"], ["predict_proba"], ["decision_function", "predict"]][number % 4]
        row = ROWS[number : number + 1]
        body = {
            "inputs": [{"name": "x", "datatype": "FP64", "shape": [1, 4], "data": row.tolist()}],
            "outputs": [{"name": name} for name in names],
        }
        answer = httpx.post(f"{served.server.url}/v2/models/labels/infer", json=body, timeout=60).json()["outputs"]
        assert [output["name"] for output in answer] == (names or ["predict"])
        for output in answer:
            expected = outputs[output["name"]](row)
            assert (
                np.allclose(output["data"], expected.reshape(-1))
                if output["datatype"] != "BYTES"
                else (output["data"] == expected.tolist())
            )

    with ThreadPoolExecutor(16) as threads:
        list(threads.map(ask, range(200)))


def test_an_output_that_is_not_there_is_refused_before_the_model_runs(files: tuple[Path, dict[str, Made]]) -> None:
    model = loaded(files[0] / files[1]["labels"].file)
    with pytest.raises(InvalidInput, match="Unexpected inference output 'x' for model 'model'; expected 'predict', "):
        model.invoke_for([X], ("predict", "x"))


TABLE = [["Paris", "pro", 50, 41000.5], ["Rome", None, 23, 52000.0], ["Oslo", "free", 71, None]]
NAMES = ["city", "plan", "age", "income"]


def columns_of_v2(rows: list[list[Any]], names: list[str]) -> list[dict[str, Any]]:
    columns = dict(zip(NAMES, zip(*rows, strict=True), strict=True))
    datatypes = {"city": "BYTES", "plan": "BYTES", "age": "INT64", "income": "FP64"}
    return [
        {"name": name, "datatype": datatypes[name], "shape": [len(rows)], "data": list(columns[name])} for name in names
    ]


def test_a_pipeline_on_text_and_numbers_gets_the_table_that_it_was_fitted_on(
    served: Served, files: tuple[Path, dict[str, Made]]
) -> None:
    frame = pandas.DataFrame(TABLE, columns=NAMES)
    expected = files[1]["table"].outputs["predict"](frame).tolist()
    shuffled = ["income", "city", "age", "plan"]
    objects = [dict(zip(NAMES, row, strict=True)) for row in TABLE]
    assert {"buys", "leaves"} >= set(expected)
    for instances in (TABLE, objects, [{name: row[name] for name in shuffled} for row in objects]):
        answer = served.server.predict("table", instances)
        assert answer.json() == {"predictions": expected}, instances
    for names in (NAMES, shuffled):
        answer = served.infer("table", {"inputs": columns_of_v2(TABLE, names)})
        assert answer.json()["outputs"][0]["data"] == expected, names
    for instances, words in (
        ([{**objects[0], "sex": "f"}], "unexpected column 'sex'; expected 'city', 'plan', 'age', 'income'"),
        (
            [{"city": "Paris", "plan": "pro", "age": 3}],
            "missing column 'income'; expected 'city', 'plan', 'age', 'income'",
        ),
        ([{"city": "Paris"}], "missing column 'plan'; expected 'city', 'plan', 'age', 'income'"),
        ([["Paris", "pro", 50]], "expected rows of 4 columns, got 3"),
    ):
        refused = served.server.predict("table", instances)
        assert (refused.status_code, refused.json()["error"]) == (400, words)
    refused = served.server.predict("table", [["Paris", "pro", "fifty", 3.5]])
    assert refused.status_code == 400, refused.text
    assert "the model refused the input: " in refused.json()["error"]


@pytest.mark.parametrize("name", ["lgb_named", "xgb_named"])
def test_columns_of_a_booster_come_by_name_in_any_order_and_form(
    served: Served, files: tuple[Path, dict[str, Made]], name: str
) -> None:
    """KServe's lgbserver takes what ``DataFrame.to_dict`` gives."""
    expected = np.asarray(files[1][name].outputs["predict"](pandas.DataFrame(IRIS, columns=COLUMNS)))
    rows = [dict(zip(COLUMNS, row, strict=True)) for row in IRIS]
    turned = [{column: row[column] for column in reversed(COLUMNS)} for row in rows]
    indexed = {column: {str(index): row[column] for index, row in enumerate(rows)} for column in reversed(COLUMNS)}
    listed = {column: [row[column] for row in rows] for column in COLUMNS}
    for body in (
        {"instances": turned},
        {"inputs": rows},
        {"inputs": [indexed]},
        {"instances": [listed]},
        {"instances": IRIS},
    ):
        answer = served.server.client.post(f"/v1/models/{name}:predict", json=body)
        assert answer.status_code == 200, (body, answer.text)
        assert np.array(answer.json()["predictions"], expected.dtype).tolist() == expected.tolist(), body
    refused = served.server.predict(name, [{**rows[0], "petals": 3}])
    assert refused.status_code == 400
    missing = served.server.predict(name, [[6.8, None, 4.8, 1.4]])
    with_gap = np.asarray(
        files[1][name].outputs["predict"](pandas.DataFrame([[6.8, np.nan, 4.8, 1.4]], columns=COLUMNS))
    )
    assert np.array(missing.json()["predictions"], expected.dtype).tolist() == with_gap.tolist()


@pytest.mark.parametrize("zones", [["Oslo", "Paris", "Rome"], [10, 20, 30]], ids=["text", "numbers"])
@pytest.mark.parametrize(
    ("make", "ending"), [(lgb_categories, "txt"), (xgb_categories, "json"), (cat_categories, "cbm")]
)
def test_categories_are_those_of_the_training_not_their_codes(
    tmp_path: Path, make: Any, ending: str, zones: list[Any]
) -> None:
    trained = make(zones, str(tmp_path / f"model.{ending}"))
    model = loaded(tmp_path / f"model.{ending}")
    declared = declared_of((), model.takes_missing(), model.wants_table())
    rows = [[zones[2], 40.5], [zones[0], 55.25], [zones[1], 60.5]]
    kinds = pandas.CategoricalDtype(zones) if ending != "cbm" else object
    expected = trained.predict(pandas.DataFrame(rows, columns=["zone", "age"]).astype({"zone": kinds})).tolist()
    bind = model.binding()
    for instances in (rows, [{"age": age, "zone": zone} for zone, age in rows]):
        given = bind(tensors_in(declared, {"instances": instances}))
        assert np.asarray(model.invoke(given)["predict"]).tolist() == expected, instances
        one = [
            np.asarray(model.invoke(bind(tensors_in(declared, {"instances": [row]})))["predict"]) for row in instances
        ]
        assert np.concatenate(one).tolist() == expected, instances


def test_a_pipeline_on_text_alone_gets_the_texts(served: Served, files: tuple[Path, dict[str, Made]]) -> None:
    texts = ["a fine day", "an awful night", "ein schöner Tag"]
    expected = files[1]["texts"].outputs["predict"](texts).tolist()
    assert served.server.predict("texts", texts).json() == {"predictions": expected}
    tensor = {"name": "x", "datatype": "BYTES", "shape": [3], "data": texts}
    assert served.infer("texts", {"inputs": [tensor]}).json()["outputs"][0]["data"] == expected
