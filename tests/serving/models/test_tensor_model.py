"""Models that speak arrays: what they declare, their warm-up, and the pair of functions that is one."""

import asyncio
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

X = Tensor("x", "FP32", (-1, 2))


@each("shape, fits", [([3, 2], True), ([0, 2], True), ([3, 1], False), ([2], False), ([1, 3, 2], False)])
def test_a_declared_shape_leaves_open_what_is_minus_one(shape: list[int], fits: bool) -> None:
    assert X.fits(shape) is fits


class Double(TensorModel):
    name = "double"
    inputs = (X,)
    outputs = (Tensor("y", "FP32", (-1, 2)),)

    def predict(self, x: Any) -> Any:
        self.seen = x
        return x * 2


def test_warm_up_predicts_on_the_sample_in_the_declared_datatype() -> None:
    model = Double()
    model.sample = [[1.0, 2.0]]
    model.warmup()
    assert model.seen.dtype == np.float32


@each("sample, error", [([1.0, 2.0], InvalidInput), ([["a", "b"]], InvalidInput)])
def test_a_sample_that_does_not_match_is_refused(sample: Any, error: type[Exception]) -> None:
    model = Double()
    model.sample = sample
    with pytest.raises(error):
        model.warmup()


def predict_once(model: TensorModel) -> Any:
    async def main() -> Any:
        async with loaded(model) as core:
            return await ask(core, model.name, {"instances": [1, 2]})

    return asyncio.run(main()).outputs[0].as_numpy().tolist()


def two_of(held: Any, x: Any) -> Any:
    return [f"{held} {value}" for value in x]


def plain() -> str:
    return "plain"


def with_default(path: str = "weights") -> str:
    return path


def on_device(device: str) -> str:
    return device


def under_another_name(where: str) -> str:
    return where


def device_last(path: str = "weights", device: str = "none") -> str:
    return f"{path}@{device}"


@each("load, in_arbiter, held", [
    (plain, "plain", "plain"), (with_default, "weights", "weights"), (on_device, None, "cuda:7"),
    (under_another_name, None, "cuda:7"), (device_last, None, "weights@cuda:7"),
])  # fmt: skip
def test_a_load_function_runs_in_the_arbiter_unless_it_takes_a_device(
    load: Callable[..., str], in_arbiter: str | None, held: str
) -> None:
    model = FunctionModel("m", two_of, load)
    model.preload()
    assert getattr(model.predict, "args", (None,)) == (in_arbiter,)
    model.device = "cuda:7"
    model.load()
    assert predict_once(model) == [f"{held} 1".encode(), f"{held} 2".encode()]


def test_a_predict_function_without_load_gets_the_arrays_alone() -> None:
    model = FunctionModel("m", lambda x: x + 1, None)
    model.preload()
    model.load()
    assert predict_once(model) == [2, 3]


def test_a_predict_function_may_be_async() -> None:
    async def predict(held: str, x: Any) -> Any:
        await asyncio.sleep(0)
        return two_of(held, x)

    model = FunctionModel("m", predict, plain)
    model.preload()
    assert predict_once(model) == [b"plain 1", b"plain 2"]


def test_a_load_function_that_is_async_is_refused() -> None:
    async def load() -> str:
        return "never"

    with pytest.raises(ConfigurationError, match="the function load is async def, expected a plain def"):
        FunctionModel("m", two_of, load)


def test_a_model_without_a_predict_of_its_own_is_known() -> None:
    class Own(TensorModel):
        def predict(self, x: Any) -> Any:
            return x

    class Sdk(Model):
        def predict(self, payload: Any, headers: Any = None) -> Any:
            return payload

    functions = FunctionModel("m", lambda x: x, None)
    assert [lacks_predict(model) for model in (Own("m"), Sdk("m"), functions)] == [False] * 3
    assert [lacks_predict(model) for model in (TensorModel("m"), Model("m"))] == [True] * 2
