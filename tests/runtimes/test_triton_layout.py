"""Triton's model repositories of ONNX and torch models: served as they are."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import helper

from mpserve.config.settings import Settings
from mpserve.errors import ConfigurationError
from mpserve.serving.execution.batcher import limits
from mpserve.serving.repository.model_directory import find_all
from tests.running import Server, free_port, running
from tests.runtimes.onnx_files import FLOAT, net

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.*` is deprecated:DeprecationWarning")


class Two(torch.nn.Module):
    """Two inputs that cannot be exchanged, and two outputs."""

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return a - b, a * b


def script(file: Path) -> None:
    torch.jit.save(torch.jit.script(Two().eval()), str(file))


def export(file: Path) -> None:
    batch = torch.export.Dim("batch", max=64)
    example = (torch.zeros(2, 2), torch.zeros(2, 2))
    torch.export.save(torch.export.export(Two().eval(), example, dynamic_shapes=({0: batch}, {0: batch})), str(file))


def scaled(by: float) -> Any:
    """x * by, where by lies in a file of its own."""
    return net(
        [helper.make_node("Mul", ["x", "by"], ["y"]), helper.make_node("Neg", ["x"], ["z"])],
        [("x", FLOAT, ["batch", 2])],
        [("y", FLOAT, ["batch", 2]), ("z", FLOAT, ["batch", 2])],
        {"by": np.array([by, by], np.float32)},
    )


ONNX = """
platform: "onnxruntime_onnx"
max_batch_size: 8
input [ { name: "x" data_type: TYPE_FP32 dims: [ 2 ] } ]
output [ { name: "y" data_type: TYPE_FP32 dims: [ 2 ] } ]
dynamic_batching { max_queue_delay_microseconds: 100 preferred_batch_size: [ 4 ] }
instance_group [ { count: 2 kind: KIND_CPU } ]
"""
TORCH = """
backend: "pytorch"
max_batch_size: 4
input [ { name: "INPUT__1" data_type: TYPE_FP32 dims: [ 2 ] }, { name: "INPUT__0" data_type: TYPE_FP32 dims: [ 2 ] } ]
output [ { name: "OUTPUT__1" data_type: TYPE_FP32 dims: [ 2 ] } ]
"""


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("repository")
    for version, by in (("1", 2.0), ("2", 3.0)):
        inside = folder / "scaled" / version / "model.onnx"  # a folder, as Triton has it for external data
        inside.mkdir(parents=True)
        onnx.save(scaled(by), inside / "model.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    (folder / "scaled" / "config.pbtxt").write_text(ONNX)
    for name, file, make in (("script", "model.pt", script), ("export", "net.pt2", export)):
        (folder / name / "1").mkdir(parents=True)
        make(folder / name / "1" / file)
        chosen = "" if file == "model.pt" else f'default_model_filename: "{file}"'
        (folder / name / "config.pbtxt").write_text(TORCH + chosen)
    return folder


@pytest.fixture(scope="module")
def served(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    port = free_port()
    flags = (f"--model_dir={repository}", "--workers=2", f"--http_port={port}")
    command = [sys.executable, "-m", "mpserve", "serve", *flags]
    with running(command, tmp_path_factory.mktemp("server"), port) as server:
        yield server.wait_ready(workers=2)


def tensor(name: str, rows: Any) -> dict[str, Any]:
    return {"name": name, "datatype": "FP32", "shape": [len(rows), len(rows[0])], "data": rows}


def infer(server: Server, model: str, *inputs: dict[str, Any], **more: Any) -> Any:
    return server.client.post(f"/v2/models/{model}/infer", content=json.dumps({"inputs": inputs, **more}))


def test_the_newest_version_is_served_with_what_the_configuration_declares(served: Server) -> None:
    rows = [[1.0, 2.0], [3.0, 4.0]]
    [output] = infer(served, "scaled", tensor("x", rows)).json()["outputs"]
    assert (output["name"], output["data"]) == ("y", [3.0, 6.0, 9.0, 12.0])  # z is not declared
    assert served.client.get("/v2/models/scaled").json()["versions"] == ["2"]
    assert served.client.get("/v2/models/scaled/config").json()["max_batch_size"] == 8
    refused = infer(served, "scaled", tensor("x", rows * 5))
    assert (refused.status_code, "expected at most 8 (max_batch_size)" in refused.json()["error"]) == (400, True)
    assert "without effect here: instance_group.kind" in served.log


@pytest.mark.parametrize("model", ["script", "export"])
def test_the_names_of_torch_models_say_their_places(served: Server, model: str) -> None:
    first, second = tensor("INPUT__0", [[5.0, 6.0]]), tensor("INPUT__1", [[2.0, 3.0]])
    for inputs in ((first, second), (second, first)):
        answer = infer(served, model, *inputs)
        assert answer.status_code == 200, answer.text
        assert [(output["name"], output["data"]) for output in answer.json()["outputs"]] == [
            ("OUTPUT__1", [10.0, 18.0])
        ]
    v1 = served.predict(model, [{"INPUT__1": [2.0, 3.0], "INPUT__0": [5.0, 6.0]}])
    assert v1.json() == {"predictions": [[10.0, 18.0]]}
    metadata = served.client.get(f"/v2/models/{model}").json()
    declared = [{"name": name, "datatype": "FP32", "shape": [-1, 2]} for name in ("INPUT__0", "INPUT__1")]
    assert metadata["inputs"] == declared
    for wrong, words in (
        ([first], "missing input 'INPUT__1'; expected 'INPUT__0', 'INPUT__1'"),
        ([first, tensor("INPUT__1", [[1.0]])], "input 'INPUT__1': expected shape [-1, 2], got [1, 1]"),
        ([first, {**second, "datatype": "INT64", "data": [1, 2]}],
         "input 'INPUT__1': expected datatype FP32, got INT64"),
    ):  # fmt: skip
        refused = infer(served, model, *wrong)
        assert (refused.status_code, refused.json()["error"]) == (400, words)


def test_sizes_that_an_archive_was_not_exported_for_are_the_clients_fault(served: Server) -> None:
    rows = [[1.0, 2.0]] * 65
    refused = infer(served, "export", tensor("INPUT__0", rows), tensor("INPUT__1", rows))
    assert refused.status_code == 400, refused.text
    assert "<= 64" in refused.json()["error"]


def test_versions_are_loaded_anew(served: Server, repository: Path) -> None:
    assert served.client.post("/v2/repository/models/scaled/load", json={}).status_code == 200
    (repository / "scaled" / "config.pbtxt").write_text(ONNX + "version_policy { all { } }")
    assert served.client.post("/v2/repository/models/scaled/load", json={}).status_code == 200
    answer = infer(served, "scaled/versions/1", tensor("x", [[1.0, 2.0]]))
    assert answer.json()["outputs"][0]["data"] == [2.0, 4.0]


def models(folder: Path) -> list[Any]:
    return [source.obtain() for source in find_all(Settings(model_dir=str(folder)))]


def test_batches_and_instances_follow_the_configuration(repository: Path) -> None:
    by_name = {model.name: model for model in models(repository)}
    found = limits(by_name["scaled"], Settings(max_batch_size=64))
    assert found is not None
    assert (found.size, found.delay, found.preferred, by_name["scaled"].concurrency) == (8, 0.0001, frozenset({4}), 2)
    assert limits(by_name["script"], Settings(max_batch_size=64)) is None  # it asks for no dynamic_batching


@pytest.mark.parametrize(("config", "words"), [
    (ONNX.replace("FP32 dims: [ 2 ] } ]\noutput", "FP32 dims: [ 3 ] } ]\noutput"),
     r"input 'x' is FP32 \[-1, 2\], and its configuration declares 'x' as FP32 \[-1, 3\]"),
    (ONNX.replace('"x" data_type: TYPE_FP32', '"x" data_type: TYPE_FP64'), "declares 'x' as FP64"),
    (ONNX.replace('"x"', '"w"'), r"model.onnx has the inputs x, and its configuration declares w"),
    (ONNX.replace('"y"', '"w"'), r"has the outputs y \(FP32\), z \(FP32\), and its configuration declares w \(FP32\)"),
    (ONNX.replace("max_batch_size: 8", ""), r"input 'x' is FP32 \[-1, 2\], and its configuration declares 'x' as FP32 \[2\]"),
])  # fmt: skip
def test_a_configuration_that_contradicts_the_file_is_refused(tmp_path: Path, config: str, words: str) -> None:
    (tmp_path / "net" / "1").mkdir(parents=True)
    onnx.save(scaled(2.0), tmp_path / "net" / "1" / "model.onnx")
    (tmp_path / "net" / "config.pbtxt").write_text(config)
    with pytest.raises(ConfigurationError, match=words):
        models(tmp_path)


def test_a_configuration_that_declares_more_inputs_than_a_script_takes_is_refused(tmp_path: Path) -> None:
    (tmp_path / "net" / "1").mkdir(parents=True)
    script(tmp_path / "net" / "1" / "model.pt")
    more = TORCH + 'input { name: "INPUT__2" data_type: TYPE_FP32 dims: [ 2 ] }'
    (tmp_path / "net" / "config.pbtxt").write_text(more)
    with pytest.raises(ConfigurationError, match=r"model\.pt takes a, b, and its configuration declares 3 inputs"):
        models(tmp_path)
