"""Environments for clients whose dependencies clash with ours, and scripts that run in them against a server."""

import subprocess
import sys
from pathlib import Path

from tests.documents import ROOT, blocks
from tests.running import free_port, running, serving

MODELS = """
from pathlib import Path
from mpserve import InferOutput, InferResponse, Model

class Echo(Model):
    name = "echo"
    def predict(self, payload, headers=None):
        outputs = [InferOutput(i.name, i.shape, i.datatype, i.as_numpy()) for i in payload.inputs]
        return InferResponse(payload.id, self.name, outputs)

class Rows(Model):
    name = "rows"
    def predict(self, payload, headers=None, response_headers=None):
        response_headers["x-rows"] = str(len(payload["instances"]))
        return {"predictions": payload["instances"]}
    def explain(self, payload, headers=None):
        return {"explanations": [len(row) for row in payload["instances"]]}

class Once(Model):  # answers once, and then no worker's is ready
    name = "once"
    ready = property(lambda self: not Path("answered").exists(), lambda self, value: None)
    def predict(self, payload, headers=None):
        Path("answered").touch()
        return {"predictions": []}

class Counting(Model):  # answers in as many parts as its input says
    name = "counting"
    def predict(self, payload, headers=None):
        for number in range(int(payload.inputs[0].as_numpy()[0])):
            yield InferResponse(None, self.name, [InferOutput("number", [1], "INT64", [number])])

models = [Echo(), Rows(), Once(), Counting()]
"""


def python_with(folder: Path, *requirements: str) -> Path:
    """The interpreter of a new environment in `folder` that has the packages."""
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    python = folder / "bin" / "python"
    # Not compiled, since kserve's dependencies take longer to compile than to download and only a part is imported.
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile"]
    subprocess.run([*pip, *requirements], check=True)
    return python


def run_against_two_workers(
    folder: Path, python: Path, script: str, *more: str, env: dict[str, str] | None = None
) -> None:
    """Run the script beside this file, which is told the addresses of HTTP and gRPC; it fails or says "all answered".

    `more` are flags of the server, and `env` is a part of its environment.
    """
    grpc_port = free_port()
    flags = ("--workers=2", "--enable_grpc=yes", f"--grpc_port={grpc_port}", *more)
    with serving(folder, MODELS, *flags, target="model.py:models", env=env) as server:
        server.wait_ready(workers=2)
        addresses = [f"127.0.0.1:{server.port}", f"127.0.0.1:{grpc_port}"]
        command = [str(python), str(Path(__file__).with_name(script)), *addresses]
        run = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert run.stdout.endswith("all answered\n"), run.stdout + run.stderr


def run_documented(folder: Path, python: Path, library: str) -> None:
    """Run docs/reference/clients.md's snippet that imports the library, beside the server it is for; it prints what is shown."""
    shown = blocks(ROOT / "docs" / "reference" / "clients.md")
    at = next(index for index, block in enumerate(shown) if block.language == "python" and library in block.text)
    port, grpc_port = free_port(), free_port()
    target = str(ROOT / "examples" / "digits" / "model.py:Digits")
    ports = [f"--http_port={port}", f"--grpc_port={grpc_port}"]
    command = [sys.executable, "-m", "mpserve", "serve", target, "--workers=2", "--enable_grpc=yes", *ports]
    with running(command, folder, port) as server:
        server.wait_ready(workers=2)
        snippet = shown[at].text.replace("localhost:8080", f"127.0.0.1:{port}")
        snippet = snippet.replace("localhost:8081", f"127.0.0.1:{grpc_port}")
        run = subprocess.run([str(python), "-c", snippet], capture_output=True, text=True, timeout=120, check=False)
        assert run.stdout == shown[at + 1].text, run.stdout + run.stderr
