"""Management by its own host alone, on real connections: what a proxy may say is not believed."""

from pathlib import Path

import httpx

from tests.cases import each
from tests.running import PATIENCE, serving

MODEL = "def predict(x):\n    return x\n"
ALIAS = "127.0.0.2"
"""A client's address that is on loopback, but not the one that Linux chooses."""


def test_only_the_same_host_loads_whatever_headers_say(tmp_path: Path) -> None:
    with serving(tmp_path, MODEL, env={"FORWARDED_ALLOW_IPS": "*"}) as server:
        server.wait_ready()

        @each("address, headers, status", [
            ("127.0.0.1", {}, 200), (ALIAS, {}, 403), ("127.0.0.1", {"x-forwarded-for": "127.0.0.1"}, 403),
            (ALIAS, {"x-forwarded-for": "127.0.0.1"}, 403), ("127.0.0.1", {"forwarded": "for=127.0.0.1"}, 403),
            ("127.0.0.1", {"host": "evil.example"}, 403), ("127.0.0.1", {"origin": "http://evil.example"}, 403),
        ])  # fmt: skip
        def answers(address: str, headers: dict[str, str], status: int) -> None:
            transport = httpx.HTTPTransport(local_address=address, verify=False)
            with httpx.Client(transport=transport, base_url=server.url, timeout=PATIENCE) as client:
                answer = client.post("/v2/repository/models/model/load", headers=headers)
                assert (answer.status_code, client.get("/v2/models/model/ready").status_code) == (status, 200), (
                    answer.text
                )

        answers()
