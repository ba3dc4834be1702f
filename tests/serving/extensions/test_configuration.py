"""A model's configuration, as Triton's clients read it."""

from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from mpserve.errors import ModelNotFound
from mpserve.serving.extensions.configuration import configuration
from mpserve.serving.models.model import Model
from mpserve.serving.models.tensor_model import Tensor, TensorModel
from tests.asgi import loaded
from tests.cases import each


class Declared(TensorModel):
    name = "m"
    platform = "numpy"
    inputs = (Tensor("x", "FP32", (-1, 4)), Tensor("words", "BYTES", (1,)))
    outputs = (Tensor("y", "INT64", (-1,)),)


class Odd(Model):
    name = "m"

    def predict(self, payload: Any, headers: Any = None) -> Iterator[Any]:
        yield payload

    def get_input_types(self) -> list[dict[str, Any]]:
        return [{"name": "x", "datatype": "float", "shape": [1]}]


class AsyncGenerating(Model):
    name = "m"

    async def predict(self, payload: Any, headers: Any = None) -> AsyncIterator[Any]:  # type: ignore[override]
        yield payload


async def configuration_of(model: Model) -> dict[str, Any]:
    async with loaded(model) as core:
        return await configuration(core, "m", None)


async def test_it_is_drawn_from_what_the_model_declares() -> None:
    assert await configuration_of(Declared()) == {
        "name": "m",
        "platform": "numpy",
        "backend": "python",
        "max_batch_size": 0,
        "input": [
            {"name": "x", "data_type": "TYPE_FP32", "dims": [-1, 4]},
            {"name": "words", "data_type": "TYPE_STRING", "dims": [1]},
        ],
        "output": [{"name": "y", "data_type": "TYPE_INT64", "dims": [-1]}],
        "model_transaction_policy": {"decoupled": False},
    }


async def test_a_datatype_that_there_is_not_is_invalid() -> None:
    assert (await configuration_of(Odd()))["input"] == [{"name": "x", "data_type": "TYPE_INVALID", "dims": [1]}]


@each("model", [Odd(), AsyncGenerating()])
async def test_a_generator_may_answer_a_request_any_number_of_times(model: Model) -> None:
    assert (await configuration_of(model))["model_transaction_policy"] == {"decoupled": True}


async def test_another_version_has_none() -> None:
    async with loaded(Declared()) as core:
        with pytest.raises(ModelNotFound):
            await configuration(core, "m", "2")
