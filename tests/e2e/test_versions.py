"""Several versions of a model, from folders of a model directory, in two workers; each worker is asked."""

import sys
from pathlib import Path
from typing import Any

import httpx

from tests.e2e.workers import of_each_worker
from tests.running import free_port, running

CODE = """
import os
import numpy as np
from mpserve import Tensor, TensorModel

import weights

class Weighted(TensorModel):
    inputs = (Tensor("x", "INT64", (1,)),)
    outputs = (Tensor("pid", "INT64", (1,)), Tensor("y", "INT64", (1,)))
    def predict(self, x):
        return np.array([os.getpid()]), x * weights.FACTOR
"""
REQUEST = {"inputs": [{"name": "x", "shape": [1], "datatype": "INT64", "data": [1]}]}


def test_versions_in_folders_are_served_side_by_side_and_the_newest_is_meant_when_none_is_named(tmp_path: Path) -> None:
    for title, factor in {"m@2": 2, "m@10": 10, "other": 5}.items():
        place = tmp_path / "models" / title
        place.mkdir(parents=True)
        (place / "model.py").write_text(CODE)
        (place / "weights.py").write_text(f"FACTOR = {factor}\n")
    port = free_port()
    command = [sys.executable, "-m", "mpserve", "serve", "--model_dir=models", "--workers=2", f"--http_port={port}"]
    with running(command, tmp_path, port) as server:
        server.wait_ready(workers=2)
        assert server.client.get("/v2/models").json() == {"models": ["m", "other"]}
        assert server.client.get("/v2/models/m").json()["versions"] == ["2", "10"]
        for address, expected in {"": ("10", 10), "/versions/2": ("2", 2), "/versions/10": ("10", 10)}.items():

            def ask(client: httpx.Client, address: str = address) -> tuple[int, Any]:
                answer = client.post(f"/v2/models/m{address}/infer", json=REQUEST).json()
                [pid], [factor] = (output["data"] for output in answer["outputs"])
                return pid, (answer["model_version"], factor)

            assert list(of_each_worker(server, ask).values()) == [expected] * 2
        missing = server.client.get("/v2/models/m/versions/3/ready")
        assert (missing.status_code, "m@3 does not exist. There are: m@2, m@10." in missing.text) == (404, True)
