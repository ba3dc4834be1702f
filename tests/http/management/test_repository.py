"""The routes of the model repository extension."""

from typing import Any

import httpx

from mpserve.serving.models.model import Model
from tests.asgi import ask, serving
from tests.cases import each


class Echo(Model):
    name = "m"
    version = "7"

    def predict(self, payload: Any, headers: Any = None) -> Any:
        return {"predictions": payload["instances"]}


READY = {"name": "m", "version": "7", "state": "READY", "reason": ""}


@each("body", [b"", b" ", b"{}", b'{"ready": true}', b'{"ready": false}'])
def test_the_index_is_an_array(body: bytes) -> None:
    answer = ask(Echo(), "POST", "/v2/repository/index", content=body)
    assert (answer.status_code, answer.json()) == (200, [READY])


async def test_load_and_unload_answer_as_the_sdk_does() -> None:
    async with serving(Echo()) as client:

        async def post(path: str, **request: Any) -> tuple[int, Any]:
            answer = await client.post(f"/v2/repository/{path}", **request)
            return answer.status_code, answer.json()

        unload = {"parameters": {"unload_dependents": True}}
        assert await post("models/m/unload", json=unload) == (200, {"name": "m", "unload": True})
        assert await post("index", json={"ready": True}) == (200, [])
        assert (await client.get("/v2/models/m/ready")).status_code == 404
        assert await post("models/m/load") == (200, {"name": "m", "load": True})
        assert await post("index", json={"ready": True}) == (200, [READY])
        assert (await client.get("/v2/models/m/ready")).status_code == 200


@each("path, body, status, words", [
    ("models/other/load", b"", 404, "Model with name other does not exist. There are: m."),
    ("models/other/unload", b"", 404, "Model with name other does not exist. There are: m."),
    ("models/m/load", b'{"parameters": {"config": "{}"}}', 501, "the parameter 'config' is not supported"),
    ("models/m/load", b'{"parameters": {"file:1/m": "eA=="}}', 501, "the parameter 'file:1/m' is not supported"),
    ("models/m/load", b'{"parameters": []}', 200, "load"),
    ("models/m/load", b'{"parameters": [1]}', 400, "expected an object as 'parameters', got list"),
    ("models/m/load", b"[]", 400, "expected a JSON object"),
    ("models/m/unload", b"{", 400, "Unrecognized request format: "),
    ("index", b'{"ready": 1}', 400, "expected true or false as 'ready', got 1"),
])  # fmt: skip
def test_what_is_wrong_is_said(path: str, body: bytes, status: int, words: str) -> None:
    answer: httpx.Response = ask(Echo(), "POST", f"/v2/repository/{path}", content=body)
    assert (answer.status_code, words in answer.text) == (status, True), answer.text


def test_a_failing_load_is_the_servers_error_in_words() -> None:
    class Once(Echo):
        def load(self) -> None:
            if self.loaded:
                raise ValueError("no weights")

    answer = ask(Once(), "POST", "/v2/repository/models/m/load")
    assert answer.status_code == 500
    assert "in slot 0: load() of model m failed: ValueError: no weights" in answer.json()["error"]
