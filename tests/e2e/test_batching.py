"""Dynamic batching in a server: whatever protocol a request came by, it joins those that wait."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np

from mpserve.protocol.protobuf import inference_pb2 as pb
from tests.e2e import calls
from tests.running import eventually

SOURCE = """
import time
from pathlib import Path
from mpserve import Tensor, TensorModel

class Sizes(TensorModel):
    name = "m"
    inputs = [Tensor("x", "FP32", [-1, 2])]
    outputs = [Tensor("y", "FP32", [-1, 2]), Tensor("rows", "INT64", [-1])]
    max_batch_size = 8

    def predict(self, x):
        Path(f"begun-{time.monotonic_ns()}").touch()
        while not Path("go").exists():
            time.sleep(0.01)
        return x + 1, [len(x)] * len(x)
"""


X = np.array([[1, 2]], np.float32)
V2 = {"name": "x", "shape": [1, 2], "datatype": "FP32"}


def by_v1(url: str, address: str) -> int:
    answer = httpx.post(f"{url}/v1/models/m:predict", json={"instances": X.tolist()}, timeout=30).json()
    return int(answer["predictions"][0]["rows"])


def by_v2(url: str, address: str) -> int:
    body = {"inputs": [{**V2, "data": [1, 2]}]}
    answer = httpx.post(f"{url}/v2/models/m/infer", json=body, timeout=30).json()
    return int(answer["outputs"][1]["data"][0])


def by_bytes(url: str, address: str) -> int:
    head = json.dumps({"inputs": [{**V2, "parameters": {"binary_data_size": X.nbytes}}]}).encode()
    length = {"Inference-Header-Content-Length": str(len(head))}
    answer = httpx.post(f"{url}/v2/models/m/infer", content=head + X.tobytes(), headers=length, timeout=30).json()
    return int(answer["outputs"][1]["data"][0])


def by_grpc(url: str, address: str) -> int:
    request = pb.ModelInferRequest(model_name="m", raw_input_contents=[X.tobytes()])
    request.inputs.add(**V2)
    answer = calls.call(address, "ModelInfer", request, pb.ModelInferResponse)
    return int(np.frombuffer(answer.raw_output_contents[1], np.int64)[0])


def test_requests_of_every_protocol_are_predicted_together(tmp_path: Path) -> None:
    with calls.speaking(tmp_path, source=SOURCE) as (server, address), ThreadPoolExecutor(5) as clients:
        server.wait_ready()
        first = clients.submit(by_v2, server.url, address)
        eventually(lambda: list(tmp_path.glob("begun-*")))
        rest = [clients.submit(ask, server.url, address) for ask in (by_v1, by_v2, by_bytes, by_grpc)]
        eventually(lambda: server.metric("mpserve_requests_in_flight") == 5)
        (tmp_path / "go").touch()
        assert first.result() == 1
        assert [answer.result() for answer in rest] == [4] * 4
        stats = server.client.get("/v2/models/m/stats").json()["model_stats"][0]
        assert (stats["inference_count"], stats["execution_count"]) == (5, 2)
