"""More requests than a model can answer, late ones, and calls that never come back, in real servers."""

import contextlib
import http.client
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

from tests.e2e.steered import Background
from tests.e2e.wire import wire
from tests.running import PATIENCE, Server, eventually, serving

SOURCE = """
import time
from pathlib import Path
from mpserve import Tensor, TensorModel

def wait_for(name):
    while not Path(name).exists():
        time.sleep(0.01)

class Steered(TensorModel):
    inputs = [Tensor("x", "BYTES", [1])]
    outputs = [Tensor("y", "INT64", [1])]
    def predict(self, x):
        what = x[0] if isinstance(x[0], str) else x[0].decode()
        with open("asked", "a") as asked:
            asked.write(f"{what}\\n")
        if what != "go":
            wait_for(f"release-{what}")
        return [1]

models = [Steered("m"), Steered("other")]
"""
TARGET = "model.py:models"


def body(what: str) -> str:
    return json.dumps({"instances": [what]})


def v2_body(what: str, **parameters: object) -> str:
    tensor = {"name": "x", "shape": [1], "datatype": "BYTES", "data": [what]}
    return json.dumps({"inputs": [tensor], "parameters": parameters})


def ask(server: Server, what: str, model: str = "m") -> httpx.Response:
    """On a connection of its own."""
    return httpx.post(f"{server.url}/v1/models/{model}:predict", content=body(what), timeout=PATIENCE, verify=False)


def asked(folder: Path) -> list[str]:
    """What the models were given so far."""
    path = folder / "asked"
    return path.read_text().split("\n")[:-1] if path.exists() else []


def in_flight(server: Server) -> float:
    return server.metric("mpserve_requests_in_flight")


def held(server: Server, folder: Path, what: str = "first") -> Background:
    """A request that keeps the model's only thread until it is let go."""
    request = Background(lambda: ask(server, what))
    eventually(lambda: what in asked(folder))
    return request


def let(folder: Path, what: str) -> None:
    (folder / f"release-{what}").touch()


@contextlib.contextmanager
def connection(server: Server) -> Iterator[http.client.HTTPConnection]:
    """One connection, which is never opened again."""
    client = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE)
    client.connect()
    client.auto_open = 0
    yield client
    client.close()


def answer(
    client: http.client.HTTPConnection, path: str, content: str | None = None
) -> tuple[int, dict[str, str], dict[str, Any]]:
    client.request("GET" if content is None else "POST", path, content)
    response = client.getresponse()
    headers = {name.lower(): value for name, value in response.getheaders()}
    told = response.read()
    return response.status, headers, json.loads(told) if told else {}


def test_what_finds_the_queue_full_is_refused_cleanly_and_the_connection_goes_on(tmp_path: Path) -> None:
    with serving(tmp_path, SOURCE, "--max_queue_size=1", target=TARGET) as server:
        server.wait_ready()
        first = held(server, tmp_path)
        second = Background(lambda: ask(server, "go"))
        eventually(lambda: in_flight(server) == 2)
        with connection(server) as client:
            for path, content in [("/v1/models/m:predict", body("no")), ("/v2/models/m/infer", v2_body("no"))] * 2:
                status, headers, told = answer(client, path, content)
                assert (status, headers["content-type"], headers["retry-after"]) == (503, "application/json", "1")
                assert told == {"error": "Model m is overloaded: 1 requests wait already."}
                assert "connection" not in headers
            for path in ("/v2/health/live", "/v2/health/ready", "/v2/models/m", "/v2/models/m/ready", "/v1/models"):
                assert answer(client, path)[0] == 200
            assert answer(client, "/v1/models/other:predict", body("go"))[0] == 200
            eventually(lambda: server.metric("mpserve_requests_waiting") == 1)
            let(tmp_path, "first")
            assert first.result().status_code == second.result().status_code == 200
            assert answer(client, "/v1/models/m:predict", body("go"))[0] == 200
        assert asked(tmp_path).count("no") == 0
        refused = 'mpserve_requests_refused_total{model_name="m",reason="queue_full"}'
        eventually(lambda: server.metric(refused) == 4)
        eventually(lambda: server.metric("mpserve_requests_waiting") == 0)


def test_a_late_request_is_told_so_and_the_connection_goes_on(tmp_path: Path) -> None:
    with serving(tmp_path, SOURCE, "--request_timeout=0.3", "--fast_lane=no", target=TARGET) as server:
        server.wait_ready()
        with connection(server) as client:
            path = "/v1/models/m:predict"
            eventually(lambda: answer(client, path, body("stays")) and "stays" in asked(tmp_path))
            before = asked(tmp_path)
            status, headers, told = answer(client, path, body("go"))  # waits behind it
            assert (status, headers["content-type"]) == (504, "application/json")
            assert told == {"error": "Model m did not answer within 0.3 s."}
            assert answer(client, "/v2/health/ready")[0] == 200
            let(tmp_path, "stays")
            eventually(lambda: answer(client, path, body("go"))[0] == 200)
            assert asked(tmp_path)[len(before)] == "go"
        expired = 'mpserve_requests_refused_total{model_name="m",reason="expired"}'
        eventually(lambda: server.metric(expired) >= 2)


def test_a_client_that_goes_away_takes_its_request_out_of_the_queue(tmp_path: Path) -> None:
    with serving(tmp_path, SOURCE, target=TARGET) as server:
        server.wait_ready()
        first = held(server, tmp_path)
        with wire(server) as gone:
            content = body("gone").encode()
            gone.send(
                b"POST /v1/models/m:predict HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(content) + content
            )
            eventually(lambda: in_flight(server) == 2)
        eventually(lambda: in_flight(server) == 1)
        let(tmp_path, "first")
        assert first.result().status_code == 200
        assert ask(server, "go").status_code == 200
        assert asked(tmp_path) == ["first", "go"]


def test_a_call_that_does_not_come_back_has_its_worker_replaced_and_the_rest_is_finished(tmp_path: Path) -> None:
    with serving(tmp_path, SOURCE, "--request_timeout=4", "--stuck_grace=1", target=TARGET) as server:
        [worker] = server.wait_ready().workers()
        assert ask(server, "hangs").status_code == 504
        waiting = Background(lambda: ask(server, "go"))
        other = Background(lambda: ask(server, "other", "other"))
        eventually(lambda: "other" in asked(tmp_path))
        told = waiting.result()
        assert told.status_code == 503
        assert told.json() == {"error": "Model m is stuck in an earlier request; this worker is being replaced."}
        let(tmp_path, "other")
        assert other.result().status_code == 200
        eventually(lambda: server.workers() not in ([worker], []))
        server.wait_ready()
        assert ask(server, "go").status_code == 200
        assert "the worker finishes its other requests and is replaced: stuck in m" in server.log
        assert f'File "{tmp_path / "model.py"}", line 8, in wait_for' in server.log
        assert "go" not in asked(tmp_path)[: asked(tmp_path).index("other")]
        assert server.metric("mpserve_worker_restarts_total") == 1
        assert in_flight(server) == 0
