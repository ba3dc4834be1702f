"""What a user's model inherits: the SDK's names, and the rules of loading it before or after the fork."""

import asyncio
import logging
from typing import Any

import pytest

from mpserve.errors import AcceleratorInArbiter, NotSupported
from mpserve.serving.models.model import Model
from tests.asgi import loaded
from tests.cases import each


class Loading(Model):
    """Counts its loads; fails or stops as it is told."""

    def __init__(self, outcome: Any = None) -> None:
        super().__init__("m")
        self.outcome = outcome
        self.loads = 0

    def load(self) -> Any:
        self.loads += 1
        if isinstance(self.outcome, BaseException):
            raise self.outcome
        return self.outcome


class LoadingMore(Loading):
    """Calls what it inherits first; a wrong rule would count the model as loaded before its own part has run."""

    def load(self) -> Any:
        super().load()
        self.loaded_before_the_end = self.loaded
        return True


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
    assert (model.loaded_before_the_end, model.loaded, model.loads) == (False, True, 1)


@pytest.mark.parametrize("model_class", [Loading, LoadingMore])
def test_a_load_stopped_on_its_way_to_cuda_is_put_off_and_told(
    model_class: type[Loading], caplog: pytest.LogCaptureFixture
) -> None:
    model = model_class(AcceleratorInArbiter("service.py:12 in load"))
    with caplog.at_level(logging.WARNING):
        assert model.load() is False
    assert isinstance(model.deferred, AcceleratorInArbiter)
    assert not model.loaded
    [record] = caplog.records
    assert "model m: load() reached for CUDA in the arbiter" in record.getMessage()
    assert "service.py:12 in load" in record.getMessage()


def test_a_load_that_was_put_off_counts_once_it_completes() -> None:
    model = Loading(AcceleratorInArbiter("here"))
    model.load()
    model.outcome = True
    model.load()
    assert (model.loaded, model.deferred) == (True, None)


def test_an_async_load_stays_as_it_is() -> None:
    class AsyncLoading(Model):
        async def load(self) -> str:
            return "loaded"

    model = AsyncLoading()
    assert asyncio.run(model.load()) == "loaded"
    assert not model.loaded


def test_a_subclass_need_not_call_the_constructor() -> None:
    class Silent(Model):
        def __init__(self) -> None:
            pass

    model = Silent()
    assert (model.name, model.ready, model.required_response_headers) == ("model", False, False)


def test_a_transformer_that_was_started_without_a_predictor_is_told_the_option() -> None:
    with pytest.raises(NotSupported, match="and there is no predictor to ask"):
        Model("m").predict({})


@each("sample, seen", [(None, []), ({"instances": [1]}, [{"instances": [1]}])])
def test_warm_up_predicts_once_on_the_sample_if_there_is_one(sample: Any, seen: list[Any]) -> None:
    class Seeing(Model):
        def predict(self, payload: Any, headers: Any = None) -> Any:
            asked.append(payload)

    asked: list[Any] = []
    model = Seeing()
    model.sample = sample
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
