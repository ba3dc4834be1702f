"""Several versions of a model, from folders of a model directory, in two workers; each worker is asked."""

import contextlib
import shutil
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


def post(server: Server, path: str, body: Any = None) -> httpx.Response:
    return httpx.post(server.url + path, json=body, timeout=PATIENCE)


def get(server: Server, path: str) -> Any:
    return httpx.get(server.url + path, timeout=PATIENCE).json()


def answers(server: Server, address: str = "/v2/models/m") -> set[tuple[str, int]]:
    """The version and the factor that the workers answer with; each is asked."""
    request = {"inputs": [{"name": "x", "shape": [1], "datatype": "INT64", "data": [1]}]}
    found: dict[int, tuple[str, int]] = {}
    with contextlib.ExitStack() as held:  # connections that stay open go to all of them
        for _ in range(100):
            client = held.enter_context(httpx.Client(base_url=server.url, timeout=PATIENCE))
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
        missing = httpx.get(f"{server.url}/v2/models/m/versions/3/ready")
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


def test_a_load_takes_up_new_versions_and_lets_old_ones_go_in_every_worker_or_in_none(tmp_path: Path) -> None:
    put(tmp_path, "m@1", 1)
    put(tmp_path, "m@2", 2)
    with start(tmp_path) as (server, _):
        put(tmp_path, "m@3", 13)
        assert answers(server) == {("2", 2)}
        failed = post(server, "/v2/repository/models/m/load")
        assert (failed.status_code, "load() of model m@3 failed: ValueError: no luck" in failed.text) == (500, True)
        assert answers(server) == {("2", 2)}

        put(tmp_path, "m@3", 333)
        shutil.rmtree(tmp_path / "models" / "m@1")
        post(server, "/v2/repository/models/m/load").raise_for_status()
        assert answers(server) == {("3", 333)}
        lines = post(server, "/v2/repository/index").json()
        assert [(line["version"], line["state"]) for line in lines] == [("2", "READY"), ("3", "READY")]

        post(server, "/v2/repository/models/m/unload").raise_for_status()
        assert get(server, "/v2/models") == {"models": []}
        assert {get(server, "/v2/models/m/versions/2/ready")["error"] for _ in range(20)} == {
            "Model with name m does not exist."
        }
        lines = post(server, "/v2/repository/index").json()
        assert [(line["version"], line["state"]) for line in lines] == [("2", "UNAVAILABLE"), ("3", "UNAVAILABLE")]


def test_several_models_and_one_name_for_them_end_in_words(tmp_path: Path) -> None:
    put(tmp_path, "a", 1)
    put(tmp_path, "b", 2)
    port = free_port()
    command = [
        sys.executable,
        "-m",
        "mpserve",
        "serve",
        "--model_dir=models",
        "--model_name=iris",
        f"--http_port={port}",
    ]
    with running(command, tmp_path, port) as server:
        assert server.wait_end() != 0
        assert "--model_name=iris can rename one model, and models holds 2: a, b" in server.log
        assert "Traceback" not in server.log
