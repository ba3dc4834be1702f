"""Folders of MLflow, served without code: they answer as ``mlflow.pyfunc`` does, and as ``mlflow models serve`` has it."""

import json
import logging
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import mlflow
import numpy as np
import pandas
import pytest

from mpserve.errors import ConfigurationError
from mpserve.protocol.protobuf import inference_pb2 as pb
from mpserve.serving.repository.loader import from_directory
from tests.e2e.calls import call
from tests.running import Server, free_port, running
from tests.runtimes.mlflow_folders import QUESTIONS, made
from tests.runtimes.model_files import COLUMNS, ROWS

pytestmark = pytest.mark.filterwarnings("default")  # MLflow advises its users by warnings
OF_NUMBERS = ("wine", "flowers", "trees", "leaves")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(tmp_path_factory.mktemp("models"))


class Served:
    """A server of all folders, with two workers."""

    def __init__(self, server: Server, grpc_port: int, log: Path) -> None:
        self.server, self.address, self.log = server, f"127.0.0.1:{grpc_port}", log

    def v1(self, model: str, body: Any) -> httpx.Response:
        return self.server.client.post(f"/v1/models/{model}:predict", json=body)

    def v2(self, model: str, *inputs: dict[str, Any], **more: Any) -> httpx.Response:
        return self.server.client.post(f"/v2/models/{model}/infer", json={"inputs": inputs, **more})


@pytest.fixture(scope="module")
def served(folders: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    port, grpc_port, place = free_port(), free_port(), tmp_path_factory.mktemp("server")
    flags = (f"--http_port={port}", "--enable_grpc=yes", f"--grpc_port={grpc_port}", "--workers=2")
    command = [sys.executable, "-m", "mpserve", "serve", str(folders), *flags]
    with running(command, place, port, slow_stop="ten models") as server:
        yield Served(server.wait_ready(workers=2), grpc_port, place)


def column(name: str, datatype: str, data: Any, shape: Any = None, **parameters: Any) -> dict[str, Any]:
    given = {"name": name, "datatype": datatype, "shape": shape or [len(data)], "data": data}
    return given | ({"parameters": parameters} if parameters else {})


def of_pyfunc(folders: Path, name: str, data: Any = QUESTIONS, **more: Any) -> Any:
    return mlflow.pyfunc.load_model(str(folders / name), suppress_warnings=True).predict(data, **more)


@pytest.mark.parametrize("name", OF_NUMBERS)
def test_a_folder_answers_as_mlflow_over_every_protocol(served: Served, folders: Path, name: str) -> None:
    expected = np.asarray(of_pyfunc(folders, name))
    rows = ROWS.tolist()
    bodies = [
        {"instances": rows},
        {"instances": QUESTIONS.to_dict("records")},
        {"dataframe_split": QUESTIONS.to_dict("split")},
        {"dataframe_records": QUESTIONS[COLUMNS[::-1]].to_dict("records")},
        {"inputs": QUESTIONS.to_dict("list")},
    ]
    for body in bodies:
        answer = served.v1(name, body)
        assert answer.status_code == 200, answer.text
        assert np.array(answer.json()["predictions"], expected.dtype).tolist() == expected.tolist()
    columns = [column(each, "FP64", QUESTIONS[each].tolist()) for each in COLUMNS[::-1]]
    requests: list[tuple[list[dict[str, Any]], dict[str, Any]]] = [
        (columns, {}),
        (columns, {"parameters": {"content_type": "pd"}}),
        ([column("input-0", "FP64", rows, [1000, 4])], {}),
    ]
    for inputs, more in requests:
        [output] = served.v2(name, *inputs, **more).json()["outputs"]
        assert output["name"] == "output-1"  # MLServer's name for an answer without one
        assert np.array(output["data"], expected.dtype).tolist() == expected.tolist()
    head = json.dumps(
        {
            "inputs": [{"name": "x", "datatype": "FP64", "shape": [1000, 4],
                        "parameters": {"binary_data_size": ROWS.nbytes}}],
            "parameters": {"binary_data_output": True},
        }
    ).encode()  # fmt: skip
    binary = served.server.client.post(
        f"/v2/models/{name}/infer", content=head + ROWS.tobytes(),
        headers={"inference-header-content-length": str(len(head))},
    )  # fmt: skip
    if expected.dtype.kind == "f":
        assert binary.content.endswith(expected.tobytes())
    request = pb.ModelInferRequest(model_name=name, raw_input_contents=[ROWS.tobytes()])
    request.inputs.add(name="x", datatype="FP64", shape=ROWS.shape)
    answer = call(served.address, "ModelInfer", request, pb.ModelInferResponse)
    assert list(answer.outputs[0].shape) == list(expected.shape)
    if expected.dtype.kind == "f":
        assert answer.raw_output_contents[0] == expected.tobytes()


def test_the_signature_is_the_metadata(served: Served) -> None:
    metadata = {name: served.server.client.get(f"/v2/models/{name}").json() for name in ("wine", "greeter", "doubler")}
    assert metadata["wine"]["platform"] == "mlflow"
    assert metadata["wine"]["inputs"] == [{"name": name, "datatype": "FP64", "shape": [-1, 1]} for name in COLUMNS]
    assert metadata["greeter"]["inputs"] == [
        {"name": "name", "datatype": "BYTES", "shape": [-1, 1], "parameters": {"content_type": "str"}},
        {"name": "comes", "datatype": "BYTES", "shape": [-1, 1], "parameters": {"content_type": "datetime"}},
        {"name": "nights", "datatype": "INT64", "shape": [-1, 1], "parameters": {"required": False}},
    ]
    assert metadata["doubler"]["inputs"] == [
        {"name": "x", "datatype": "FP32", "shape": [-1, 2]},
        {"name": "y", "datatype": "FP32", "shape": [-1]},
    ]


def test_text_gaps_and_dates_arrive_as_the_signature_says(served: Served, folders: Path) -> None:
    table = pandas.DataFrame({"city": ["Paris", "Rome", "Oslo"], "rooms": [np.nan, 2.0, np.nan]})
    expected = of_pyfunc(folders, "mixed", table).tolist()
    assert served.v1("mixed", {"instances": [["Paris", None], ["Rome", 2], ["Oslo", None]]}).json() == {
        "predictions": expected
    }
    inputs = [column("rooms", "FP64", [None, 2.0, None]), column("city", "BYTES", ["Paris", "Rome", "Oslo"])]
    for each in (inputs, [inputs[0], inputs[1] | {"parameters": {"content_type": "str"}}]):
        assert served.v2("mixed", *each).json()["outputs"][0]["data"] == expected

    guests = [column("name", "BYTES", ["Ännä", None]), column("comes", "BYTES", ["2026-02-27T10:00:00", "2026-03-01"])]
    greeting, leaves = served.v2("greeter", *guests).json()["outputs"]
    assert (greeting["name"], greeting["data"]) == ("greeting", ["Ännä!", "nobody!"])
    assert (leaves["name"], leaves["data"]) == ("leaves", [27, 1])
    optional = [column("nights", "INT64", [2, 3])]
    assert served.v2("greeter", *guests, *optional, parameters={"mark": "?"}).json()["outputs"][0]["data"][0] == "Ännä?"
    body = {"dataframe_records": [{"name": "Ann", "comes": "2026-02-27"}], "params": {"mark": "?"}}
    assert served.v1("greeter", body).json() == {"predictions": [{"greeting": "Ann?", "leaves": 27}]}


def test_tensors_bind_by_name_and_a_dict_is_an_output_each(served: Served) -> None:
    x, y = column("x", "FP32", [[1, 2]], [1, 2]), column("y", "FP32", [1])
    outputs = served.v2("doubler", y, x).json()["outputs"]
    assert {output["name"]: output["data"] for output in outputs} == {"twice": [2.0, 4.0], "sum": [4.0]}
    assert served.v1("doubler", {"inputs": {"x": [[1, 2]], "y": [1]}}).json()["predictions"]["sum"] == [4.0]
    [only] = served.v2("matrix", column("any", "FP64", ROWS[:2].tolist(), [2, 4])).json()["outputs"]
    assert (only["datatype"], only["shape"]) == ("INT64", [2])


def test_a_model_without_a_signature_gets_an_array_or_a_table(served: Served) -> None:
    text = column("a", "BYTES", ["x", "y"])
    assert served.v2("unsigned", text).json()["outputs"][0]["data"] == ["str x", "str y"]
    table = served.v2("unsigned", text, parameters={"content_type": "pd"})
    assert table.json()["outputs"][0]["data"] == ["a x", "a y"]


@pytest.mark.parametrize(
    ("name", "body", "words"),
    [
        ("wine", {"instances": [[1, 2, 3]]}, "expected rows of 4 columns ('sepal_length'"),
        ("wine", {"instances": [{"sepal_length": 1}]}, "Model is missing inputs ['sepal_width'"),
        ("wine", {"instances": [["a", "b", "c", "d"]]}, "could not convert string to float: 'a'"),
        ("wine", {"rows": []}, "must be a JSON dictionary with exactly one of the input fields"),
        ("wine", {"instances": [[None, 1, 2, 3]]}, "Input X contains NaN"),
        ("matrix", {"instances": [[1, 2]]}, "Shape of input (1, 2) does not match expected shape (-1, 4)"),
        ("wine", [column("x", "FP64", [[1, 2, 3]], [1, 3])], "expected rows of 4 columns"),
        ("wine", [column(each, "BYTES", ["a"]) for each in COLUMNS], "Can not safely convert str to float64"),
        ("greeter", [column("name", "BYTES", ["Ann"])], "Model is missing inputs ['comes']"),
        ("greeter", [column("name", "BYTES", ["Ann"]), column("comes", "BYTES", ["soon"])], "is no datetime"),
        ("doubler", [column("x", "FP32", [[1, 2]], [1, 2])], "Model is missing inputs ['y']"),
        ("matrix", [column("x", "FP32", [[1, 2, 3, 4]], [1, 4])], "dtype of input float32 does not match"),
    ],
)
def test_the_signature_refuses_wrong_input_in_its_words(served: Served, name: str, body: Any, words: str) -> None:
    answer = served.v1(name, body) if isinstance(body, dict) else served.v2(name, *body)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert words in error
    assert "\n" not in error
    assert "site-packages" not in error


def test_a_fault_of_the_author_is_500(served: Served) -> None:
    answer = served.v1("faulty", {"inputs": [1]})
    assert (answer.status_code, answer.json()["error"]) == (500, "KeyError : 'a fault of the author'")


def test_an_output_may_be_asked_for_by_its_names(served: Served) -> None:
    row = column("input-0", "FP64", [[1, 2, 3, 4]], [1, 4])
    for name in ("output-1", "output-0", "predict", "quality"):
        assert served.v2("wine", row, outputs=[{"name": name}]).json()["outputs"][0]["name"] == name
    assert served.v2("wine", row, outputs=[{"name": "no"}]).status_code == 400


def test_csv_is_a_table_and_other_bodies_are_415(served: Served, folders: Path) -> None:
    post, url = served.server.client.post, "/v1/models/wine:predict"
    csv = QUESTIONS.to_csv(index=False).encode()
    answer = post(url, content=csv, headers={"content-type": "text/csv; charset=utf-8"})
    assert answer.json()["predictions"] == of_pyfunc(folders, "wine").tolist()
    assert post(url, content=b"GIF", headers={"content-type": "image/gif"}).status_code == 415
    for broken in (b"", b"\xff", b'a,"'):
        assert post(url, content=broken, headers={"content-type": "text/csv"}).status_code == 400


def test_a_folder_is_loaded_anew_in_every_worker(served: Served, folders: Path) -> None:
    shutil.rmtree(folders / "leaves")
    shutil.copytree(folders / "wine", folders / "leaves")
    assert served.server.client.post("/v2/repository/models/leaves/load").status_code == 200
    expected = of_pyfunc(folders, "wine").tolist()
    for _ in range(8):
        answer = httpx.post(
            f"{str(served.server.client.base_url).rstrip(chr(47))}/v1/models/leaves:predict",
            json={"instances": ROWS.tolist()},
        )
        assert answer.json()["predictions"] == expected


def test_the_routes_of_mlflows_server_serve_an_only_model(folders: Path, tmp_path: Path) -> None:
    port = free_port()
    command = [sys.executable, "-m", "mpserve", "serve", str(folders / "wine"), f"--http_port={port}", "--workers=1"]
    with running(command, tmp_path, port, slow_stop="the libraries of MLflow") as server:
        client = server.wait_ready(workers=1).client
        answer = client.post("/invocations", json={"dataframe_split": QUESTIONS.to_dict("split")})
        assert answer.json() == {"predictions": of_pyfunc(folders, "wine").tolist()}
        csv = client.post("/invocations", content=QUESTIONS.to_csv(index=False), headers={"content-type": "text/csv"})
        assert csv.json() == answer.json()
        assert [client.get(path).status_code for path in ("/ping", "/health", "/version")] == [200, 200, 200]
        assert (
            client.post("/invocations", json={"dataframe_split": {"columns": ["a"], "data": [[1]]}}).status_code == 400
        )


def test_several_models_need_a_name(served: Served) -> None:
    refused = served.server.client.post("/invocations", json={"inputs": [1]})
    assert refused.status_code == 400
    assert "names no model" in refused.json()["error"]


def test_a_missing_library_is_named_with_what_to_install(folders: Path, tmp_path: Path) -> None:
    shutil.copytree(folders / "wine", tmp_path / "wine")
    made_for = (tmp_path / "wine" / "MLmodel").read_text()
    (tmp_path / "wine" / "MLmodel").write_text(
        made_for.replace("loader_module: mlflow.sklearn", "loader_module: nowhere")
    )
    [source] = from_directory(tmp_path / "wine", None)
    model = source.obtain()
    with pytest.raises(ConfigurationError, match=r"wine needs nowhere, .*: pip install -r .*requirements.txt"):
        model.load()


def test_other_versions_are_told_once(folders: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    shutil.copytree(folders / "wine", tmp_path / "wine")
    (tmp_path / "wine" / "requirements.txt").write_text("scikit-learn==0.1\nnumpy\n--pre\n")
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            from_directory(tmp_path / "wine", None)[0].obtain()
    [told] = [record.getMessage() for record in caplog.records if "was made with" in record.getMessage()]
    assert "scikit-learn==0.1 (here" in told
    assert "numpy" not in told


def test_a_folder_without_a_python_function_is_refused(folders: Path, tmp_path: Path) -> None:
    (tmp_path / "MLmodel").write_text("flavors:\n  spark:\n    code: null\n")
    with pytest.raises(Exception, match="has the flavors spark, expected python_function"):
        from_directory(tmp_path, None)[0].obtain()
