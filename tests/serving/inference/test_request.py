"""A request from its body to its answer: who is asked, and what an answer is made complete with."""

from collections.abc import Callable
from typing import Any

import pytest

from mpserve.errors import InferenceError, ModelNotReady
from mpserve.protocol.messages import InferOutput, InferResponse, RequestedOutput
from mpserve.serving.models.model import Model
from mpserve.telemetry.logging import model as model_in_log
from tests.asgi import loaded
from tests.asking import Asker, ask
from tests.cases import each
from tests.serving.held import in_flight, request


class Answering(Model):
    def __init__(self, method: Callable[..., Any], version: str = "1") -> None:
        super().__init__("m")
        self.version = version
        self.predict = method  # type: ignore[method-assign]


async def answer_of(method: Callable[..., Any], payload: Any = None, version: str | None = None) -> Any:
    async with in_flight(Answering(method)) as core:
        return (await Asker(core).run("predict", "m", version, payload, {}))[0]


async def test_a_model_that_took_itself_out_of_service_is_not_asked() -> None:
    def predict(payload: Any) -> None:
        model.ready = False

    model = Answering(predict)
    async with in_flight(model) as core:
        await ask(core, "m", {})
        with pytest.raises(ModelNotReady, match="Model with name m is not ready"):
            await ask(core, "m", {})
        model.ready = True
        await ask(core, "m", {})


async def test_a_coroutine_that_a_decorator_hid_is_refused_in_words() -> None:
    """And closed, so that Python does not warn of it, which would fail this test."""

    async def predict(payload: Any) -> None: ...

    with pytest.raises(InferenceError, match=r"is of type coroutine, .* something that hides its async def\?$"):
        await answer_of(lambda *arguments: predict(arguments))


def response(**fields: Any) -> InferResponse:
    return InferResponse(
        fields.pop("id", None), "m", [InferOutput(name, [1], "INT64", [1]) for name in "abc"], **fields
    )


@each("of_model, of_request, told", [
    ((None, None), ("r", "1"), ("r", "1")), (("m", "9"), ("r", "1"), ("m", "9")), ((None, None), (None, None), (None, None)),
])  # fmt: skip
async def test_the_id_and_the_version_are_the_requests_unless_the_model_gave_others(
    of_model: tuple[str, str], of_request: tuple[str, str], told: tuple[str, str]
) -> None:
    identity, version = of_model
    asked = request([1], request_id=of_request[0])
    answer = await answer_of(lambda payload: response(id=identity, model_version=version), asked, of_request[1])
    assert (answer.id, answer.model_version) == told


@each("named, told", [(None, "10"), ("10", "10"), ("9", "9")])
async def test_a_model_with_several_versions_tells_which_one_answered_and_logged(named: str | None, told: str) -> None:
    labels: list[str] = []

    def predict(payload: Any) -> InferResponse:
        labels.append(model_in_log.get())
        return response()

    async with loaded(Answering(predict, "10"), Answering(predict, "9")) as core:
        result, _ = await Asker(core).run("predict", "m", named, request([1]), {})
        assert (result.model_version, labels) == (told, [f"m@{told}"])


async def test_an_answer_that_a_model_keeps_is_not_changed() -> None:
    """A model may well give the same object for every request."""
    kept = response()
    asked = request([1], request_id="r", request_outputs=[RequestedOutput("b")])
    answer = await answer_of(lambda payload: kept, asked, "1")
    assert (len(answer.outputs), answer.id) == (1, "r")
    assert (len(kept.outputs), kept.id, kept.model_version) == (3, None, None)


async def test_an_answer_that_is_no_response_is_handed_on() -> None:
    asked = request([1], request_outputs=[RequestedOutput("a")])
    assert await answer_of(lambda payload: {"outputs": []}, asked) == {"outputs": []}
