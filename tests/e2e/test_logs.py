"""The log of several workers: every line is JSON and says whose it is, and a level that one is told is every worker's."""

import json
from pathlib import Path

import httpx

from tests.cases import each
from tests.e2e.workers import kill_and_await_successor, predictions_of_each_worker
from tests.running import PATIENCE, eventually, serving

LOUD = """
import logging, os
from mpserve import Model

class Loud(Model):
    name = "m"
    def predict(self, payload, headers=None):
        logging.getLogger("user").warning("asked")
        return {"predictions": [os.getpid(), logging.getLogger().level]}
"""


def test_json_lines_carry_slot_model_and_request_also_of_a_respawned_worker(tmp_path: Path) -> None:
    with serving(tmp_path, LOUD, "--workers=2", "--threads=1", "--log_format=json", "--access_log") as server:
        server.wait_ready(workers=2)
        headers = {"x-request-id": "mine", "connection": "close"}
        pid = server.predict("m", [], headers=headers).json()["predictions"][0]
        kill_and_await_successor(server, pid)
        second = set(predictions_of_each_worker(server))
        server.stop()
        lines = [json.loads(line) for line in server.log.splitlines()]
    first = next(line for line in lines if line["logger"] == "user")
    assert (first["request_id"], first["model"], first["pid"]) == ("mine", "m", pid)
    assert {line["slot"] for line in lines if line["message"] == "worker ready"} == {0, 1}
    assert any(str(pid) in line["message"] and "SIGKILL" in line["message"] for line in lines)
    loaded = [line for line in lines if line["message"].startswith("model m loaded on cpu")]
    assert [line["model"] for line in loaded] == ["m"] * 3
    assert loaded[2]["slot"] == first["slot"]
    assert any(line["logger"] == "mpserve.access" and line["pid"] in second for line in lines)
    [begin] = [line["message"] for line in lines if "native thread" in line["message"]]
    assert "2 worker(s), all on cpu; " in begin
    assert begin.endswith(" CPU(s), 1 native thread(s) each")


def test_every_worker_follows_a_change_of_the_level_and_so_does_a_respawned_one(tmp_path: Path) -> None:
    with serving(tmp_path, LOUD, "--workers=2") as server:
        first = predictions_of_each_worker(server.wait_ready(workers=2))
        assert list(first.values()) == [[20], [20]]
        url = f"{server.url}/v2/logging"
        changed = httpx.post(url, json={"log_verbose_level": 1}, timeout=PATIENCE, verify=False).json()
        assert [httpx.get(url, timeout=PATIENCE, verify=False).json() for _ in range(8)] == [changed] * 8
        kill_and_await_successor(server, min(first))
        assert list(predictions_of_each_worker(server).values()) == [[10], [10]]
        assert "a client has set the log level to DEBUG" in server.log


CONFIGURED = """
import logging, logging.config, os
from mpserve import Model

def configure():
    WAY

AT = os.environ["CONFIGURES_IN"]
if AT == "import":
    configure()

class Quiet(Model):
    name = "m"
    def load(self):
        if AT == "load":
            configure()
    def predict(self, payload, headers=None):
        if payload["instances"] == ["configure"] and AT == "predict":
            configure()
        if payload["instances"] == ["fail"]:
            raise RuntimeError("for the operator")
        return {"predictions": [os.getpid()]}
"""
TO_A_FILE = {
    "version": 1,
    "handlers": {"file": {"class": "logging.FileHandler", "filename": "model.log"}},
    "root": {"level": "ERROR", "handlers": ["file"]},
}
WAYS = [
    "logging.config.dictConfig({'version': 1})",
    f"logging.config.dictConfig({TO_A_FILE})",
    "logging.basicConfig(filename='model.log', force=True)",
    "logging.getLogger().handlers.clear()",
    "logging.getLogger().setLevel(logging.CRITICAL)",
    "logging.disable(logging.CRITICAL)",
]


@each("way, moment", [*((way, "import") for way in WAYS), (WAYS[1], "load"), (WAYS[1], "predict"), (WAYS[0], "load")])
def test_a_configuration_of_logging_by_a_model_does_not_silence_the_server(
    tmp_path: Path, way: str, moment: str
) -> None:
    """absl does the third: it takes the handlers of the root logger away, and sets a level."""
    source = CONFIGURED.replace("WAY", way)
    with serving(tmp_path, source, "--log_format=json", env={"CONFIGURES_IN": moment}) as server:
        server.wait_ready(workers=1)
        server.predict("m", ["configure"])
        eventually(lambda: "has configured logging" in server.log)
        assert server.predict("m", ["fail"]).status_code == 500
        server.stop()
        lines = [json.loads(line) for line in server.log.splitlines()]  # each in the operator's format
    assert len([line for line in lines if "has configured logging" in line["message"]]) == 1
    assert any(line["message"] == "worker ready" and line["level"] == "INFO" for line in lines)
    assert any("for the operator" in line.get("exception", "") for line in lines)
    assert any(line["logger"] == "gunicorn.error" and "Shutting down" in line["message"] for line in lines)
