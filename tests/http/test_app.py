"""The routes, and the life of the application under a server that is not ours."""

import asyncio
import re
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse

from mpserve.errors import InvalidInput, ModelLoadError
from mpserve.http.app import build_app, find_core
from mpserve.http.management.operations import OPERATIONS
from mpserve.state.scoreboard import Scoreboard, State
from tests.asgi import ask, client_of, core_of, serving
from tests.cases import each
from tests.error_table import tensor
from tests.models.faulty import Echo


@each("path", ["/v1/models/m:predict", "/v1/models/m%3Apredict", "/v1/models/%6D%3apredict"])
def test_the_colon_of_v1_may_be_encoded(path: str) -> None:
    answer = ask(Echo("m"), "POST", path, json={"instances": [1]})
    assert (answer.status_code, answer.json()) == (200, {"predictions": [1]})


@each("name", ["a b", "é", "a:b", "a.b-c_d~e", "m:predicted", "predict", "100%"])
async def test_a_models_name_may_be_anything_but_a_path(name: str) -> None:
    async with serving(Echo(name)) as client:
        quoted = httpx.URL("http://localhost").copy_with(path=f"/v1/models/{name}").raw_path.decode()
        assert (await client.get(quoted)).status_code == 200
        assert (await client.post(f"{quoted}:predict", json={"instances": [1]})).status_code == 200


@each("path, location", [
    ("/v2/", "/v2"), ("/v2/models/m/", "/v2/models/m"), ("/v2/health/ready//", "/v2/health/ready"), ("/openai", "/openai/"),
    ("/v2/models/a%2Fb%20c/?d=e%26f&g", "/v2/models/a%2Fb%20c?d=e%26f&g"), ("/v1/models/é/", "/v1/models/%C3%A9"),
])  # fmt: skip
def test_a_slash_at_the_end_is_redirected_without_a_host(path: str, location: str) -> None:
    """A host of the client's choice would send a browser, or a cache, to another server."""
    answer = ask(Echo("m"), "GET", path, headers={"host": "evil.example"})
    assert (answer.status_code, answer.headers["location"]) == (307, location)
    assert answer.json() == {"error": f"the path is {location}"}


@each("path", ["//v2/", "//evil.example/", "/v3/", "//"])
def test_an_unknown_path_is_not_redirected(path: str) -> None:
    assert ask(Echo("m"), "GET", f"http://localhost{path}").status_code == 404


async def test_a_404_of_a_users_route_stays_one() -> None:
    async def missing(request: Request) -> Any:
        raise HTTPException(404)

    app = build_app(core_of(Echo("m")))
    app.add_route("/files/{path:path}", missing)
    assert (await client_of(app).get("/files/a")).status_code == 404


LONG = "n" * 5000


@each("line, body", [
    *((line, {}) for line in OPERATIONS if "{" in line),
    (f"GET /{LONG}", {}), (f"PUT /v2/models/{LONG}", {}), (f"{LONG} /v2", {}),
    *(("POST /v2/models/m/infer", body) for body in (
        {"inputs": [{"name": LONG, "datatype": "FP32", "shape": [1], "data": ["x"]}]},
        {"inputs": [{"name": "x", "datatype": LONG, "shape": [1], "data": [1]}]},
        {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [1]}], "outputs": [{"name": LONG}]},
        {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [1], "parameters": {LONG: []}}]},
    )),
    ("POST /v2/repository/models/m/load", {"parameters": {f"file:{LONG}": ""}}), ("POST /v2/logging", {LONG: 1}),
    ("POST /v2/trace/setting", {LONG: 1}), ("POST /v2/systemsharedmemory/region/r/register", {"key": LONG, "byte_size": 1}),
])  # fmt: skip
async def test_an_error_repeats_at_most_100_characters_of_a_name(line: str, body: dict[str, Any]) -> None:
    async with serving(Echo("m"), allow_client_shm=True) as client:
        method, path = re.sub(r"{(\w+)}", LONG, line).split()
        answer = await client.request(method, path, json=body)
        error = answer.json()["error"] if answer.is_error else ""
        assert max(map(len, re.findall("n+", error)), default=0) <= 100, error
        assert answer.is_error or "unregister" in path or "cuda" in path


@each("path", ["/v1/models/a/b:predict", "/v1/models/:predict/x"])
def test_a_name_that_is_a_path_is_not_found(path: str) -> None:
    answer = ask(Echo("m"), "POST", path, json={"instances": []})
    assert answer.status_code == 404
    assert answer.json()["error"].startswith("there is no POST /v1/models/")


@each("name", ["meta/llama-3", "/a//b/", "a/versions/1", "m:predict/x", "é/%2F", "a%2fb", "a\x00/b"])
@each("version, versions", [("1", ""), ("2024/11", "/versions/2024%2f11")])
async def test_a_slash_in_a_name_or_version_is_sent_encoded(name: str, version: str, versions: str) -> None:
    """On every route: here one of each kind, with a verb in V1's way, in V2's, and none."""
    model = Echo(name)
    model.version = version
    v1, v2 = (f"/{protocol}/models/{quote(name, safe='')}" for protocol in ("v1", "v2"))
    async with serving(model) as client:
        for path in (v1, f"{v2}{versions}"):
            answer = await client.get(path)
            assert (answer.status_code, answer.json()["name"]) == (200, name)
        for path in (f"{v2}{versions}/ready", f"{v2}{versions}/stats"):
            assert (await client.get(path)).status_code == 200
        assert (await client.post(f"{v1}:predict", json={"instances": [1]})).status_code == 200
        assert (await client.post(f"{v2}{versions}/infer", json=tensor())).status_code == 200


def test_an_encoded_slash_in_an_unknown_name_is_told_as_it_is() -> None:
    answer = ask(Echo("m"), "GET", "/v2/models/a%2Fb")
    assert (answer.status_code, answer.json()["error"]) == (404, "Model with name a/b does not exist. There are: m.")


def test_a_path_in_a_message_is_quoted_as_json_quotes() -> None:
    answer = ask(Echo("m"), "GET", "/%22%0A%C3%A9")
    assert answer.json()["error"].startswith('there is no GET /"\né; the nearest are ')


async def test_the_lifespan_loads_and_stops_the_models() -> None:
    events: list[str] = []

    class Living(Echo):
        def load(self) -> None:
            events.append("load")

        def stop(self) -> None:
            events.append("stop")

    async with serving(Living("m")) as client:
        events.append(str((await client.get("/v2/health/ready")).status_code))
    assert events == ["load", "200", "stop"]


def test_an_application_may_be_started_again() -> None:
    app = build_app(core_of(Echo("m")))

    async def main() -> int:
        async with app.router.lifespan_context(app), client_of(app) as client:
            return (await client.post("/v1/models/m:predict", json={"instances": []})).status_code

    assert [asyncio.run(main()), asyncio.run(main())] == [200, 200]


async def test_a_load_that_fails_ends_the_start() -> None:
    class Failing(Echo):
        def load(self) -> None:
            raise ValueError("no weights")

    with pytest.raises(ModelLoadError, match=r"load\(\) of model m failed: ValueError: no weights"):
        async with serving(Failing("m")):
            raise AssertionError


async def test_under_our_worker_the_lifespan_leaves_the_models_alone(tmp_path: Path) -> None:
    core = core_of(Echo("m"))
    board = Scoreboard(1)
    core.attach(board, board.row(0), "cpu", lambda: None, tmp_path)
    app = build_app(core)

    async with app.router.lifespan_context(app):
        assert (core.models, core.board, board.row(0).state) == ({}, board, State.EMPTY)


def test_the_core_is_found_through_middleware() -> None:
    core = core_of(Echo("m"))
    app = build_app(core)
    assert find_core(app) is core
    assert find_core(CORSMiddleware(CORSMiddleware(app))) is core
    assert find_core(lambda scope, receive, send: None) is None


async def test_a_users_own_route_and_its_errors_have_the_same_form() -> None:
    async def hello(request: Request) -> PlainTextResponse:
        if request.query_params:
            raise InvalidInput("expected no query") if "a" in request.query_params else HTTPException(401, "who is it?")
        return PlainTextResponse("hello")

    app = build_app(core_of(Echo("m")))
    app.add_route("/hello", hello)
    async with client_of(app, raises=False) as client:
        greeting, refused, unknown = [await client.get(f"/hello{query}") for query in ("", "?a=1", "?b=1")]
    assert greeting.text == "hello"
    assert (refused.status_code, refused.json()) == (400, {"error": "expected no query"})
    assert (unknown.status_code, unknown.json()) == (401, {"error": "who is it?"})


@each("method, path, words", [
    ("POST", "/openai/v1/chat/completions", "the OpenAI protocol is not offered here"),
    ("GET", "/openai/v1/models", "the OpenAI protocol is not offered here"),
    ("POST", "/v1/timeseries/forecast", "the time-series protocol is not offered here"),
])  # fmt: skip
def test_what_only_the_sdk_offers_is_refused_in_words(method: str, path: str, words: str) -> None:
    answer = ask(Echo("m"), method, path)
    assert (answer.status_code, list(answer.json())) == (501, ["error"])
    assert answer.json()["error"].startswith(words)
    assert "x-request-id" in answer.headers
