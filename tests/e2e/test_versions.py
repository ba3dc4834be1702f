"""Several versions of a model, from folders of a model directory, in two workers; each worker is asked."""

import contextlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest

from mpserve.protocol.protobuf import inference_pb2 as pb
from tests.e2e.calls import call
from tests.running import PATIENCE, Server, free_port, running

WORKERS = 2

CODE = """
import os
import numpy as np
from mpserve import Tensor, TensorModel

import weights

class Weighted(TensorModel):
    inputs = (Tensor("x", "INT64", (1,)),)
    outputs = (Tensor("pid", "INT64", (1,)), Tensor("y", "INT64", (1,)))
    def load(self):
        if weights.FACTOR == 13:
            raise ValueError("no luck")
    def predict(self, x):
        return np.array([os.getpid()]), x * weights.FACTOR
"""


def put(folder: Path, title: str, factor: int) -> None:
    place = folder / "models" / title
    place.mkdir(parents=True, exist_ok=True)
    (place / "model.py").write_text(CODE)
    (place / "weights.py").write_text(f"FACTOR = {factor}\n")


@contextmanager
def start(folder: Path, *flags: str) -> Iterator[tuple[Server, str]]:
    """A server of the folder's models, and its address of gRPC."""
    http, rpc = free_port(), free_port()
    command = [sys.executable, "-m", "mpserve", "serve", "--model_dir=models", f"--workers={WORKERS}"]
    command += [f"--http_port={http}", "--enable_grpc=yes", f"--grpc_port={rpc}", *flags]
    with running(command, folder, http) as server:
        yield server.wait_ready(workers=WORKERS), f"127.0.0.1:{rpc}"


def get(server: Server, path: str) -> Any:
    return httpx.get(server.url + path, timeout=PATIENCE, verify=False).json()


def answers(server: Server, address: str = "/v2/models/m") -> set[tuple[str, int]]:
    """The version and the factor that the workers answer with; each is asked."""
    request = {"inputs": [{"name": "x", "shape": [1], "datatype": "INT64", "data": [1]}]}
    found: dict[int, tuple[str, int]] = {}
    with contextlib.ExitStack() as held:  # connections that stay open go to all of them
        for _ in range(100):
            client = held.enter_context(httpx.Client(base_url=server.url, timeout=PATIENCE, verify=False))
            answer = client.post(f"{address}/infer", json=request).raise_for_status().json()
            [pid], [factor] = (output["data"] for output in answer["outputs"])
            told = answer["model_version"], factor
            assert found.setdefault(pid, told) == told
            if len(found) == WORKERS:
                break
    assert set(found) == set(server.workers())
    return set(found.values())


def test_versions_in_folders_are_served_side_by_side_and_the_newest_is_meant_when_none_is_named(tmp_path: Path) -> None:
    put(tmp_path, "m@2", 2)
    put(tmp_path, "m@10", 10)
    put(tmp_path, "other", 5)
    with start(tmp_path) as (server, address):
        assert get(server, "/v2/models") == {"models": ["m", "other"]}
        assert answers(server) == {("10", 10)}
        for version in (2, 10):
            assert answers(server, f"/v2/models/m/versions/{version}") == {(str(version), version)}
        missing = httpx.get(f"{server.url}/v2/models/m/versions/3/ready", verify=False)
        assert (missing.status_code, "m@3 does not exist. There are: m@2, m@10." in missing.text) == (404, True)

        assert get(server, "/v2/models/m")["versions"] == ["2", "10"]
        metadata = call(address, "ModelMetadata", pb.ModelMetadataRequest(name="m"), pb.ModelMetadataResponse)
        assert list(metadata.versions) == ["2", "10"]
        for named, told in (("", "10"), ("2", "2")):
            request = pb.ModelInferRequest(model_name="m", model_version=named)
            tensor = request.inputs.add(name="x", datatype="INT64", shape=[1])
            tensor.contents.int64_contents.append(1)
            answer = call(address, "ModelInfer", request, pb.ModelInferResponse)
            assert (answer.model_version, list(answer.outputs[1].contents.int64_contents)) == (told, [int(told)])
        with pytest.raises(grpc.RpcError) as unknown:
            call(address, "ModelMetadata", pb.ModelMetadataRequest(name="m", version="3"), pb.ModelMetadataResponse)
        assert unknown.value.code() is grpc.StatusCode.NOT_FOUND
