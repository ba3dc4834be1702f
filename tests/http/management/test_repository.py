"""The routes of the model repository extension."""

from typing import Any

from tests.asgi import ask, serving
from tests.cases import each
from tests.models import faulty

READY = {"name": "echo", "version": "1", "state": "READY", "reason": ""}


@each("body", [b"", b" ", b"{}", b'{"ready": true}', b'{"ready": false}'])
def test_the_index_is_an_array(body: bytes) -> None:
    answer = ask(faulty.Echo(), "POST", "/v2/repository/index", content=body)
    assert (answer.status_code, answer.json()) == (200, [READY])


async def test_load_and_unload_answer_as_the_sdk_does() -> None:
    async with serving(faulty.Echo()) as client:

        async def post(path: str, **request: Any) -> tuple[int, Any]:
            answer = await client.post(f"/v2/repository/{path}", **request)
            return answer.status_code, answer.json()

        unload = {"parameters": {"unload_dependents": True}}
        assert await post("models/echo/unload", json=unload) == (200, {"name": "echo", "unload": True})
        assert await post("index", json={"ready": True}) == (200, [])
        assert await post("models/echo/load") == (200, {"name": "echo", "load": True})
        assert await post("index", json={"ready": True}) == (200, [READY])


@each("path, body, status, words", [
    ("models/other/load", b"", 404, "Model with name other does not exist. There are: echo."),
    ("models/other/unload", b"", 404, "Model with name other does not exist. There are: echo."),
    ("models/echo/load", b'{"parameters": {"config": "{}"}}', 501, "the parameter 'config' is not supported"),
    ("models/echo/load", b'{"parameters": []}', 200, "load"),
    ("models/echo/load", b'{"parameters": [1]}', 400, "expected an object as 'parameters', got list"),
    ("models/echo/load", b"[]", 400, "expected a JSON object"),
    ("models/echo/unload", b"{", 400, "Unrecognized request format: "),
    ("index", b'{"ready": 1}', 400, "expected true or false as 'ready', got 1"),
])  # fmt: skip
def test_what_is_wrong_is_said(path: str, body: bytes, status: int, words: str) -> None:
    answer = ask(faulty.Echo(), "POST", f"/v2/repository/{path}", content=body)
    assert (answer.status_code, words in answer.text) == (status, True), answer.text
