"""A request from its body to its answer: whose fault a failure is, and what an answer is made complete with."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from mpserve.errors import InferenceError, InvalidInput, ModelNotReady, MPServeError, NotSupported
from mpserve.protocol.messages import InferInput, InferOutput, InferRequest, InferResponse, RequestedOutput
from mpserve.serving.models.model import Model
from mpserve.telemetry.logging import model as model_in_log
from tests.asgi import loaded
from tests.asking import Asker
from tests.cases import each


class Answering(Model):
    name = "m"

    def __init__(self, method: Callable[..., Any]) -> None:
        super().__init__()
        self.predict = method  # type: ignore[method-assign]


def run(model: Model, payload: Any = None, version: str | None = None, verb: str = "predict") -> Any:
    async def main() -> Any:
        async with loaded(model) as core:
            try:
                result, _ = await Asker(core).run(verb, model.name, version, payload, {})
            finally:
                assert core.row.in_flight == 0
            return result

    return asyncio.run(main())


class Wordless(Exception):
    """An error of a model that fails at whatever is asked of it."""

    def __str__(self) -> str:
        raise RuntimeError

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError


def raising(error: BaseException) -> Model:
    def fail(payload: Any) -> None:
        raise error

    return Answering(fail)


@each("error, blamed, words", [
    (ValueError("bad"), InferenceError, "ValueError : bad"),
    (KeyError("instances"), InferenceError, "KeyError : 'instances'"),
    (SystemExit(3), InferenceError, "RuntimeError : SystemExit: 3"),
    (NotImplementedError("no kernel"), NotSupported, "no kernel"),
    (NotImplementedError(), NotSupported, "Model m does not implement predict."),
    (GeneratorExit(), InferenceError, "RuntimeError : GeneratorExit: "),
])  # fmt: skip
def test_what_a_model_raises_is_its_own_fault_and_keeps_its_cause(
    error: BaseException, blamed: type[MPServeError], words: str
) -> None:
    with pytest.raises(blamed) as caught:
        run(raising(error))
    assert str(caught.value) == words
    assert caught.value.__cause__ is not None


def fail_at_once(payload: Any) -> None:
    raise Wordless


async def fail_on_the_loop(payload: Any) -> None:
    raise Wordless


def fail_in_a_part(payload: Any) -> Any:
    raise Wordless
    yield


async def fail_in_a_part_on_the_loop(payload: Any) -> Any:
    raise Wordless
    yield


async def leave_in_a_part_on_the_loop(payload: Any) -> Any:
    raise GeneratorExit
    yield


@each(
    "method", [fail_at_once, fail_on_the_loop, fail_in_a_part, fail_in_a_part_on_the_loop, leave_in_a_part_on_the_loop]
)
async def test_an_error_that_cannot_be_told_is_answered_and_the_next_request_too(method: Callable[..., Any]) -> None:
    async with loaded(Answering(method)) as core:
        for _ in range(2):
            with pytest.raises(InferenceError, match=r"its text cannot be read|GeneratorExit"):
                await Asker(core).run("predict", "m", None, {}, {})
        assert core.row.in_flight == 0


@each("error", [InvalidInput("no cat"), InferenceError("tired"), ModelNotReady("m")])
def test_what_a_model_raises_on_purpose_comes_through(error: MPServeError) -> None:
    with pytest.raises(type(error)) as caught:
        run(raising(error))
    assert caught.value is error


async def test_a_model_that_took_itself_out_of_service_is_not_asked() -> None:
    def predict(payload: Any) -> None:
        model.ready = False

    model = Answering(predict)
    async with loaded(model) as core:
        await Asker(core).run("predict", "m", None, {}, {})
        with pytest.raises(ModelNotReady, match="Model with name m is not ready"):
            await Asker(core).run("predict", "m", None, {}, {})
        model.ready = True
        await Asker(core).run("predict", "m", None, {}, {})


def test_requests_in_flight_are_counted_while_they_are() -> None:
    async def main() -> list[int]:
        async with loaded(model) as core:
            counts.append(lambda: core.row.in_flight)
            return [(await Asker(core).run("predict", "m", None, {}, {}))[0], core.row.in_flight]

    counts: list[Callable[[], int]] = []
    model = Answering(lambda payload: counts[0]())
    assert asyncio.run(main()) == [1, 0]


def test_log_lines_of_a_model_carry_its_name() -> None:
    assert run(Answering(lambda payload: model_in_log.get())) == "m"


def test_a_coroutine_that_a_decorator_hid_is_refused_in_words() -> None:
    """And closed, so that Python does not warn of it, which would fail this test."""

    async def predict(payload: Any) -> None: ...

    with pytest.raises(InferenceError, match=r"is of type coroutine, .* something that hides its async def\?$"):
        run(Answering(lambda *arguments: predict(arguments)))


def tensor(name: str, kind: type = InferOutput) -> Any:
    return kind(name, [1], "INT64", [1])


def response(**fields: Any) -> InferResponse:
    return InferResponse(fields.pop("id", None), "m", [tensor("a"), tensor("b"), tensor("c")], **fields)


def request(*wanted: str, **fields: Any) -> InferRequest:
    outputs = [RequestedOutput(name) for name in wanted]
    return InferRequest("m", [tensor("x", InferInput)], request_outputs=outputs, **fields)


def test_an_output_that_is_not_there_is_the_clients_fault() -> None:
    with pytest.raises(InvalidInput, match="Unexpected inference output 'z' for model 'm'; expected 'a', 'b', 'c'"):
        run(Answering(lambda payload: response()), request("z"))


@each("of_model, of_request, told", [(None, "r", "r"), ("m", "r", "m"), (None, None, None)])
def test_the_id_is_the_requests_unless_the_model_gave_another(
    of_model: str | None, of_request: str | None, told: str | None
) -> None:
    assert run(Answering(lambda payload: response(id=of_model)), request(request_id=of_request)).id == told


@each("of_model, of_request, told", [(None, "1", "1"), ("9", "1", "9"), (None, None, None)])
def test_the_version_is_told_if_the_request_named_one(
    of_model: str | None, of_request: str | None, told: str | None
) -> None:
    model = Answering(lambda payload: response(model_version=of_model))
    assert run(model, request(), of_request).model_version == told


@each("named, told", [(None, "10"), ("10", "10"), ("9", "9")])
async def test_a_model_with_several_versions_tells_which_one_answered_and_logged(named: str | None, told: str) -> None:
    labels: list[str] = []

    def answering(version: str) -> Model:
        def answer(payload: Any) -> InferResponse:
            labels.append(model_in_log.get())
            return response()

        model = Answering(answer)
        model.version = version
        return model

    async with loaded(answering("10"), answering("9")) as core:
        result, _ = await Asker(core).run("predict", "m", named, request(), {})
        assert (result.model_version, labels) == (told, [f"m@{told}"])


def test_an_answer_that_a_model_keeps_is_not_changed() -> None:
    """A model may well give the same object for every request."""
    kept = response()
    answer = run(Answering(lambda payload: kept), request("b", request_id="r"), "1")
    assert (len(answer.outputs), answer.id) == (1, "r")
    assert (len(kept.outputs), kept.id, kept.model_version) == (3, None, None)


def test_an_answer_that_is_no_response_is_handed_on() -> None:
    assert run(Answering(lambda payload: {"outputs": []}), request("a")) == {"outputs": []}
