"""Which device a worker slot gets, and what the worker is shown of the machine."""

from pathlib import Path

import pytest

from mpserve.errors import ConfigurationError
from mpserve.prefork.worker.devices import Device, bind, describe, device_for, may_overlap, plan, visible_accelerators
from tests.cases import each

CPU = Device("cpu", "")


@each("variable, tokens", [
    ("0,1", ["0", "1"]), (" 3 , 1", ["3", "1"]), ("GPU-8932f937-d72c,GPU-11", ["GPU-8932f937-d72c", "GPU-11"]),
    ("MIG-3d85b05c-1,MIG-GPU-8932f937/1/2", ["MIG-3d85b05c-1", "MIG-GPU-8932f937/1/2"]), ("", []), ("-1", []),
    ("NoDevFiles", []), ("0,-1,1", ["0"]), ("1,,0", ["1"]), ("0,0", []), (None, []),
])  # fmt: skip
def test_the_variable_is_read_as_cuda_reads_it(variable: str | None, tokens: list[str], tmp_path: Path) -> None:
    environ = {} if variable is None else {"CUDA_VISIBLE_DEVICES": variable}
    assert visible_accelerators(environ, tmp_path) == tokens


def test_device_files_are_counted_without_the_variable_and_end_its_list(tmp_path: Path) -> None:
    """The minor numbers of the two GPUs are 0 and 2."""
    for name in ("nvidia0", "nvidia2", "nvidiactl", "nvidia-uvm", "nvidia-uvm-tools", "nvidia-modeset", "null"):
        (tmp_path / name).touch()
    assert visible_accelerators({}, tmp_path) == ["0", "1"]
    assert visible_accelerators({"CUDA_VISIBLE_DEVICES": "1,2,0"}, tmp_path) == ["1"]


@each("devices, expected", [
    ("auto", [Device("cuda:0", "3"), Device("cuda:1", "GPU-b")]),
    ("cuda", [Device("cuda:0", "3"), Device("cuda:1", "GPU-b")]), ("cuda:1", [Device("cuda:1", "GPU-b")]),
    ("cuda:1, cuda:0", [Device("cuda:1", "GPU-b"), Device("cuda:0", "3")]),
    ("cuda:0,cuda:0", [Device("cuda:0", "3"), Device("cuda:0", "3")]), ("cuda:0,cpu", [Device("cuda:0", "3"), CPU]),
    ("cpu", [CPU]),
])  # fmt: skip
def test_the_plan_follows_the_setting(devices: str, expected: list[Device]) -> None:
    assert plan(devices, ["3", "GPU-b"]) == expected


@each("devices, accelerators, message", [
    ("cuda:2", ["3", "GPU-b"], r"asks for cuda:2, and only these .* cuda:0 \(.*=3\), cuda:1 \(.*=GPU-b\)"),
    ("cpu,cuda:0", [], "asks for cuda:0, and no GPU is visible"), ("cuda", [], "asks for cuda, and no GPU is visible"),
    ("gpu:0", ["0"], r"'gpu:0' is no device\. Expected auto, or a list of"), ("", ["0"], "'' is no device"),
    ("cuda:-1", ["0"], "'cuda:-1' is no device"), ("auto,cpu", ["0"], "'auto' is no device"),
])  # fmt: skip
def test_a_device_that_cannot_be_had_is_named(devices: str, accelerators: list[str], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        plan(devices, accelerators)


def test_slots_are_dealt_round_and_round() -> None:
    deal = plan("cuda:0,cuda:1", ["0", "1"])
    assert [device_for(slot, deal).name for slot in range(5)] == ["cuda:0", "cuda:1", "cuda:0", "cuda:1", "cuda:0"]


@each("devices, taken, free, overlap", [
    ("cpu", {0, 1}, 2, True), ("auto", {0}, 1, True),  # the worker in slot 0 has cuda:0, and nobody has cuda:1
    ("cuda:0", {0}, 1, True), ("cuda:0", {0, 2}, 1, True),  # one GPU for all
    ("auto", {0, 1}, 2, False), ("auto", {0, 1, 2}, 3, False), ("cuda:0,cpu", {0, 1}, 2, False),
])  # fmt: skip
def test_a_worker_with_a_device_of_its_own_ends_before_its_successor_begins(
    devices: str, taken: set[int], free: int, overlap: bool
) -> None:
    assert may_overlap(taken, free, plan(devices, ["0", "1"])) is overlap


@each("devices, environ, name, left", [
    ("cuda:1", {"CUDA_VISIBLE_DEVICES": "4,7", "ELSE": "1"}, "cuda:0", {"CUDA_VISIBLE_DEVICES": "7", "ELSE": "1"}),
    ("cpu", {"CUDA_VISIBLE_DEVICES": "0"}, "cpu", {"CUDA_VISIBLE_DEVICES": ""}),  # on request: hides every GPU
    ("auto", {}, "cpu", {}),  # for want of a GPU: hides nothing
])  # fmt: skip
def test_a_worker_sees_its_gpu_alone_and_as_the_first(
    devices: str, environ: dict[str, str], name: str, left: dict[str, str]
) -> None:
    [device] = plan(devices, visible_accelerators(environ, Path("/nowhere")))
    assert bind(device, environ) == name
    assert environ == left


@each("devices, workers, words", [
    ("auto", 2, "slot 0 on cuda:0, slot 1 on cuda:1"),
    ("cuda:0,cpu", 3, "slot 0 on cuda:0, slot 1 on cpu, slot 2 on cuda:0"), ("cpu", 4, "all on cpu"),
    ("auto", 1, "all on cuda:0"),
])  # fmt: skip
def test_the_deal_is_told_in_words(devices: str, workers: int, words: str) -> None:
    assert describe(plan(devices, ["0", "1"]), workers) == words
