"""tritonclient, unchanged and in an environment of its own, against two workers: HTTP and gRPC, sync and asyncio."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.running import free_port, serving

MODEL = """
from mpserve import InferOutput, InferResponse, Model

class Echo(Model):
    name = "echo"
    def predict(self, payload, headers=None):
        outputs = [InferOutput(i.name, i.shape, i.datatype, i.as_numpy()) for i in payload.inputs]
        return InferResponse(payload.id, self.name, outputs)
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a new environment that has tritonclient."""
    folder = tmp_path_factory.mktemp("tritonclient")
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "tritonclient[http,grpc]>=2.73,<3"], check=True)
    return folder / "bin" / "python"


def test_tritonclient_is_answered_over_http_and_grpc(tmp_path: Path, python: Path) -> None:
    grpc_port = free_port()
    with serving(tmp_path, MODEL, "--workers=2", "--enable_grpc=yes", f"--grpc_port={grpc_port}") as server:
        server.wait_ready(workers=2)
        script = Path(__file__).with_name("with_tritonclient.py")
        command = [str(python), str(script), f"127.0.0.1:{server.port}", f"127.0.0.1:{grpc_port}"]
        run = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert run.stdout == "all answered\n", run.stdout + run.stderr
