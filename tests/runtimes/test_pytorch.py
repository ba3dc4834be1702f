"""The two kinds of file that torch makes, served from a model directory; and what a torch model gets and gives."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
import torch

from mpserve import Tensor, TorchModel
from mpserve.errors import InvalidInput
from mpserve.protocol.declaration import declared_of
from mpserve.protocol.v1.codec import V1Codec
from mpserve.runtimes.pytorch import ExportedModel, TorchScriptModel, declared_inputs
from mpserve.serving.fitting.fit import fit_outputs
from tests.cases import each
from tests.running import free_port, running

# torch.jit is deprecated in favour of torch.export, and its files are still what many people have.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.*` is deprecated:DeprecationWarning")


class Net(torch.nn.Module):
    """x W + b, and a tensor that the graph itself makes on the inputs' device of the day."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(3, 2)
        torch.nn.init.constant_(self.linear.weight, 0.5)
        torch.nn.init.constant_(self.linear.bias, 1.0)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        return [self.linear(x) + torch.arange(2), x.sum(dim=1)]


def script(path: Path) -> Path:
    torch.jit.save(torch.jit.script(Net().eval()), str(path))
    return path


def export(path: Path) -> Path:
    program = torch.export.export(Net().eval(), (torch.zeros(2, 3),), dynamic_shapes=({0: torch.export.Dim("batch")},))
    torch.export.save(program, str(path))
    return path


MADE = {"net.pt": (TorchScriptModel, script), "net.pt2": (ExportedModel, export)}
"""The class of model for a file of each name, and what makes such a file."""


@pytest.mark.parametrize("file", MADE)
def test_numbers_in_json_reach_the_network_in_its_own_width(tmp_path: Path, file: str) -> None:
    """JSON does not say whether 1.5 is a float or a double; the network does."""
    kind, make = MADE[file]
    model = kind("net", make(tmp_path / file))
    model.preload()
    weights = {parameter.data_ptr() for parameter in model.module.parameters()}
    model.load()
    assert {parameter.data_ptr() for parameter in model.module.parameters()} == weights, "a copy on the same CPU"
    declared = declared_of(model.inputs)
    for row in ([1.0, 2.0, 3.0], [0.5, 0.5, 1.5]):
        inputs = V1Codec("error").read(orjson.dumps({"instances": [row]}), declared, True)
        result = model.invoke(model.binding()(inputs.arrays(declared)))
        expected = 0.5 * sum(row) + 1
        outputs = [array.tolist() for _, _, array in fit_outputs(declared_of(model.outputs), result)]
        assert outputs == [[[expected, expected + 1]], [sum(row)]]


class Product(torch.nn.Module):
    def forward(self, x, by):  # type: ignore[no-untyped-def]
        return x * by


class Scaled(torch.nn.Module):
    def forward(self, x: torch.Tensor, by: torch.Tensor, times: float = 1.0) -> torch.Tensor:
        return x - by * times


def test_a_script_gets_its_inputs_by_the_names_of_its_arguments(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(Scaled()), str(tmp_path / "net.pt"))
    model = TorchScriptModel("net", tmp_path / "net.pt")
    model.preload()
    bind = model.binding()
    x, by = (("x", "FP64", np.array([5.0])), ("by", "FP64", np.array([2.0])))
    numbered = [("input-0", *x[1:]), ("input-1", *by[1:])]
    for given in ([x, by], [by, x], numbered):
        assert model.invoke(bind(given)).tolist() == [3.0]
    expected = "expected 'x', 'by'"
    for given, words in (
        ([x], f"missing input 'by'; {expected}"),
        ([], f"got 0 inputs, ; {expected}"),
        ([x, by, ("z", "FP64", x[2])], f"unexpected input 'z'; {expected}"),
        ([x, ("by", "BYTES", np.array([b"2"], object))], "input 'by': expected numbers, got BYTES"),
    ):
        with pytest.raises(InvalidInput) as refused:
            bind(given)
        assert str(refused.value) == words


@each("example, inputs", [
    ((torch.zeros(2, 4, dtype=torch.int64), torch.zeros(2, 4, dtype=torch.bool)),
     (Tensor("x", "INT64", [2, 4]), Tensor("by", "BOOL", [2, 4]))),
    ((torch.zeros(2), 3), ()), ((torch.zeros(2, dtype=torch.bfloat16), torch.zeros(2)), ()),
])  # fmt: skip
def test_an_archive_declares_its_inputs_in_their_order_unless_one_has_no_v2_form(example: Any, inputs: Any) -> None:
    assert declared_inputs(torch.export.export(Product(), example)) == inputs


def test_an_archive_moves_to_another_device_with_the_tensors_that_its_graph_makes(tmp_path: Path) -> None:
    """`Module.to` leaves `torch.arange(2)` on the CPU. "meta" is a device that every machine has."""
    model = ExportedModel("net", export(tmp_path / "net.pt2"))
    model.preload()
    model.device = "meta"
    model.load()
    [total, _] = model.predict(torch.zeros(5, 3, device="meta"))
    assert (total.device.type, tuple(total.shape)) == ("meta", (5, 2))


class Looking(TorchModel):
    def predict(self, *inputs: Any) -> Any:
        self.seen = inputs
        self.grad = torch.is_grad_enabled()
        return inputs[0]


def test_a_torch_model_gets_tensors_without_gradients_and_bytes_as_they_are() -> None:
    model = Looking("m")
    read_only = np.frombuffer(b"\x00\x00\x80\x3f", np.float32)
    text = np.array([b"a"], dtype=object)
    model.invoke([read_only, text])
    assert torch.equal(model.seen[0], torch.tensor([1.0]))
    assert model.seen[1] is text
    assert model.grad is False


@pytest.mark.parametrize(("file", "inputs", "refusals"), [
    ("net.pt", [], {400, 500}), ("net.pt2", [{"name": "x", "datatype": "FP32", "shape": [-1, 3]}], {400}),
])  # fmt: skip
def test_a_model_directory_may_hold_a_file_that_torch_made(
    tmp_path: Path, file: str, inputs: Any, refusals: set[int]
) -> None:
    folder = tmp_path / "mnt"
    folder.mkdir()
    MADE[file][1](folder / file)
    port = free_port()
    flags = ("--model_dir", str(folder), "--model_name=iris", "--workers=2", f"--http_port={port}")
    with running([sys.executable, "-m", "mpserve", "serve", *flags], tmp_path, port) as server:
        server.wait_ready(workers=2)
        rows = [[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]]
        v1 = server.predict("iris", rows)
        assert v1.status_code == 200, v1.text
        tensor = {"name": "x", "datatype": "FP32", "shape": [2, 3], "data": rows}
        v2 = server.client.post("/v2/models/iris/infer", json={"inputs": [tensor]})
        got = [np.array(output["data"]).reshape(output["shape"]).tolist() for output in v2.json()["outputs"]]
        assert got == [[[4.0, 5.0], [1.0, 2.0]], [6.0, 0.0]]
        assert server.client.get("/v2/models/iris").json()["inputs"] == inputs
        assert server.predict("iris", [[1.0]]).status_code in refusals


def test_each_step_of_a_generator_is_in_inference_mode_and_what_is_between_them_is_not() -> None:
    class Steps(TorchModel):
        name = "m"
        inputs = (Tensor("x", "FP32", (-1,)),)
        closed_in: bool

        def predict(self, x: Any) -> Any:
            try:
                for value in x:
                    yield value * float(torch.is_inference_mode_enabled())
            finally:
                self.closed_in = torch.is_inference_mode_enabled()

    model = Steps()
    parts = model.invoke([np.array([1, 2, 3], np.float32)])
    for expected in (1.0, 2.0):
        assert next(parts).item() == expected
        assert not torch.is_inference_mode_enabled()
    parts.close()
    assert model.closed_in
