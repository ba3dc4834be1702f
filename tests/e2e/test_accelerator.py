"""Workers whose accelerator is lost are replaced, and cost nobody else a request. The models raise the errors of a GPU."""

import signal
import subprocess
import sys
from pathlib import Path

import grpc
import httpx
import pytest

from mpserve.protocol.protobuf import inference_pb2 as pb
from tests.e2e.calls import call, speaking
from tests.e2e.steered import Background
from tests.running import PATIENCE, Server, eventually

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "check_gpu.py"

SOURCE = """
import os, time
from pathlib import Path
from mpserve import Tensor, TensorModel

class OnGpu(TensorModel):
    name = "gpu"
    inputs = outputs = (Tensor("x", "INT64", (1,)),)
    def predict(self, x):
        if x[0] < 0:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return [x[0]]

class OnCpu(TensorModel):
    name = "cpu"
    inputs = outputs = (Tensor("x", "INT64", (1,)),)
    def predict(self, x):
        Path(f"begun-{os.getpid()}").touch()
        while not Path("release").exists():
            time.sleep(0.01)
        return [x[0]]

models = [OnGpu(), OnCpu()]
"""


def ask(server: Server, model: str, x: int) -> httpx.Response:
    body = {"inputs": [{"name": "x", "shape": [1], "datatype": "INT64", "data": [x]}]}
    return httpx.post(f"{server.url}/v2/models/{model}/infer", json=body, timeout=PATIENCE, verify=False)


def infer(address: str, x: int) -> int:
    message = pb.ModelInferRequest(model_name="gpu")
    message.inputs.add(name="x", datatype="INT64", shape=[1]).contents.int64_contents.append(x)
    return int(call(address, "ModelInfer", message, pb.ModelInferResponse).outputs[0].contents.int64_contents[0])


def test_a_worker_whose_accelerator_is_lost_finishes_its_other_requests_and_is_replaced(tmp_path: Path) -> None:
    flags = ("--workers=1", "--drain_delay=30")  # a stop of the whole server would wait for so long
    with speaking(tmp_path, *flags, source=SOURCE, target="model.py:models") as (server, address):
        [worker] = server.wait_ready().workers()
        assert (ask(server, "gpu", 3).status_code, infer(address, 3)) == (200, 3)
        other = Background(lambda: ask(server, "cpu", 4))
        eventually((tmp_path / f"begun-{worker}").exists)
        with pytest.raises(grpc.RpcError) as poisoned:
            infer(address, -1)
        assert poisoned.value.code() is grpc.StatusCode.UNAVAILABLE
        assert server.workers() == [worker]  # it finishes its other request
        (tmp_path / "release").touch()
        assert other.result().status_code == 200
        eventually(lambda: server.workers() not in ([worker], []))
        server.wait_ready()
        assert (ask(server, "gpu", 3).status_code, infer(address, 3)) == (200, 3)
        [second] = server.workers()
        lost = ask(server, "gpu", -1)
        assert (lost.status_code, lost.headers["retry-after"]) == (503, "1")
        assert lost.json() == {"error": "The accelerator of model gpu failed, and this worker cannot use it any more."}
        eventually(lambda: server.workers() not in ([second], []))
        server.wait_ready()
        assert server.metric("mpserve_worker_restarts_total") == 2
        assert server.log.count("RuntimeError: CUDA error: an illegal memory access was encountered") == 2
        server.signal(signal.SIGINT)  # which does not wait for the drain_delay
        assert server.wait_end(within=20) == 0


def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, str(SCRIPT), *arguments]
    return subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True, timeout=PATIENCE * 2)


@pytest.mark.skipif(any(Path("/dev").glob("nvidia[0-9]*")), reason="there is a GPU")
def test_the_script_for_a_gpu_says_in_a_sentence_that_there_is_none() -> None:
    refused = run()
    assert (refused.returncode, refused.stdout, refused.stderr.count("\n")) == (1, "", 1)
    assert "There is no NVIDIA GPU here" in refused.stderr


def test_all_that_the_script_for_a_gpu_can_do_on_a_cpu_holds() -> None:
    tried = run("--cpu", "--seconds=0.2")
    assert tried.returncode == 0, tried.stdout + tried.stderr
    assert "| a failed assert on the device | 503 with Retry-After; replaced in" in tried.stdout
    assert "| answered in batches of 2, 2 |" in tried.stdout
