"""Model folders and requests of KServe and MLServer, unchanged: what their documents train, lay out and send.

Sources: kserve/kserve, docs/samples/v1beta1 (sklearn, xgboost, lightgbm) and test/e2e (data/iris_input*.json, and what
predictor/test_sklearn.py, test_xgboost.py and test_lightgbm.py expect); SeldonIO/MLServer 1.7, docs/examples (catboost, sklearn,
xgboost, lightgbm, mms).
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import catboost
import httpx
import joblib
import lightgbm
import numpy as np
import pandas
import pytest
import xgboost
from sklearn.datasets import load_digits, load_iris
from sklearn.svm import SVC

from mpserve.protocol.protobuf import inference_pb2 as pb
from tests.e2e.calls import call
from tests.running import Server
from tests.runtimes.served import serving_files

IRIS = load_iris()
FLOWERS = [[6.8, 2.8, 4.8, 1.4], [6.0, 3.4, 4.5, 1.6]]
TENSOR = {"name": "input-0", "shape": [2, 4], "datatype": "FP32", "data": FLOWERS}
V1 = {"instances": FLOWERS}  # iris_input.json
V2 = {"inputs": [TENSOR]}  # iris_input_v2.json
BINARY = {"inputs": [TENSOR], "outputs": [{"name": "output-0", "parameters": {"binary_data": True}}]}
ALL_BINARY = {"inputs": [TENSOR], "parameters": {"binary_data_output": True}}
V3 = {
    "inputs": [
        {"sepal_length_(cm)": [5.1], "sepal_width_(cm)": [3.5], "petal_length_(cm)": [1.4], "petal_width_(cm)": [0.2]}
    ]
}
V4 = {
    "inputs": [
        [{"sepal_length_(cm)": 5.1}, {"sepal_width_(cm)": 3.5}, {"petal_length_(cm)": 1.4}, {"petal_width_(cm)": 0.2}]
    ]
}
V5 = {"inputs": [V4["inputs"][0][:3]]}
README = {"inputs": [{"sepal_width_(cm)": {"0": 3.5}, "petal_length_(cm)": {"0": 1.4}, "petal_width_(cm)": {"0": 0.2},
                      "sepal_length_(cm)": {"0": 5.1}}]}  # fmt: skip
COLUMNS = list(V3["inputs"][0])

SETTINGS: dict[str, dict[str, Any]] = {
    "kserve-sklearn": {"name": "sklearn-iris", "version": "v1.0.0", "implementation": "mlserver.models.SKLearnModel"},
    "kserve-xgboost": {"name": "xgboost-iris", "version": "v1.0.0", "implementation": "mlserver.models.XGBoostModel"},
    "catboost": {
        "name": "catboost", "implementation": "mlserver_catboost.CatboostModel",
        "parameters": {"uri": "./model.cbm", "version": "v0.1.0"},
    },
    "sklearn": {
        "name": "mnist-svm", "implementation": "mlserver_sklearn.SKLearnModel",
        "parameters": {"uri": "./mnist-svm.joblib", "version": "v0.1.0"},
    },
    "lightgbm": {
        "name": "iris-lgb", "implementation": "mlserver_lightgbm.LightGBMModel",
        "parameters": {"uri": "./iris-lightgbm.bst", "version": "v0.1.0"},
    },
    "mms-xgboost": {
        "name": "mushroom-xgboost", "implementation": "mlserver_xgboost.XGBoostModel", "parameters": {"version": "v0.1.0"},
    },
}  # fmt: skip
"""The ``model-settings.json`` of each folder."""


def lay(folder: Path) -> dict[str, Any]:
    """The folders, with the models as their documents train them; and the models."""
    for name, settings in SETTINGS.items():
        (folder / name).mkdir()
        (folder / name / "model-settings.json").write_text(json.dumps(settings))
        if "-" not in name:
            (folder / name / "settings.json").write_text('{"debug": "true"}')
    svm = SVC(gamma="scale").fit(IRIS.data, IRIS.target)
    joblib.dump(svm, folder / "kserve-sklearn/model.joblib")
    parameters = {"max_depth": 6, "eta": 0.1, "nthread": 4, "num_class": 10, "objective": "multi:softmax"}
    xgb = xgboost.train(parameters, xgboost.DMatrix(IRIS.data, IRIS.target))
    (folder / "kserve-xgboost/model.bst").write_bytes(xgb.save_raw("ubj"))
    (folder / "lightgbm-iris").mkdir()
    named = pandas.DataFrame(IRIS.data, columns=IRIS.feature_names)
    three = {"objective": "multiclass", "metric": "softmax", "num_class": 3, "verbose": -1}
    lgb = lightgbm.train(three, lightgbm.Dataset(named, IRIS.target))
    lgb.save_model(folder / "lightgbm-iris/model.bst")

    rng = np.random.default_rng(0)
    cat = catboost.CatBoostClassifier(iterations=2, depth=2, learning_rate=1, loss_function="Logloss", verbose=False,
                                      allow_writing_files=False)  # fmt: skip
    cat.fit(rng.integers(0, 100, (100, 10)), rng.integers(0, 2, 100)).save_model(folder / "catboost/model.cbm")
    digits = load_digits()
    numbers = SVC(gamma=0.001).fit(digits.data[:800], digits.target[:800])
    joblib.dump(numbers, folder / "sklearn/mnist-svm.joblib")
    bare = lightgbm.train(three, lightgbm.Dataset(IRIS.data, IRIS.target))
    bare.save_model(folder / "lightgbm/iris-lightgbm.bst")
    mushrooms = xgboost.XGBClassifier(n_estimators=2, max_depth=2, learning_rate=1.0)
    mushrooms.fit(rng.integers(0, 2, (200, 126)), rng.integers(0, 2, 200))
    mushrooms.save_model(folder / "mms-xgboost/model.json")
    return {
        "sklearn-iris": svm.predict, "xgboost-iris": lambda rows: xgb.predict(xgboost.DMatrix(rows)),
        "lightgbm-iris": lgb.predict, "catboost": cat.predict, "mnist-svm": numbers.predict, "iris-lgb": bare.predict,
        "mushroom-xgboost": mushrooms.predict,
    }  # fmt: skip


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, str, dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("models")
    models = lay(folder)
    with serving_files(folder, tmp_path_factory.mktemp("server"), 16, "models of four libraries") as (server, grpc):
        yield server, grpc, models


@pytest.mark.parametrize("name", ["sklearn-iris", "xgboost-iris", "lightgbm-iris"])
def test_the_iris_requests_of_kserve_are_answered_as_its_tests_expect(
    served: tuple[Server, str, dict[str, Any]], name: str
) -> None:
    server, grpc, models = served
    expected = np.asarray(models[name](np.array(FLOWERS))).reshape(2, -1)
    as_fp32 = np.asarray(models[name](np.array(FLOWERS, np.float32))).reshape(2, -1)
    assert (expected if expected.shape[1] == 1 else expected.argmax(axis=1)).reshape(-1).tolist() == [1, 1]
    v1 = server.client.post(f"/v1/models/{name}:predict", json=V1).json()["predictions"]
    assert np.array(v1, expected.dtype).reshape(2, -1).tolist() == expected.tolist()
    for body in (V2, BINARY, ALL_BINARY):
        answer = server.client.post(f"/v2/models/{name}/infer", json=body)
        values = values_of(answer)
        assert values.reshape(2, -1).tolist() == as_fp32.tolist(), body
    request = pb.ModelInferRequest(model_name=name)  # iris_input_v2_grpc.json
    given = request.inputs.add(name="input-0", shape=[2, 4], datatype="FP32").contents
    given.fp32_contents.extend([number for row in FLOWERS for number in row])
    [output] = call(grpc, "ModelInfer", request, pb.ModelInferResponse).outputs
    [numbers] = [numbers for _, numbers in output.contents.ListFields()]
    assert np.array(numbers, as_fp32.dtype).reshape(2, -1).tolist() == as_fp32.tolist()


def values_of(answer: httpx.Response) -> Any:
    """The numbers of the only output, in JSON or behind it."""
    assert answer.status_code == 200, answer.text
    size = int(answer.headers.get("inference-header-content-length", len(answer.content)))
    [output] = json.loads(answer.content[:size])["outputs"]
    dtype = {"INT64": np.int64, "FP32": np.float32, "FP64": np.float64}[output["datatype"]]
    if size == len(answer.content):
        return np.array(output["data"], dtype)
    return np.frombuffer(answer.content[size:], dtype)


def test_named_columns_of_lightgbm_come_in_the_forms_of_kserve(served: tuple[Server, str, dict[str, Any]]) -> None:
    server, _, models = served
    predict, url = models["lightgbm-iris"], "/v1/models/lightgbm-iris:predict"
    flower = predict(np.array([[5.1, 3.5, 1.4, 0.2]])).tolist()
    assert np.argmax(flower[0]) == 0
    for body in (V3, README, {"instances": V3["inputs"]}):
        assert server.client.post(url, json=body).json() == {"predictions": flower}
    # As lgbserver reads it: a table of four rows, of which each has one value.
    with_gaps = pandas.DataFrame(V4["inputs"][0], columns=COLUMNS).to_numpy()
    answer = server.client.post(url, json=V4).json()["predictions"]
    assert answer == predict(with_gaps).tolist()
    assert np.argmax(answer[0]) == 0
    refused = server.client.post(url, json=V5)
    assert refused.status_code == 400
    assert "missing column 'petal_width_(cm)'" in refused.json()["error"]


@pytest.mark.parametrize(("name", "tensor", "output"), [
    ("catboost", {"name": "predict-prob", "shape": [1, 10], "datatype": "FP32",
                  "data": [[93, 4, 17, 88, 52, 3, 61, 70, 29, 45]]}, {}),
    ("mnist-svm", {"name": "predict", "shape": [1, 64], "datatype": "FP32", "data": load_digits().data[800:801].tolist()}, {}),
    ("mushroom-xgboost", {"name": "predict", "shape": [1, 126], "datatype": "FP32", "data": [[1.0, 0.0] * 63]}, {}),
    ("iris-lgb", {"name": "predict-prob", "shape": [2, 4], "datatype": "FP32", "data": FLOWERS}, {}),
    ("mnist-svm", {"name": "predict", "shape": [1, 64], "datatype": "FP32", "data": load_digits().data[800:801].tolist()},
     {"outputs": [{"name": "predict"}]}),
])  # fmt: skip
def test_the_folders_and_requests_of_mlserver_run_unchanged(
    served: tuple[Server, str, dict[str, Any]], name: str, tensor: dict[str, Any], output: dict[str, Any]
) -> None:
    server, _, models = served
    answer = server.client.post(f"/v2/models/{name}/versions/v0.1.0/infer", json={"inputs": [tensor], **output})
    expected = np.asarray(models[name](np.array(tensor["data"], np.float32)))
    assert answer.status_code == 200, answer.text
    told = answer.json()
    assert (told["model_name"], told["model_version"], told["outputs"][0]["name"]) == (name, "v0.1.0", "predict")
    assert values_of(answer).reshape(expected.shape).tolist() == expected.tolist()
