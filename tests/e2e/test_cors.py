"""Requests that pages of other origins make a browser send (CORS), beside the direct requests of other clients."""

from pathlib import Path

import httpx

from tests.asgi import ask, predict
from tests.models import faulty
from tests.running import PATIENCE, serving

MODEL = "def predict(x):\n    return x\n"
KEY = "alice-0123456789abcdef"
PAGE, OTHER = "https://app.example.com", "https://evil.example"
INFER = "/v1/models/model:predict"
ALLOWED, EXPOSED = "access-control-allow-origin", "access-control-expose-headers"


def test_pages_of_these_origins_alone_may_ask_and_read_also_refusals(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text(f"alice {KEY}\n")
    flags = (f"--cors_origins={PAGE}, http://localhost:3000", "--api_keys_file=keys")
    with serving(tmp_path, MODEL, *flags) as server, httpx.Client(base_url=server.url, timeout=PATIENCE) as client:
        server.wait_ready()

        def asked(origin: str | None, key: str = KEY, path: str = INFER) -> httpx.Response:
            headers = {"x-api-key": key} | ({} if origin is None else {"origin": origin})
            return client.post(path, json={"instances": [1]}, headers=headers)

        def preflight(origin: str, method: str = "POST", path: str = INFER) -> httpx.Response:
            wanted = {
                "access-control-request-method": method,
                "access-control-request-headers": "x-api-key,content-type",
            }
            return client.options(path, headers={"origin": origin, **wanted})

        for origin in (None, PAGE, OTHER, None, PAGE, "http://localhost:3000"):  # a known head is not another one's
            answer = asked(origin)
            assert (answer.status_code, answer.json()) == (200, {"predictions": [1]})
            allowed = None if origin in (None, OTHER) else origin
            assert answer.headers.get(ALLOWED) == allowed
            if allowed:
                assert "x-request-id" in answer.headers[EXPOSED]
                assert "origin" in answer.headers["vary"].lower()
        for refused in (asked(PAGE, key="eve"), asked(PAGE, path="/v1/models/none:predict")):
            assert (refused.status_code in (401, 404), refused.headers[ALLOWED]) == (True, PAGE)

        answer = preflight(PAGE)  # without a key: a browser sends none
        assert (answer.status_code, answer.headers[ALLOWED]) == (200, PAGE)
        assert {"GET", "POST"} <= set(answer.headers["access-control-allow-methods"].split(", "))
        assert {"x-api-key", "content-type"} <= set(answer.headers["access-control-allow-headers"].lower().split(","))
        assert "access-control-allow-credentials" not in answer.headers
        assert preflight(OTHER).status_code == preflight(PAGE, method="DELETE").status_code == 400
        assert ALLOWED not in preflight(OTHER).headers
        # To ask is not to manage, and an OPTIONS without CORS is what it was.
        assert asked(PAGE, path="/v2/repository/models/model/load").status_code == 403
        assert client.options(INFER).status_code == 401


def test_without_the_option_no_page_may() -> None:
    answer = predict(faulty.Echo(), headers={"origin": PAGE})
    assert (answer.status_code, ALLOWED in answer.headers) == (200, False)
    wanted = {"origin": PAGE, "access-control-request-method": "POST"}
    assert ask(faulty.Echo(), "OPTIONS", "/v1/models/echo:predict", headers=wanted).status_code == 405
