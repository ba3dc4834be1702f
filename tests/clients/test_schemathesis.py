"""schemathesis, which makes requests from the description at ``/openapi.json``, right ones and wrong ones, against two workers.

Every answer is one that the description tells of, none says that the server failed, no connection breaks, and the workers
that answer the last request are those that answered the first.
"""

import json
import subprocess
from pathlib import Path
from typing import Any

from tests.clients.environments import python_with
from tests.running import Server, serving

CONFIGURATION = Path(__file__).with_name("schemathesis.toml")

MODELS = """
import numpy as np
from mpserve import InferOutput, InferResponse, Model, Tensor, TensorModel

class Rows(TensorModel):
    name = "rows"
    inputs = (Tensor("x", "FP32", (-1, 3)), Tensor("scale", "INT64", (-1,)))
    outputs = (Tensor("y", "FP64", (-1,)),)
    def predict(self, x, scale):
        return x.astype(np.float64).sum(axis=1) * len(scale)

class Text(TensorModel):
    name = "text"
    inputs = (Tensor("text", "BYTES", (-1,)),)
    outputs = (Tensor("length", "UINT32", (-1,)), Tensor("empty", "BOOL", (-1,)))
    def predict(self, text):
        lengths = np.array([len(each) for each in text], dtype=np.uint32)
        return lengths, lengths == 0

class Echo(Model):
    name = "echo"
    def predict(self, payload, headers=None):
        if isinstance(payload, (dict, bytes)):
            return {"predictions": len(payload)}
        outputs = [InferOutput(i.name, i.shape, i.datatype, i.as_numpy()) for i in payload.inputs]
        return InferResponse(payload.id, self.name, outputs)
    explain = predict

class Spare(Echo):
    name = "spare"

models = [Rows(), Text(), Echo(), Spare()]
"""


def test_what_is_made_from_the_description_is_answered_as_described(tmp_path: Path) -> None:
    python = python_with(tmp_path / "environment", "schemathesis>=4.32,<5")
    with serving(
        tmp_path, MODELS, "--workers=2", "--enable_docs_url=true", "--allow_client_shm=true", target="model.py:models"
    ) as server:
        workers = server.wait_ready(workers=2).workers()
        run = subprocess.run(
            [str(python.with_name("schemathesis")), "--config-file", str(CONFIGURATION), "run", "--no-color",
             str(description_of(server, tmp_path)), "--url", server.url],
            cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
        assert run.returncode == 0, run.stdout + run.stderr
        assert "Fuzzing" in run.stdout
        assert server.workers() == workers


def description_of(server: Server, folder: Path) -> Path:
    """The description, without the sizes in shapes of answers.

    schemathesis (4.32) turns ``prefixItems`` of a response into an older draft's form, and then calls that invalid. Its
    issues 3842 and 4099 tell of the same.
    """

    def without_sizes(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: without_sizes(inner) for name, inner in value.items() if name != "prefixItems"}
        return [without_sizes(inner) for inner in value] if isinstance(value, list) else value

    document = server.client.get("/openapi.json").json()
    for item in document["paths"].values():
        for operation in item.values():
            operation["responses"] = without_sizes(operation["responses"])
    file = folder / "openapi.json"
    file.write_text(json.dumps(document))
    return file
