"""The error table over one kept-alive connection to a real server with two workers."""

import http.client
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cases import each
from tests.error_table import CASES, GOOD, JSON_HEADERS, MAX_BODY_SIZE, PREPARATION, Case
from tests.running import Server, serving

MODELS = Path(__file__).parent.parent / "models" / "faulty.py"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    limit = f"--max_body_size={MAX_BODY_SIZE}"
    with serving(folder, MODELS.read_text(), "--workers=2", limit, target="faulty.py:models") as server:
        yield server.wait_ready(workers=2)


@pytest.fixture(scope="module")
def connection(server: Server) -> Iterator[http.client.HTTPConnection]:
    """The one connection, and so the one worker, that all cases are asked of; it is never opened again."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    connection.connect()
    connection.auto_open = 0
    path, body = PREPARATION
    assert request(connection, "POST", path, body)[0] == 200
    yield connection
    connection.close()


def request(
    connection: http.client.HTTPConnection, method: str, path: str, body: bytes, headers: dict[str, str] = JSON_HEADERS
) -> tuple[int, dict[str, str], bytes]:
    connection.request(method, path, body, headers)
    answer = connection.getresponse()
    return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()


@each("case", CASES)
def test_a_fault_is_told_and_leaves_the_connection_usable(connection: http.client.HTTPConnection, case: Case) -> None:
    status, headers, body = request(connection, case.method, case.path, case.body, case.headers)
    answer = json.loads(body)
    assert (status, list(answer)) == (case.status, ["error"])
    assert re.search(case.says, answer["error"])
    assert headers["content-type"] == "application/json"
    assert headers.get("allow") == case.allow
    path, good = GOOD
    assert request(connection, "POST", path, good)[::2] == (200, b'{"predictions":[1]}')
