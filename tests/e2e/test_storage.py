"""A server whose model has an address: fetched once before the workers exist, served by all, and told in words if it fails."""

import sys
from pathlib import Path

import psutil

from tests.running import free_port, running
from tests.storages import s3, web

MODEL = """
import os, threading
from pathlib import Path
from mpserve import Model

class Iris(Model):
    name = "iris"
    def predict(self, payload, headers=None):
        return {"predictions": [Path(__file__).with_name("weights").read_text(), len(os.sched_getaffinity(0)) > 0]}
"""


def test_a_folder_in_s3_is_served_by_all_workers_and_loaded_anew_from_the_copy(tmp_path: Path) -> None:
    with s3(tmp_path) as (client, environment):
        for key, body in (("iris/model.py", MODEL), ("iris/weights", "first")):
            client.put_object(Bucket="models", Key=key, Body=body.encode())
        port = free_port()
        command = [
            sys.executable, "-m", "mpserve", "serve", "--model_dir=s3://models/iris", f"--cache_dir={tmp_path / 'cache'}",
            f"--http_port={port}", "--workers=2",
        ]  # fmt: skip
        with running(command, tmp_path, port, environment) as server:
            server.wait_ready(workers=2)
            assert server.predict("iris", [0]).json()["predictions"][0] == "first"
            client.put_object(Bucket="models", Key="iris/weights", Body=b"second")
            assert server.client.post("/v2/repository/models/iris/load").status_code == 200
            assert server.predict("iris", [0]).json()["predictions"][0] == "first"
            arbiter = psutil.Process(server.pid)
            assert arbiter.num_threads() == 1
            assert len(arbiter.children()) == 2, "the process that fetched has ended"
            assert "fetching s3://models/iris" in server.log
            assert "the-secret-of-loopback" not in server.log
        with running(command, tmp_path, port, environment) as server:
            server.wait_ready(workers=2)
            assert server.predict("iris", [0]).json()["predictions"][0] == "second"


def test_a_target_on_a_web_server_is_served_and_a_failure_is_the_last_word(tmp_path: Path) -> None:
    last_words = tmp_path / "termination-log"
    last_words.touch()
    with web() as site:
        site.files["/model.py"] = MODEL.replace('Path(__file__).with_name("weights").read_text()', "'target'").encode()
        port = free_port()
        command = [
            sys.executable, "-m", "mpserve", "serve", f"{site.url}/model.py:Iris?sig=c0ffee", f"--http_port={port}",
            "--preload=no", f"--cache_dir={tmp_path / 'cache'}", f"--termination_log={last_words}",
        ]  # fmt: skip
        with running(command, tmp_path, port) as server:
            server.wait_ready()
            assert server.predict("iris", [0]).json()["predictions"][0] == "target"
            assert "c0ffee" not in server.log
        site.files.clear()
        with running(command, tmp_path, port) as server:
            assert server.wait_end() == 2
            assert last_words.read_text() == f"{site.url}/model.py: the server answers 404: there is no such file"
            assert "Traceback" not in server.log
