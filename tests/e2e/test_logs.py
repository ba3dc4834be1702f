"""The log of several workers: every line is JSON, and says whose it is."""

import json
from pathlib import Path

from tests.e2e.steered import SOURCE, ask, kill, let
from tests.running import eventually, serving

LOUD = SOURCE.replace(
    '        what = payload["instances"][0]\n',
    '        what = payload["instances"][0]\n        import logging; logging.getLogger("user").warning("asked for %s", what)\n',
)


def test_json_lines_carry_slot_model_and_request_also_of_a_respawned_worker(tmp_path: Path) -> None:
    let(tmp_path, "load")
    with serving(tmp_path, LOUD, "--workers=2", "--threads=1", "--log_format=json", "--access_log") as server:
        server.wait_ready(workers=2)
        pid = ask(server, headers={"x-request-id": "mine"}).json()["predictions"][0]
        kill(pid)
        eventually(lambda: pid not in server.workers() and server.states().get("ready") == 2)
        assert {ask(server).status_code for _ in range(8)} == {200}
        (successor, _), second = server.workers()[::-1], server.workers()
        server.stop()
        lines = [json.loads(line) for line in server.log.splitlines()]
    first = next(line for line in lines if line["logger"] == "user")
    assert (first["request_id"], first["model"], first["pid"]) == ("mine", "m", pid)
    assert {line["slot"] for line in lines if line["message"] == "worker ready"} == {0, 1}
    assert any(str(pid) in line["message"] and "SIGKILL" in line["message"] for line in lines)
    loaded = [line for line in lines if line["message"].startswith("model m loaded on cpu")]
    assert [line["model"] for line in loaded] == ["m"] * 3
    assert next(line["slot"] for line in loaded if line["pid"] == successor) == first["slot"]
    assert any(line["logger"] == "mpserve.access" and line["pid"] in second for line in lines)
    [begin] = [line["message"] for line in lines if "native thread" in line["message"]]
    assert "2 worker(s), all on cpu; " in begin
    assert begin.endswith(" CPU(s), 1 native thread(s) each")
