"""More requests than a model can answer, late ones, and calls that never come back, in real servers."""

import json
from pathlib import Path

import httpx

from tests.e2e.steered import Background
from tests.e2e.wire import Wire, post, wire
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
REFUSED = "mpserve_requests_refused_total"


def ask(server: Server, what: str, model: str = "m") -> httpx.Response:
    """On a connection of its own."""
    body = {"instances": [what]}
    return httpx.post(f"{server.url}/v1/models/{model}:predict", json=body, timeout=PATIENCE, verify=False)


def asked(folder: Path) -> list[str]:
    """What the models were given so far."""
    path = folder / "asked"
    return path.read_text().splitlines() if path.exists() else []


def held(server: Server, folder: Path, what: str, model: str = "m") -> Background:
    """A request that keeps the model's only thread until it is let go."""
    request = Background(lambda: ask(server, what, model))
    eventually(lambda: what in asked(folder))
    return request


def let(folder: Path, what: str) -> None:
    (folder / f"release-{what}").touch()


def is_in_flight(server: Server, requests: int) -> None:
    eventually(lambda: server.metric("mpserve_requests_in_flight") == requests)


def v2(what: str) -> bytes:
    tensor = {"name": "x", "shape": [1], "datatype": "BYTES", "data": [what]}
    body = json.dumps({"inputs": [tensor]}).encode()
    return b"POST /v2/models/m/infer HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)


def status(connection: Wire, request: bytes | str) -> int:
    connection.send(request if isinstance(request, bytes) else f"GET {request} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
    return connection.response().status


def test_what_finds_the_queue_full_is_refused_cleanly_and_the_connection_goes_on(tmp_path: Path) -> None:
    with serving(tmp_path, SOURCE, "--max_queue_size=1", target=TARGET) as server:
        server.wait_ready()
        first = held(server, tmp_path, "first")
        second = Background(lambda: ask(server, "go"))
        is_in_flight(server, 2)
        with wire(server) as client:
            for refused in [post(["no"]), v2("no")] * 2:
                client.send(refused)
                answer = client.response()
                headers = [answer.headers.get(name) for name in ("content-type", "retry-after", "connection")]
                assert (answer.status, headers) == (503, ["application/json", "1", None])
                assert json.loads(answer.body) == {"error": "Model m is overloaded: 1 requests wait already."}
            for path in ("/v2/health/live", "/v2/health/ready", "/v2/models/m", "/v2/models/m/ready", "/v1/models"):
                assert status(client, path) == 200
            assert ask(server, "go", "other").status_code == 200
            eventually(lambda: server.metric("mpserve_requests_waiting") == 1)
            let(tmp_path, "first")
            assert first.result().status_code == second.result().status_code == 200
            assert status(client, post(["go"])) == 200
        assert "no" not in asked(tmp_path)
        eventually(lambda: server.metric(f'{REFUSED}{{model_name="m",model_version="1",reason="queue_full"}}') == 4)
        eventually(lambda: server.metric("mpserve_requests_waiting") == 0)


def test_a_call_that_does_not_come_back_has_its_worker_replaced_and_the_rest_is_finished(tmp_path: Path) -> None:
    with serving(tmp_path, SOURCE, "--request_timeout=4", "--stuck_grace=1", target=TARGET) as server:
        [worker] = server.wait_ready().workers()
        late = ask(server, "hangs")
        assert (late.status_code, late.json()) == (504, {"error": "Model m did not answer within 4 s."})
        waiting = Background(lambda: ask(server, "go"))
        other = held(server, tmp_path, "other", "other")
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
        assert server.metric("mpserve_requests_in_flight") == 0
