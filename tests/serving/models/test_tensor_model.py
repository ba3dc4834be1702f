"""Models that speak arrays: what they declare, their warm-up, and the pair of functions that is one."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from mpserve.errors import ConfigurationError, InvalidInput
from mpserve.serving.models.model import Model
from mpserve.serving.models.tensor_model import FunctionModel, Tensor, TensorModel, lacks_predict
from tests.asgi import loaded
from tests.asking import ask
from tests.cases import each


class Seeing(TensorModel):
    inputs = (Tensor("x", "FP32", (-1, 2)),)

    def predict(self, x: Any) -> Any:
        self.seen = x


def test_warm_up_predicts_on_the_sample_in_the_declared_datatype() -> None:
    model = Seeing()
    model.sample = [[1.0, 2.0]]
    model.warmup()
    assert model.seen.dtype == np.float32


@each("sample", [[1.0, 2.0], [[1.0]], [[[1.0, 2.0]]], [["a", "b"]]])
def test_a_sample_that_does_not_match_is_refused(sample: Any) -> None:
    model = Seeing()
    model.sample = sample
    with pytest.raises(InvalidInput):
        model.warmup()


async def answer_of(model: TensorModel) -> Any:
    async with loaded(model) as core:
        answer = await ask(core, model.name, {"instances": [1, 2]})
    return answer.outputs[0].as_numpy().tolist()


def told(held: Any, x: Any) -> Any:
    return [f"{held} {value}" for value in x]


async def told_async(held: Any, x: Any) -> Any:
    return told(held, x)


@each("predict", [told, told_async])
@each("load, in_arbiter, held", [
    (lambda: "plain", "plain", "plain"), (lambda path="weights": path, "weights", "weights"),
    (lambda device: device, None, "cuda:7"), (lambda under_another_name: under_another_name, None, "cuda:7"),
    (lambda path="weights", device="none": f"{path}@{device}", None, "weights@cuda:7"),
])  # fmt: skip
async def test_a_load_function_runs_in_the_arbiter_unless_it_takes_a_device(
    predict: Callable[..., Any], load: Callable[..., str], in_arbiter: str | None, held: str
) -> None:
    model = FunctionModel("m", predict, load)
    model.preload()
    assert getattr(model.predict, "args", (None,)) == (in_arbiter,)
    model.device = "cuda:7"
    model.load()
    assert await answer_of(model) == [f"{held} 1".encode(), f"{held} 2".encode()]


async def test_a_predict_function_without_load_gets_the_arrays_alone() -> None:
    assert await answer_of(FunctionModel("m", lambda x: x + 1, None)) == [2, 3]


def test_a_load_function_that_is_async_is_refused() -> None:
    async def load() -> str:
        return "never"

    with pytest.raises(ConfigurationError, match="the function load is async def, expected a plain def"):
        FunctionModel("m", told, load)


def test_a_model_without_a_predict_of_its_own_is_known() -> None:
    class Sdk(Model):
        def predict(self, payload: Any, headers: Any = None) -> Any: ...

    having = (Seeing("m"), Sdk("m"), FunctionModel("m", told, None))
    assert [lacks_predict(model) for model in having] == [False] * 3
    assert [lacks_predict(model) for model in (TensorModel("m"), Model("m"))] == [True] * 2
