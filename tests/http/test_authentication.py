"""Every route answers known callers only, but for those that are public, and some answer managers only: ``WHO`` says which."""

import asyncio
import re
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from mpserve.http.app import build_app
from tests.asgi import client_of, core_of
from tests.models import faulty

KEY, OPS = "alice-0123456789abcdef", "ops-0123456789abcdef"
HEALTH = {"/", "/ping", "/health", "/v2/health/live", "/v2/health/ready"}
METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS")

EVERYBODY, CALLERS, MANAGERS = "everybody", "callers", "managers"
V2 = "/v2/models/{model}"
VERSION = f"{V2}/versions/{{version}}"
SYSTEM, CUDA = "/v2/systemsharedmemory", "/v2/cudasharedmemory"
WHO = {
    **dict.fromkeys((
        "GET /", "GET /ping", "GET /health", "GET /v2/health/live", "GET /v2/health/ready",
    ), EVERYBODY),
    **dict.fromkeys((
        "GET /status", "GET /metrics", "GET /version", "GET /openapi.json", "GET /docs", "GET /v1/models",
        "GET /v1/models/{model}", "POST /v1/models/{model}:predict",
        "POST /v1/models/{model}:explain", "POST /invocations", "GET /v2", "GET /v2/models",
        "GET /v2/models/stats", "POST /v2/repository/index",
        *(f"GET {model}{end}" for model in (V2, VERSION) for end in ("", "/ready", "/config", "/stats")),
        *(f"POST {model}{end}" for model in (V2, VERSION) for end in ("/infer", "/generate", "/generate_stream")),
    ), CALLERS),
    **dict.fromkeys((
        "POST /v2/repository/models/{model}/load", "POST /v2/repository/models/{model}/unload",
        *(f"{method} {path}" for method in ("GET", "POST")
          for path in ("/v2/logging", "/v2/trace/setting", f"{V2}/trace/setting")),
        *(f"GET {memory}{end}" for memory in (SYSTEM, CUDA) for end in ("/status", "/region/{region}/status")),
        *(f"POST {memory}{end}" for memory in (SYSTEM, CUDA)
          for end in ("/unregister", "/region/{region}/register", "/region/{region}/unregister")),
    ), MANAGERS),
}  # fmt: skip
"""Who may ask each route, if callers must be known. A new route needs a row here."""


@pytest.fixture
def keys(tmp_path: Path) -> str:
    file = tmp_path / "keys"
    file.write_text(f"alice {KEY}\nops {OPS}\n")
    return str(file)


def asked(lines: list[str] | None, headers: dict[str, str], **options: Any) -> dict[str, httpx.Response]:
    """The answers to ``METHOD path`` lines, or to all methods of all routes, those of the user and unknown ones included."""

    async def main() -> dict[str, httpx.Response]:
        app = build_app(core_of(faulty.Echo(), allow_client_shm=True, enable_docs_url=True, **options))
        app.router.routes.append(Route("/users/own", lambda request: PlainTextResponse("hello")))
        paths = [re.sub(r"{[\w:]+}", "echo", route.path) for route in app.routes]
        paths += ["/nowhere", "/pages/docs.js", "/v2/", "/openai/v1/models", "/v2/health%2Flive", "/%6Detrics"]
        async with app.router.lifespan_context(app), client_of(app) as client:
            every = lines or [f"{method} {path}" for path in paths for method in METHODS]
            return {line: await client.request(*line.split(" "), headers=headers) for line in every}

    return asyncio.run(main())


@pytest.mark.parametrize(("public", "free"), [
    ("health", {*HEALTH, "/pages/docs.js"}), ("none", set()), ("metrics", {"/metrics"}),
    ("health,metrics,docs", {*HEALTH, "/metrics", "/docs", "/openapi.json", "/pages/docs.js"}),
])  # fmt: skip
def test_each_method_of_each_route_is_refused_without_a_key(keys: str, public: str, free: set[str]) -> None:
    answers = asked(None, {}, api_keys_file=keys, public=public)
    let_in = {line for line, answer in answers.items() if answer.status_code != 401}
    assert let_in == {f"{method} {path}" for path in free for method in ("GET", "HEAD")}
    assert len(answers) > 200
    for line in answers.keys() - let_in:
        assert answers[line].headers["www-authenticate"] == 'Bearer realm="mpserve"'
        assert "expected one as 'Authorization: Bearer KEY'" in answers[line].text or line.startswith("HEAD")
        assert "x-request-id" in answers[line].headers


def test_with_a_key_each_is_answered_as_without_keys(keys: str) -> None:
    def statuses(headers: dict[str, str], **options: str) -> dict[str, int]:
        return {line: answer.status_code for line, answer in asked(None, headers, **options).items()}

    open_to_all = statuses({})
    assert statuses({"x-api-key": OPS}, api_keys_file=keys, managers="boss, ops") == open_to_all
    assert 401 not in open_to_all.values()
    assert open_to_all["GET /users/own"] == 200


def test_each_route_is_in_the_table_and_answers_those_alone_that_it_names(keys: str) -> None:
    app = build_app(core_of(faulty.Echo(), enable_docs_url=True))
    routes = [route for route in app.routes if isinstance(route, Route)]
    assert WHO.keys() == {
        f"{way} {route.path_format}" for route in routes for way in (route.methods or set()) - {"HEAD"}
    }
    options = {"api_keys_file": keys, "managers": "ops"}
    lines = {line: re.sub(r"{\w+}", "nothing", line) for line in WHO}
    senders = {"nobody": "", "a stranger": "eve-0123456789abcdef", "a caller": KEY, "a manager": OPS}
    let_in = {EVERYBODY: set(senders), CALLERS: {"a caller", "a manager"}, MANAGERS: {"a manager"}}
    for sender, key in senders.items():
        headers = {"x-api-key": key} if key else {}
        answers = asked(list(lines.values()), headers, **options)
        for line, who in WHO.items():
            refusal = 403 if sender == "a caller" else 401
            got = answers[lines[line]].status_code
            assert (got in (401, 403)) == (sender not in let_in[who]), (line, sender, got)
            assert got == refusal or sender in let_in[who], (line, sender, got)


def test_only_managers_manage(keys: str) -> None:
    lines = ["GET /v2/logging", "POST /v2/repository/index", "POST /v2/repository/models/echo/load"]
    for managers, key, status in ((None, OPS, 403), ("ops", OPS, 200), ("ops", KEY, 403), ("alice, ops", KEY, 200)):
        options = {} if managers is None else {"managers": managers}
        answers = asked(lines, {"authorization": f"Bearer {key}"}, api_keys_file=keys, **options)
        assert [answer.status_code for answer in answers.values()] == [status, 200, status], managers


def test_a_function_that_breaks_is_an_error_of_the_server(tmp_path: Path, caplog: Any) -> None:
    hook = tmp_path / "hook_of_a_test.py"
    hook.write_text("def check(headers, address):\n    return {'bob': 'bob'}[headers['user']]\n")
    [answer] = asked(["GET /v2"], {"user": "eve"}, authenticate=f"{hook}:check").values()
    assert (answer.status_code, answer.json()) == (500, {"error": "internal server error"})
    assert "KeyError: 'eve'" in caplog.text
    assert asked(["GET /v2"], {"user": "bob"}, authenticate=f"{hook}:check")["GET /v2"].status_code == 200


def test_a_web_socket_of_the_user_is_closed(keys: str) -> None:
    app = build_app(core_of(faulty.Echo(), api_keys_file=keys))
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {"type": "websocket.connect"}

    asyncio.run(app({"type": "websocket", "path": "/ws", "headers": [], "subprotocols": []}, receive, send))
    assert sent == [{"type": "websocket.close", "code": 1008}]
