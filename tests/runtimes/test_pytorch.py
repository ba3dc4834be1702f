"""The two kinds of file that torch makes, served from a model directory; and what a torch model gets and gives."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
import torch

from mpserve import Tensor, TorchModel
from mpserve.protocol.declaration import declared_of
from mpserve.protocol.v1.codec import V1Codec
from mpserve.runtimes.pytorch import ExportedModel, TorchScriptModel, declared_inputs
from mpserve.serving.models.fit import fit_inputs, fit_outputs
from tests.cases import each
from tests.running import Server, free_port, running

# torch.jit is deprecated in favour of torch.export, and its files are still what many people have.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.*` is deprecated:DeprecationWarning")

BATCH = torch.export.Dim("batch")


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
    program = torch.export.export(Net().eval(), (torch.zeros(2, 3),), dynamic_shapes=({0: BATCH},))
    torch.export.save(program, str(path))
    return path


def ask(model: Any, payload: Any) -> list[Any]:
    model.preload()
    model.load()
    declared = declared_of(model.inputs)
    inputs = V1Codec("error").read(orjson.dumps(payload), declared, True)
    result = model.invoke(fit_inputs(declared, inputs.arrays(declared)))
    return [array.tolist() for _, _, array in fit_outputs(declared_of(model.outputs), result)]


@pytest.mark.parametrize(("kind", "make"), [(TorchScriptModel, script), (ExportedModel, export)])
@pytest.mark.parametrize("row", [[1.0, 2.0, 3.0], [0.5, 0.5, 1.5]])
def test_numbers_in_json_reach_the_network_in_its_own_width(tmp_path: Path, kind: Any, make: Any, row: Any) -> None:
    """JSON does not say whether 1.5 is a float or a double; the network does."""
    expected = 0.5 * sum(row) + 1
    assert ask(kind("net", make(tmp_path / "net")), {"instances": [row]}) == [[[expected, expected + 1]], [sum(row)]]


def test_an_archive_declares_its_inputs_with_the_sizes_that_may_vary(tmp_path: Path) -> None:
    model = ExportedModel("net", export(tmp_path / "net.pt2"))
    model.preload()
    assert model.get_input_types() == [{"name": "x", "datatype": "FP32", "shape": [-1, 3]}]


class Two(torch.nn.Module):
    def forward(self, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return tokens * mask


def test_an_archive_with_several_inputs_declares_them_in_their_order() -> None:
    example = (torch.zeros(2, 4, dtype=torch.int64), torch.zeros(2, 4, dtype=torch.bool))
    program = torch.export.export(Two(), example)
    assert declared_inputs(program) == (Tensor("tokens", "INT64", [2, 4]), Tensor("mask", "BOOL", [2, 4]))


class Scaled(torch.nn.Module):
    def forward(self, x: torch.Tensor, by: int) -> torch.Tensor:
        return x * by


@each("module, example", [
    (Scaled(), (torch.zeros(2), 3)), (Two(), (torch.zeros(2, dtype=torch.bfloat16), torch.zeros(2))),
])  # fmt: skip
def test_an_archive_whose_inputs_have_no_v2_form_declares_none(module: Any, example: Any) -> None:
    assert declared_inputs(torch.export.export(module, example)) == ()


def test_an_archive_moves_to_another_device_with_the_tensors_that_its_graph_makes(tmp_path: Path) -> None:
    """`Module.to` leaves `torch.arange(2)` on the CPU. "meta" is a device that every machine has."""
    model = ExportedModel("net", export(tmp_path / "net.pt2"))
    model.preload()
    model.device = "meta"
    model.load()
    [total, _] = model.predict(torch.zeros(5, 3, device="meta"))
    assert (total.device.type, tuple(total.shape)) == ("meta", (5, 2))


def test_preloaded_weights_are_not_copied_by_a_load_on_the_cpu(tmp_path: Path) -> None:
    for model in (TorchScriptModel("a", script(tmp_path / "a.pt")), ExportedModel("b", export(tmp_path / "b.pt2"))):
        model.preload()
        before = {parameter.data_ptr() for parameter in model.module.parameters()}
        model.load()
        assert {parameter.data_ptr() for parameter in model.module.parameters()} == before


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


@pytest.mark.parametrize(("make", "file", "inputs"), [
    (script, "net.pt", []), (export, "net.pt2", [{"name": "x", "datatype": "FP32", "shape": [-1, 3]}]),
])  # fmt: skip
def test_a_model_directory_may_hold_a_file_that_torch_made(tmp_path: Path, make: Any, file: str, inputs: Any) -> None:
    folder = tmp_path / "mnt"
    folder.mkdir()
    make(folder / file)
    port = free_port()
    flags = ("--model_dir", str(folder), "--model_name=iris", "--workers=2", f"--http_port={port}")
    with running([sys.executable, "-m", "mpserve", "serve", *flags], tmp_path, port) as server:
        server.wait_ready(workers=2)
        expected = [[[4.0, 5.0], [1.0, 2.0]], [6.0, 0.0]]
        check_predictions(server, expected)
        assert server.client.get("/v2/models/iris").json()["inputs"] == inputs
        wrong = server.predict("iris", [[1.0]])
        assert wrong.status_code in ((400,) if inputs else (400, 500))


def check_predictions(server: Server, expected: Any) -> None:
    rows = [[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]]
    v1 = server.predict("iris", rows)
    assert v1.status_code == 200, v1.text
    tensor = {"name": "x", "datatype": "FP32", "shape": [2, 3], "data": rows}
    v2 = server.client.post("/v2/models/iris/infer", json={"inputs": [tensor]})
    got = [np.array(output["data"]).reshape(output["shape"]).tolist() for output in v2.json()["outputs"]]
    assert got == expected


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
