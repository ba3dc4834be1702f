"""What a user's model inherits: the SDK's names, and the rules of loading it before or after the fork."""

import logging
from typing import Any

import pytest

from mpserve.errors import AcceleratorInArbiter
from mpserve.serving.models.model import Model
from tests.asgi import loaded
from tests.cases import each


class Loading(Model):
    """Fails or stops as it is told."""

    def __init__(self, outcome: Any = None) -> None:
        super().__init__("m")
        self.outcome = outcome

    def load(self) -> Any:
        if isinstance(self.outcome, BaseException):
            raise self.outcome
        return self.outcome


class LoadingMore(Loading):
    """Calls what it inherits first; a wrong rule would count the model as loaded before its own part has run."""

    def load(self) -> Any:
        super().load()
        self.loaded_before_the_end = self.loaded
        return True


class AsyncLoading(Model):
    async def load(self) -> str:
        return "loaded"


@each("outcome", [None, True, "anything"])
def test_a_load_that_completes_is_remembered(outcome: Any) -> None:
    model = Loading(outcome)
    assert not model.loaded
    assert model.load() is outcome
    assert model.loaded


def test_a_load_that_raises_does_not_count_and_may_be_repeated() -> None:
    model = Loading(ValueError("no weights"))
    with pytest.raises(ValueError, match="no weights"):
        model.load()
    assert not model.loaded
    model.outcome = None
    model.load()
    assert model.loaded


def test_of_nested_loads_the_outermost_decides() -> None:
    model = LoadingMore()
    assert model.load() is True
    assert (model.loaded_before_the_end, model.loaded) == (False, True)


@each("kind", [Loading, LoadingMore])
def test_a_load_stopped_on_its_way_to_cuda_is_put_off_and_told_and_counts_once_it_completes(
    kind: type[Loading], caplog: pytest.LogCaptureFixture
) -> None:
    model = kind(AcceleratorInArbiter("service.py:12 in load"))
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        assert model.load() is False
    assert isinstance(model.deferred, AcceleratorInArbiter)
    assert not model.loaded
    [message] = caplog.messages
    assert "model m: load() reached for CUDA in the arbiter" in message
    assert "service.py:12 in load" in message
    model.outcome = True
    model.load()
    assert (model.loaded, model.deferred) == (True, None)


async def test_an_async_load_stays_as_it_is() -> None:
    model = AsyncLoading()
    assert await model.load() == "loaded"
    assert not model.loaded


def test_a_subclass_need_not_call_the_constructor() -> None:
    class Silent(Model):
        def __init__(self) -> None:
            pass

    model = Silent()
    assert (model.name, model.ready, model.required_response_headers) == ("model", False, False)


@each("sample, seen", [(None, []), ({"instances": [1]}, [{"instances": [1]}])])
def test_warm_up_predicts_once_on_the_sample_if_there_is_one(sample: Any, seen: list[Any]) -> None:
    model, asked = Model(), []
    model.sample, model.predict = sample, asked.append  # type: ignore[method-assign]
    model.warmup()
    assert asked == seen


async def test_a_model_knows_its_predictor_from_its_load_on() -> None:
    class Curious(Model):
        def load(self) -> Any:
            assert self.predictor_config is not None
            self.asks = self.predictor_config.predictor_host
            return True

    model = Curious("m")
    assert model.predictor_config is None
    async with loaded(model, predictor_host="there:80"):
        assert model.asks == "there:80"
