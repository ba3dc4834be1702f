"""What the server says, and how."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.steered import PATH, SOURCE, ask, body, kill, let
from tests.running import Server, eventually, serving

LOUD = SOURCE.replace(
    '        what = payload["instances"][0]\n',
    '        what = payload["instances"][0]\n        import logging; logging.getLogger("user").warning("asked for %s", what)\n',
)


def lines(server: Server) -> list[dict[str, Any]]:
    """The log, every line of which must be a JSON object."""
    return [json.loads(line) for line in server.log.splitlines()]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One that is asked and never changed."""
    folder = tmp_path_factory.mktemp("server")
    let(folder, "load")
    with serving(folder, LOUD, "--workers=2", "--threads=1") as running:
        yield running.wait_ready(workers=2)


def test_json_lines_carry_slot_model_and_request(tmp_path: Path) -> None:
    let(tmp_path, "load")
    with serving(tmp_path, LOUD, "--workers=2", "--log_format=json") as server:
        server.wait_ready(workers=2)
        answers = [ask(server, headers={"x-request-id": f"mine-{number}"}) for number in range(2)]
        pid = answers[0].json()["predictions"][0]
        assert answers[0].headers["x-request-id"] == "mine-0"
        server.stop()
        said = [line for line in lines(server) if line["logger"] == "user"]
        assert [line["request_id"] for line in said] == ["mine-0", "mine-1"]
        assert {line["model"] for line in said} == {"m"}
        assert said[0]["pid"] == pid
        assert {line["slot"] for line in lines(server) if line["message"] == "worker ready"} == {0, 1}
        loaded = [line for line in lines(server) if line["message"].startswith("model m loaded on cpu")]
        assert {(line["slot"], line["model"]) for line in loaded} == {(0, "m"), (1, "m")}


def test_a_request_without_an_id_is_given_one_and_by_default_no_line_of_the_access_log(server: Server) -> None:
    identity = ask(server).headers["x-request-id"]
    eventually(lambda: f"model m req {identity}] user: asked for pid" in server.log)
    assert "POST" not in server.log


def test_access_log_writes_one_line_for_each_request(tmp_path: Path) -> None:
    let(tmp_path, "load")
    with serving(tmp_path, SOURCE, "--access_log") as server:
        server.wait_ready()
        assert ask(server).status_code == 200
        assert httpx.get(f"{server.url}/v1/models/none").status_code == 404
        server.stop()
        assert server.log.count(f'"POST {PATH}" 200 ') == 1
        assert server.log.count('"GET /v1/models/none" 404 ') == 1


def test_log_config_file_is_laid_over(tmp_path: Path) -> None:
    (tmp_path / "logging.yaml").write_text(
        "formatters:\n  mine:\n    format: 'MINE %(name)s %(message)s'\n"
        "handlers:\n  file:\n    class: logging.FileHandler\n    filename: user.log\n    formatter: mine\n"
        "loggers:\n  user:\n    handlers: [file]\n    propagate: false\n"
    )
    let(tmp_path, "load")
    with serving(tmp_path, LOUD, "--log_config_file=logging.yaml", "--workers=2") as server:
        server.wait_ready()
        assert ask(server).status_code == 200
        server.stop()
        assert (tmp_path / "user.log").read_text() == "MINE user asked for pid\n"
        assert "asked for" not in server.log
        assert "mpserve.prefork.worker.worker_server: worker ready" in server.log


def test_the_start_line_names_devices_cpus_and_threads(server: Server) -> None:
    (line,) = (line for line in server.log.splitlines() if "native thread" in line)
    assert "2 worker(s), all on cpu; " in line
    assert line.endswith(" CPU(s), 1 native thread(s) each")


def test_a_thread_that_runs_in_the_arbiter_is_named_once(tmp_path: Path) -> None:
    thread = (
        "import threading, time\nthreading.Thread(target=time.sleep, args=(60,), name='poller', daemon=True).start()"
    )
    let(tmp_path, "load")
    with serving(tmp_path, SOURCE + thread, "--workers=2") as server:
        server.wait_ready(workers=2)
        kill(server.workers()[0])
        eventually(lambda: server.log.count("worker ready") == 3)
        (line,) = (line for line in server.log.splitlines() if "Threads are running in the arbiter" in line)
        assert "poller (time.sleep)" in line


def test_a_model_that_fails_is_logged_with_its_traceback_and_its_client_hears_the_error_alone(server: Server) -> None:
    answer = httpx.post(f"{server.url}{PATH}", content=body().replace(b"instances", b"nothing"))
    assert answer.status_code == 500
    assert answer.json() == {"error": "KeyError : 'instances'"}
    eventually(lambda: 'payload["instances"][0]' in server.log)
