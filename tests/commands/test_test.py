"""`mpserve test`: what it finds in a model, and its exit status."""

import json
import re
from pathlib import Path

import pytest

from mpserve.cli import main
from tests.cases import each

HEAD = """
import itertools
import numpy as np
from mpserve import Model, Tensor, TensorModel
X, Y = Tensor("x", "FP32", [-1, 2]), Tensor("y", "FP32", [-1, 2])
"""


def model(body: str, inputs: str = "[X]", outputs: str = "[Y]", more: str = "") -> str:
    return f"class M(TensorModel):\n    name = 'm'\n    inputs = {inputs}\n    outputs = {outputs}\n{more}\n{body}"


def told(capsys: pytest.CaptureFixture[str], folder: Path, source: str, *arguments: str) -> tuple[int, str]:
    file = folder / "model.py"
    file.write_text(HEAD + source)
    status = 0
    try:
        main(["test", str(file), *arguments])
    except SystemExit as ended:
        status = int(ended.code or 0)
    return status, capsys.readouterr().out


GOOD = "    def predict(self, x):\n        return x * 2\n"


@each("source, checks", [
    (model(GOOD), ["V2 infer", "again", "V1 predict", "a batch of 2"]),
    (model("    def predict(self, x, w):\n        return {'y': x, 'w': w}\n", "[X, Tensor('w', 'BYTES', [-1])]",
           "[Y, Tensor('w', 'BYTES', [-1])]"), ["V2 infer", "again", "V1 predict", "a batch of 2"]),
    (model(GOOD, "[Tensor('x', 'FP32', [1, 2])]", "[Tensor('y', 'FP32', [1, 2])]"), ["V2 infer", "again", "V1 predict"]),
    (model("    def predict(self, x):\n        return x.sum()\n", outputs="[Tensor('y', 'FP32', [])]"), ["V2 infer", "again"]),
    ("class M(Model):\n    name = 'm'\n    sample = {'instances': [1]}\n"
     "    def predict(self, payload, headers=None):\n        return {'predictions': payload['instances']}\n", ["V1 predict"]),
])  # fmt: skip
def test_a_good_model_passes_the_checks_that_it_can_have(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], source: str, checks: list[str]
) -> None:
    status, report = told(capsys, tmp_path, source)
    assert re.findall(r"^  (\w+)", report, re.MULTILINE) == ["ok"] * (len(checks) + 1), report
    assert [name.strip() for name in re.findall(r"^  ok    (.{18})", report, re.MULTILINE)[1:]] == checks
    assert (status, report.splitlines()[-1]) == (0, "all checks passed")


@each("source, failure", [
    (model("    def predict(self, x):\n        return x + len(x)\n"), "a batch of 2 .*twice the rows differ.*2.0.*1.0"),
    (model("    def predict(self, x):\n        self.n += 1\n        return x + self.n\n", more="    n = 0"),
     "again .*the second answer differs from the first"),
    (model("    def predict(self, x):\n        return x[:, :1]\n"), r"V2 infer .*500: output 'y' is declared"),
    (model("    def predict(self, x):\n        return 1 / 0\n"), "V2 infer .*500: ZeroDivisionError"),
    (model(GOOD, more="    def load(self):\n        raise OSError('no weights')\n"), r"load and warm up .*no weights"),
    (model("    def predict(self, x):\n        return x\n", "[]", "[]"), "a request .*declare inputs, .* or give one by --input"),
])  # fmt: skip
def test_a_fault_is_found_and_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], source: str, failure: str
) -> None:
    status, report = told(capsys, tmp_path, source)
    assert status == 1
    assert re.search(f"^  FAIL  {failure}", report, re.MULTILINE), report


def test_the_request_comes_from_a_file_if_one_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "request.json"
    source = model(GOOD, "[]", "[]")
    file.write_text(json.dumps({"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [[1, 2]]}]}))
    status, report = told(capsys, tmp_path, source, f"--input={file}")
    assert (status, "V1 predict" in report) == (0, True), report
    file.write_text("{}")
    assert told(capsys, tmp_path, source, "--input", str(file))[0] == 2
    assert told(capsys, tmp_path, source, "--inpt", str(file))[0] == 2
