"""What a person reads at the start: nothing of an address before it answers, then a line to try that works as it is printed."""

import json
import shlex
import subprocess
from pathlib import Path

from tests.cases import each
from tests.running import eventually, serving

HEAD = """
import time
import numpy as np
from mpserve import Model, Tensor, TensorModel

class Declared(TensorModel):
    name = "declared/it's"
    inputs = [Tensor("x", "FP32", [-1, 2]), Tensor("word", "BYTES", [-1])]
    outputs = [Tensor("y", "FP32", [-1, 2])]

    def preload(self):
        time.sleep(0.1)

    def predict(self, x, word):
        return x * 2

class Sampled(TensorModel):
    name = "sampled"
    inputs = [Tensor("x", "INT64", [-1])]
    sample = np.array([3, 4])

    def predict(self, x):
        if not x.all():
            raise ValueError("no zeros")
        return x

class Wide(TensorModel):
    name = "wide"
    inputs = [Tensor("x", "FP32", [-1, 3, 224, 224])]

    def predict(self, x):
        return x

class Own(Model):
    name = "own"
    sample = {"instances": [5]}

    def predict(self, payload, headers=None):
        return {"predictions": payload["instances"]}

class Untold(TensorModel):
    name = "untold"

    def predict(self, x):
        return x
"""


def lines(log: str) -> list[str]:
    return [line for line in log.splitlines() if line.startswith("curl ")]


@each("models, answers", [
    ("[Declared, Sampled, Own, Untold]", ["outputs", "outputs", "predictions"]),
    ("[Untold, Wide]", ["inputs", "inputs"]),
])  # fmt: skip
def test_the_first_lines_to_try_are_answered_as_they_are_printed(
    tmp_path: Path, models: str, answers: list[str]
) -> None:
    with serving(tmp_path, f"{HEAD}\nmodels = {models}\n", "--workers=2", target="model.py:models") as server:
        server.wait_ready(workers=2)
        eventually(lambda: len(lines(server.log)) == len(answers))
        for line, key in zip(lines(server.log), answers, strict=True):
            done = subprocess.run(
                [*shlex.split(line), "--silent", "--fail-with-body"],
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
            assert done.returncode == 0, f"{line}\n{done.stdout}"
            assert key in json.loads(done.stdout)
        log = server.log
        assert log.count("serving at ") == 1, "one worker tells for all"
        before, _, after = log.partition(f"serving at {server.url}")
        assert server.url not in before
        assert f"port={server.port}" not in before
        assert "model model.py" not in log
        assert "loading model.py:models" in before
        assert "worker ready" in before
        if "Declared" in models:
            assert "models: declared/it's, sampled, own and 1 more" in after
            assert "(preload 0.1" in before
        messages = [line.partition("] mpserve: ")[2] for line in log.splitlines()]
        assert [line for line in messages if len(f"11:03:17 INFO  mpserve 0: {line}") > 100] == []


def test_machines_read_no_line_to_try(tmp_path: Path) -> None:
    with serving(tmp_path, f"{HEAD}\nmodels = [Declared]\n", "--log_format=json", target="model.py:models") as server:
        server.wait_ready()
        messages = [
            json.loads(line)["message"]
            for line in eventually(lambda: "models: " in server.log) and server.log.splitlines()
        ]
        assert f"serving at {server.url}" in messages
        assert not [message for message in messages if "curl" in message]
