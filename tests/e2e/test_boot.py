"""Until the first worker is ready nobody is let in; from then on readiness is the same whoever is asked."""

from http.client import HTTPConnection
from pathlib import Path

import httpx
import pytest

from tests.e2e.steered import PATH, SOURCE, ask_on, body, let, pids_of, pinned, reached, steered
from tests.running import eventually, serving


def test_a_connect_is_refused_until_the_first_worker_is_ready(tmp_path: Path) -> None:
    with serving(tmp_path, SOURCE, "--workers=2") as server:
        first, second = reached(server, tmp_path, "loading", 2)
        assert server.refuses()
        let(tmp_path, "load", first)
        server.wait_ready()
        assert server.states() == {"ready": 1, "loading": 1, "draining": 0}
        assert pids_of(server) == {first}  # the one that still loads accepts nothing, so nobody waits for it
        let(tmp_path, "load", second)
        server.wait_ready(workers=2)
        with pinned(server, {first, second}) as connections:
            assert connections.keys() == {first, second}


def test_on_a_unix_socket_a_loading_server_answers_503_with_retry_after(tmp_path: Path) -> None:
    socket = tmp_path / "server.sock"
    with serving(tmp_path, SOURCE, "--workers=2", env={"GUNICORN_CMD_ARGS": f"--bind unix:{socket}"}) as server:
        first, second = reached(server, tmp_path, "loading", 2)
        assert server.refuses()
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(socket)), base_url="http://server") as client:
            for answer in (client.get("/v2/health/ready"), client.post(PATH, content=body())):
                assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
                assert answer.headers["connection"] == "close"  # the next one may find a worker that is ready
            assert client.get("/v2/health/live").status_code == 200
            let(tmp_path, "load", first)
            eventually(lambda: client.get("/v2/health/ready").status_code == 200)
            # The one that still loads finds out a moment later that nobody waits for its 503 any more.
            eventually(lambda: client.post(PATH, content=body()).status_code == 200)
            assert client.post(PATH, content=body()).json() == {"predictions": [first]}
            let(tmp_path, "load", second)
            eventually(lambda: 'mpserve_workers{state="ready"} 2.0' in client.get("/metrics").text)
        server.stop()
        assert not socket.exists()


@pytest.mark.parametrize(("ready_when", "expected"), [("any", 200), ("all", 503)])
def test_readiness_is_the_same_from_every_worker(tmp_path: Path, ready_when: str, expected: int) -> None:
    with (
        steered(tmp_path, f"--ready_when={ready_when}") as server,
        pinned(server, set(server.workers())) as connections,
    ):
        one, other = connections.values()
        ask_on(one, "retire")  # this worker's model takes itself out of service
        eventually(lambda: ask_readiness(one) == expected)
        assert [ask_readiness(one), ask_readiness(other)] == [expected, expected]
        assert ask_on(other)


def ask_readiness(connection: HTTPConnection) -> int:
    connection.request("GET", "/v2/health/ready")
    response = connection.getresponse()
    response.read()
    return response.status
