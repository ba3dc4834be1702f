"""Triton's model repositories: which versions of which models are served, and what their configurations say of them."""

import logging
from pathlib import Path
from typing import Any

import pytest

from mpserve.config.settings import Settings
from mpserve.errors import ConfigurationError
from mpserve.protocol.declaration import Tensor
from mpserve.serving.repository import triton
from mpserve.serving.repository.model_directory import Place, find_all, places

FULL = """
name: "net"
platform: "onnxruntime_onnx"
max_batch_size: 8
input [ { name: "x", data_type: TYPE_FP32, dims: [ 3, -1 ] } ]
output { name: "y" data_type: TYPE_STRING dims: 1 label_filename: "labels.txt" }
dynamic_batching { preferred_batch_size: [ 4, 8 ] max_queue_delay_microseconds: 1500
  priority_levels: 5 default_priority_level: 3 }
instance_group [ { count: 2 kind: KIND_CPU }, { count: 1 } ]
optimization { graph { level: 1 } }
model_warmup [ { name: "w" } ]
"""


def lay(folder: Path, config: str, *versions: str, file: str = "model.onnx") -> Path:
    for version in versions:
        (folder / version).mkdir(parents=True)
        (folder / version / file).touch()
    folder.mkdir(exist_ok=True)
    (folder / triton.FILE).write_text(config)
    return folder


def read(folder: Path, config: str) -> Any:
    return triton.read(lay(folder, config))


def test_a_configuration_says_what_a_model_declares(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        config = read(tmp_path, FULL)
        triton.read(tmp_path)
    assert config == triton.TritonConfig(
        tmp_path / "config.pbtxt", "net", "onnxruntime", "", 1, 8, 0.0015, (4, 8), 3, 5, 3,
        (Tensor("x", "FP32", [-1, 3, -1]),), (Tensor("y", "BYTES", [-1, 1]),),
    )  # fmt: skip
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path / 'config.pbtxt'}: without effect here: optimization, model_warmup, instance_group.kind,"
        " output.label_filename"
    ]


@pytest.mark.parametrize(("config", "expected"), [
    ("", (0, 0.0, None, ())),
    ('input { name: "x" data_type: TYPE_BOOL dims: [ 2 ] }', (0, 0.0, None, (Tensor("x", "BOOL", [2]),))),
    # Without dynamic_batching Triton joins no requests, and the batch is a dimension all the same.
    ('max_batch_size: 4 input { name: "x" data_type: TYPE_BF16 dims: [ ] }', (0, 0.0, None, (Tensor("x", "BF16", [-1]),))),
    ("max_batch_size: 4 dynamic_batching { } instance_group { count: 1 }", (4, 0.0, None, ())),
])  # fmt: skip
def test_batches_are_made_where_they_are_asked_for(tmp_path: Path, config: str, expected: Any) -> None:
    found = read(tmp_path, config)
    assert (found.batch_size, found.batch_delay, found.concurrency, found.inputs) == expected


@pytest.mark.parametrize(("policy", "served"), [
    ("", ["10"]),
    ("version_policy: { all { } }", ["1", "10", "3"]),
    ("version_policy { latest { num_versions: 2 } }", ["3", "10"]),
    ("version_policy: { specific: { versions: [1, 3] } }", ["1", "3"]),
])  # fmt: skip
def test_the_policy_says_which_versions_are_served(tmp_path: Path, policy: str, served: list[str]) -> None:
    lay(tmp_path / "repository" / "net", policy, "1", "3", "10", "0", "backup")
    expected = [Place(f"net/{version}", version) for version in served]
    assert places(Settings(model_dir=str(tmp_path / "repository"))) == {"net": expected}
    # The folder of one model is served too, under its own name or that of its configuration.
    folder = lay(tmp_path / "mnt", f'name: "other"\n{policy}', "1", "3", "10")
    assert places(Settings(model_dir=str(folder))) == {"other": [Place(version, version) for version in served]}


@pytest.mark.parametrize(("config", "words"), [
    ('platform: "ensemble" ensemble_scheduling { }',
     "it describes an ensemble, which mpserve does not serve: call the models one after the other"),
    ('backend: "python"', "for Triton's backend python, .*: turn its TritonPythonModel into a model.py"),
    ('platform: "tensorrt_plan"', "for Triton's backend tensorrt_plan, .*: serve the .onnx file"),
    ('backend: "mine"', "for Triton's backend mine, which mpserve does not serve: write a model.py"),
    ("sequence_batching { }", "sequence_batching sends requests to the model that has their state"),
    ("max_batch_size: true", "max_batch_size is True, expected a whole number"),
    ("max_batch_size: -1", "max_batch_size is -1, expected a number of 0 or more"),
    ("input: 3", "input is 3, expected { ... }"),
    ('input { name: "x" data_type: FLOAT }', "data_type of 'x' is 'FLOAT', expected one of TYPE_STRING TYPE_BOOL"),
    ('input { name: "x" data_type: TYPE_FP32 reshape { shape: [] } }', "'x' has a reshape, which mpserve does not do"),
    ("input { data_type: TYPE_FP32 }", "an input or output has no name"),
    ('default_model_filename: "../a.onnx"', "default_model_filename is '../a.onnx', expected the name of a file"),
    ("version_policy { latest { num_versions: 0 } }", "num_versions is 0, expected a number of 1 or more"),
    ("version_policy { specific { versions: [7] } }", "version_policy names version 7, and there is no such folder"),
    ("a: [", "line 1: expected a value of a, got 'the end'"),
])  # fmt: skip
def test_what_is_not_served_or_wrong_is_refused_in_a_sentence(tmp_path: Path, config: str, words: str) -> None:
    lay(tmp_path / "net", config, "1")
    settings = Settings(model_dir=str(tmp_path))
    with pytest.raises(ConfigurationError, match=f"net/config.pbtxt: .*{words}"):
        find_all(settings)
    # Beside a running server it does not keep the other models from being listed.
    lay(tmp_path / "other", "", "1")
    assert places(settings) == {"net": [Place("net", "")], "other": [Place("other/1", "1")]}


def test_a_configuration_without_a_model_is_refused(tmp_path: Path) -> None:
    lay(tmp_path / "net", "")
    with pytest.raises(ConfigurationError, match="describes a model, and there is no folder of a version beside it"):
        find_all(Settings(model_dir=str(tmp_path)))
    config = triton.read(lay(tmp_path / "torch", 'backend: "pytorch"', "1"))
    assert config is not None
    with pytest.raises(
        ConfigurationError, match=r"there is no model\.pt or model\.pt2 in .*1, which .*config.pbtxt describes"
    ):
        config.model_in(tmp_path / "torch" / "1")


def test_no_folder_hides_another_whose_configuration_gives_the_same_name(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        lay(tmp_path / folder, 'name: "net" backend: "pytorch"', "1", file="model.pt")
    settings = Settings(model_dir=str(tmp_path))
    assert places(settings) == {"net": [Place("a/1", "1"), Place("b/1", "1")]}
