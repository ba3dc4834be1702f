"""The error table over one kept-alive connection to a real server with two workers."""

import json
import re
from pathlib import Path

from tests.e2e.wire import Response, Wire, wire
from tests.error_table import CASES, GOOD, JSON_HEADERS, MAX_BODY_SIZE, PREPARATION
from tests.running import serving

FAULTY = Path(__file__).parent.parent / "models" / "faulty.py"


def ask(
    connection: Wire, path: str, body: bytes, method: str = "POST", headers: dict[str, str] = JSON_HEADERS
) -> Response:
    fields = {"host": "x", "content-length": len(body), **headers}
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items()), "", ""]
    connection.send("\r\n".join(lines).encode() + body)
    return connection.response()


def test_a_fault_is_told_and_leaves_the_connection_usable(tmp_path: Path) -> None:
    flags = ("--workers=2", f"--max_body_size={MAX_BODY_SIZE}")
    with (
        serving(tmp_path, FAULTY.read_text(), *flags, target="faulty.py:models") as server,
        wire(server.wait_ready(workers=2)) as connection,
    ):
        assert ask(connection, *PREPARATION).status == 200
        for case in CASES:
            status, headers, body = ask(connection, case.path, case.body, case.method, case.headers)
            answer = json.loads(body)
            assert (case.name, status, list(answer)) == (case.name, case.status, ["error"])
            assert re.search(case.says, answer["error"])
            assert (headers["content-type"], headers.get("allow")) == ("application/json", case.allow)
            assert ask(connection, *GOOD)[::2] == (200, b'{"predictions":[1]}')
