"""ONNX files: served without code, they answer as ONNX Runtime does, from sessions that each worker has for itself."""

import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import psutil
import pytest
from onnx import TensorProto, helper

from mpserve.config.settings import Settings
from mpserve.errors import ConfigurationError, InvalidInput
from mpserve.protocol.declaration import declared_of
from mpserve.protocol.protobuf import inference_pb2 as pb
from mpserve.protocol.v1.rows import tensors_in
from mpserve.serving.execution.batcher import limits
from mpserve.serving.repository.loader import from_target
from tests.e2e.calls import call
from tests.running import Server
from tests.runtimes.onnx_files import CITIES, FLOAT, MAKERS, net
from tests.runtimes.served import serving_files

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's exporter to ONNX

ROWS = np.random.default_rng(7).uniform(0.0, 8.0, (1000, 4)).astype(np.float32)
OF_ROWS = {"scores": "X", "forest": "X", "outside": "x", "traced": "x"}
"""Models with one input, [n, 4] of FP32, and its name."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for make in MAKERS.values():
        make(folder)
    for file in folder.glob("*.onnx"):
        (folder / file.stem).mkdir()
        file.rename(folder / file.stem / "model.onnx")
    return folder


@pytest.fixture(scope="module")
def served(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, str]]:
    with serving_files(folder, tmp_path_factory.mktemp("server"), 2000, "seven models") as served:
        yield served


def expected(folder: Path, name: str, **inputs: Any) -> dict[str, Any]:
    """What ONNX Runtime itself answers; its lists of maps as arrays."""
    [file] = (folder / name).rglob("*.onnx")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(file, options)
    names = [output.name for output in session.get_outputs() if not output.type.startswith("seq(tensor")]
    answers = session.run(names, inputs)
    return {
        name: np.array([[*row.values()] for row in answer], np.float32) if isinstance(answer, list) else answer
        for name, answer in zip(names, answers, strict=True)
    }


def as_array(like: Any, output: dict[str, Any]) -> Any:
    return np.array(output["data"], like.dtype).reshape(output["shape"])


@pytest.mark.parametrize("name", OF_ROWS)
def test_a_file_answers_as_onnx_runtime_over_every_protocol(
    served: tuple[Server, str], folder: Path, name: str
) -> None:
    server, address = served
    answers = expected(folder, name, **{OF_ROWS[name]: ROWS})

    v1 = server.predict(name, ROWS.tolist())
    assert v1.status_code == 200, v1.text
    predictions = v1.json()["predictions"]
    for output, answer in answers.items():
        got = predictions if len(answers) == 1 else [row[output] for row in predictions]
        assert np.array(got, answer.dtype).tolist() == answer.tolist(), output

    tensor = {"name": OF_ROWS[name], "datatype": "FP32", "shape": list(ROWS.shape)}
    url = f"/v2/models/{name}/infer"
    v2 = server.client.post(url, json={"inputs": [{**tensor, "data": ROWS.tolist()}]})
    assert v2.status_code == 200, v2.text
    for output, (key, answer) in zip(v2.json()["outputs"], answers.items(), strict=True):
        assert (output["name"], output["shape"]) == (key, list(answer.shape))
        assert as_array(answer, output).tolist() == answer.tolist()

    last = list(answers)[-1]
    asked = [{"name": last, "parameters": {"binary_data": True}}]
    body = {"inputs": [{**tensor, "parameters": {"binary_data_size": ROWS.nbytes}}], "outputs": asked}
    head = json.dumps(body).encode()
    headers = {"inference-header-content-length": str(len(head))}
    binary = server.client.post(url, content=head + ROWS.tobytes(), headers=headers)
    size = int(binary.headers["inference-header-content-length"])
    assert [output["name"] for output in json.loads(binary.content[:size])["outputs"]] == [last]
    assert binary.content[size:] == answers[last].tobytes()

    request = pb.ModelInferRequest(model_name=name, raw_input_contents=[ROWS.tobytes()])
    request.inputs.add(name=OF_ROWS[name], datatype="FP32", shape=ROWS.shape)
    answer = call(address, "ModelInfer", request, pb.ModelInferResponse)
    assert {output.name: list(output.shape) for output in answer.outputs} == {
        key: list(value.shape) for key, value in answers.items()
    }
    assert answer.raw_output_contents[-1] == answers[last].tobytes()


def test_metadata_is_that_of_the_file(served: tuple[Server, str]) -> None:
    server, _ = served
    metadata = {name: server.client.get(f"/v2/models/{name}").json() for name in MAKERS}
    assert metadata["scores"]["platform"] == "onnxruntime_onnx"
    assert metadata["scores"]["inputs"] == [{"name": "X", "datatype": "FP32", "shape": [-1, 4]}]
    assert metadata["scores"]["outputs"] == [
        {"name": "output_label", "datatype": "BYTES", "shape": [-1]},
        {
            "name": "output_probability", "datatype": "FP32", "shape": [-1, 3],
            "parameters": {"labels": ["setosa", "versicolor", "virginica"]},
        },
    ]  # fmt: skip
    text, *numbers = metadata["table"]["inputs"]
    assert text == {"name": "city", "datatype": "BYTES", "shape": [-1, 1], "parameters": {"content_type": "str"}}
    assert numbers == [{"name": name, "datatype": "FP32", "shape": [-1, 1]} for name in ("age", "income")]
    assert metadata["outside"]["versions"] == ["3"]
    assert metadata["one"]["outputs"] == [{"name": "y", "datatype": "FP16", "shape": [1, 4]}]


def test_a_pipeline_on_text_and_numbers_gets_its_columns_from_objects_and_rows(
    served: tuple[Server, str], folder: Path
) -> None:
    server, _ = served
    rng = np.random.default_rng(1)
    rows = [[str(rng.choice(CITIES)), float(np.float32(rng.normal(50, 9))), 9.5] for _ in range(200)]
    rows[3][2] = None
    columns = {
        "city": np.array([[row[0]] for row in rows], object),
        "age": np.array([[row[1]] for row in rows], np.float32),
        "income": np.array([[np.nan if row[2] is None else row[2]] for row in rows], np.float32),
    }
    answers = expected(folder, "table", **columns)
    for instances in (rows, [{"income": income, "city": city, "age": age} for city, age, income in rows]):
        answer = server.predict("table", instances)
        assert answer.status_code == 200, answer.text
        predictions = answer.json()["predictions"]
        assert [row["label"] for row in predictions] == answers["label"].tolist()
        got = np.array([row["probabilities"] for row in predictions], np.float32)
        assert got.tolist() == answers["probabilities"].tolist()
    for shape in ([200], [200, 1]):
        inputs = [
            {"name": name, "datatype": "BYTES" if name == "city" else "FP32", "shape": shape, "data": values}
            for name, values in (
                ("age", [row[1] for row in rows]),
                ("city", [row[0] for row in rows]),
                ("income", [9.5] * 200),
            )
        ]
        v2 = server.client.post("/v2/models/table/infer", json={"inputs": inputs})
        assert v2.status_code == 200, v2.text
    refused = server.predict("table", [{"city": "Rome", "age": 3.0, "sex": "f"}])
    assert (refused.status_code, refused.json()["error"]) == (
        400,
        "unexpected input 'sex'; expected 'city', 'age', 'income'",
    )


def test_half_precision_and_a_fixed_batch(served: tuple[Server, str]) -> None:
    server, _ = served
    assert server.predict("one", [[1, 2.5, 3, 4]]).json() == {"predictions": [[-1.0, -2.5, -3.0, -4.0]]}
    refused = server.predict("one", [[1, 2, 3, 4]] * 2)
    assert (refused.status_code, refused.json()["error"]) == (400, "input 'x': expected shape [1, 4], got [2, 4]")


IDS = {"name": "ids", "datatype": "INT64", "shape": [1, 2], "data": [1, 2]}
BIAS = {"name": "bias", "datatype": "FP32", "shape": [1, 2], "data": [0.5, 0.5]}


@pytest.mark.parametrize(("model", "inputs", "words"), [
    ("traced", [{**BIAS, "name": "x"}], "input 'x': expected shape [-1, 4], got [1, 2]"),
    ("traced", [{"name": "x", "datatype": "FP64", "shape": [1, 4], "data": [1, 2, 3, 4]}],
     "input 'x': expected datatype FP32, got FP64"),
    ("traced", [{"name": "z", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}], "unexpected input 'z'; expected 'x'"),
    ("pair", [IDS], "missing input 'bias'; expected 'ids', 'bias'"),
    ("pair", [IDS, {**BIAS, "shape": [1, 3], "data": [1, 2, 3]}],
     "expected one size for dimension 'length'; input 'ids' has 2, input 'bias' has 3"),
    ("pair", [{**IDS, "data": [1, 99]}, BIAS], "the model refused the input: indices element out of data bounds, idx=99"),
])  # fmt: skip
def test_wrong_inputs_are_refused_in_words(
    served: tuple[Server, str], model: str, inputs: list[dict[str, Any]], words: str
) -> None:
    refused = served[0].client.post(f"/v2/models/{model}/infer", json={"inputs": inputs})
    assert refused.status_code == 400, refused.text
    assert refused.json()["error"].startswith(words)
    assert "/" not in refused.json()["error"]


def test_a_session_is_loaded_anew_in_every_worker_while_it_answers(served: tuple[Server, str], folder: Path) -> None:
    server, _ = served
    body = {"inputs": [IDS, BIAS]}
    for _ in range(3):
        assert server.client.post("/v2/repository/models/pair/load", json={}).status_code == 200
        for _ in range(8):
            answer = server.client.post("/v2/models/pair/infer", json=body, headers={"connection": "close"})
            assert answer.json()["outputs"][0]["data"] == [1.5, 2.5]
    assert server.states()["ready"] == 2


def test_joined_requests_get_their_own_rows(served: tuple[Server, str], folder: Path) -> None:
    server, _ = served
    labels = expected(folder, "forest", X=ROWS)["label"].tolist()

    def ask(index: int) -> Any:
        return server.predict("forest", ROWS[index : index + 2].tolist()).json()["predictions"]

    with ThreadPoolExecutor(16) as pool:
        for index, answer in enumerate(pool.map(ask, range(200))):
            assert [row["label"] for row in answer] == labels[index : index + 2]


def test_a_worker_with_a_gpu_that_onnx_runtime_does_not_know_says_so(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = loaded(folder / "pair" / "model.onnx")
    model.device = "cuda:0"
    with caplog.at_level(logging.WARNING):
        model.load()
    [line] = [record.getMessage() for record in caplog.records]
    assert line.startswith("model model runs on the CPU, since onnxruntime has no working CUDAExecutionProvider here")
    assert model.session.get_providers() == ["CPUExecutionProvider"]


def test_each_worker_has_onnx_runtime_and_maps_the_weights_and_the_arbiter_does_not(served: tuple[Server, str]) -> None:
    server, _ = served

    def mapped(pid: int) -> set[str]:
        files = {Path(mapping.path).name for mapping in psutil.Process(pid).memory_maps()}
        return {what for what in ("onnxruntime", "weights.bin") for file in files if file.startswith(what)}

    assert mapped(server.pid) == set()
    assert [mapped(pid) for pid in server.workers()] == [{"onnxruntime", "weights.bin"}] * 2


def loaded(file: Path) -> Any:
    [source] = from_target(str(file), None, Settings())
    model = source.obtain()
    model.native_threads = 1
    return model


def test_nothing_of_onnx_runtime_is_imported_before_the_load(folder: Path) -> None:
    file = folder / "pair" / "model.onnx"
    code = (
        "import sys; from mpserve.serving.repository.loader import from_target\n"
        f"[source] = from_target({str(file)!r}, None); model = source.obtain()\n"
        "assert 'onnxruntime' not in sys.modules; model.load(); assert 'onnxruntime' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_requests_are_joined_only_where_rows_are_the_first_dimension_of_everything(
    folder: Path, tmp_path: Path
) -> None:
    joined = {}
    for name in MAKERS:
        [file] = (folder / name).rglob("*.onnx")
        joined[name] = limits(loaded(file), Settings(max_batch_size=8)) is not None
    assert joined == {name: name != "one" for name in MAKERS}
    found = net(
        [helper.make_node("NonZero", ["x"], ["y"])], [("x", FLOAT, ["n", 4])], [("y", TensorProto.INT64, ["boxes", 2])]
    )
    onnx.save(found, tmp_path / "found.onnx")
    assert limits(loaded(tmp_path / "found.onnx"), Settings(max_batch_size=8)) is None


def test_the_threads_of_a_session_keep_to_the_budget_and_null_is_nan_only_where_the_graph_looks_for_it(
    folder: Path,
) -> None:
    model = loaded(folder / "table" / "model.onnx")
    model.load()
    assert model.session.get_session_options().intra_op_num_threads == 1
    declared = declared_of(model.inputs, model.takes_missing())
    [_, _, (_, _, income)] = tensors_in(declared, {"instances": [{"city": "Rome", "age": 3, "income": None}]})
    assert np.isnan(income).all()
    other = loaded(folder / "pair" / "model.onnx")
    with pytest.raises(InvalidInput, match="'bias': expected numbers, booleans or strings, got null"):
        tensors_in(declared_of(other.inputs, other.takes_missing()), {"instances": [{"ids": [1], "bias": [None]}]})


@pytest.mark.parametrize(("content", "words"), [
    (b"hello world", "is no ONNX model: the message"),
    (b"", "is no ONNX model: "),
    (net([helper.make_node("Identity", ["x"], ["y"])], [("x", TensorProto.BFLOAT16, [1])],
         [("y", TensorProto.BFLOAT16, [1])]).SerializeToString(), "input 'x' is a tensor of bfloat16, which V2 or"),
    (net([helper.make_node("Identity", ["x"], ["y"])], [("x", FLOAT, None)], [("y", FLOAT, None)]).SerializeToString(),
     "input 'x' has no shape; give it one"),
])  # fmt: skip
def test_what_cannot_be_served_is_refused_before_the_fork(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "a.onnx").write_bytes(content)
    with pytest.raises(ConfigurationError, match=f"a.onnx(:)? {words}"):
        loaded(tmp_path / "a.onnx")
