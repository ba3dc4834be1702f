"""What is told of all requests to a model, whoever asked them and however they ended."""

import asyncio
import time
from typing import Any

import numpy as np
import pytest

from mpserve.errors import InvalidInput, ModelNotFound
from mpserve.protocol.messages import InferInput, InferRequest, RequestedOutput
from mpserve.serving.extensions.statistics import Statistics
from mpserve.serving.models.model import Model
from mpserve.serving.models.tensor_model import Tensor, TensorModel
from mpserve.serving.repository.core import ServerCore
from mpserve.serving.repository.repository import Repository
from tests.asgi import loaded
from tests.asking import Asker, ask
from tests.cases import each

SLEEP = 0.02
PARTS = ("queue", "compute_input", "compute_infer", "compute_output")


class Double(TensorModel):
    name = "double"
    inputs = (Tensor("x", "FP32", (-1,)),)
    outputs = (Tensor("y", "FP32", (-1,)),)

    def predict(self, x: Any) -> Any:
        return x * 2


class Choosy(Model):
    """Sleeps in each stage as long as it is told, and fails when it is told."""

    name = "choosy"

    def preprocess(self, payload: Any, headers: Any = None) -> Any:
        return self._spend(payload, "preprocess")

    def predict(self, payload: Any, headers: Any = None) -> Any:
        return self._spend(payload, "predict")

    def postprocess(self, result: Any, headers: Any = None) -> Any:
        return self._spend(result, "postprocess")

    def _spend(self, payload: Any, stage: str) -> Any:
        if payload.get("slow") == stage:
            time.sleep(SLEEP)
        if payload.get("fails") == stage:
            raise ValueError(stage)
        return payload


class AsyncChoosy(Choosy):
    async def predict(self, payload: Any, headers: Any = None) -> Any:
        return super().predict(payload, headers)


def told(core: ServerCore) -> dict[str, Any]:
    """The statistics of the only model."""
    [stats] = Statistics(core).told()
    return stats


def counts(stats: dict[str, Any]) -> dict[str, int]:
    return {name: duration["count"] for name, duration in stats["inference_stats"].items()}


async def test_before_the_first_request_all_is_zero() -> None:
    async with loaded(Double()) as core:
        names = ("success", "fail", *PARTS, "cache_hit", "cache_miss")
        assert told(core) == {
            "name": "double",
            "version": "1",
            "last_inference": 0,
            "inference_count": 0,
            "execution_count": 0,
            "inference_stats": {name: {"count": 0, "ns": 0} for name in names},
            "batch_stats": [],
            "memory_usage": [],
            "response_stats": {},
        }


@each("model", [Choosy(), AsyncChoosy()])
@each("stage, part", [("preprocess", "compute_input"), ("predict", "compute_infer"), ("postprocess", "compute_output")])
async def test_each_stage_is_time_of_its_part(model: Model, stage: str, part: str) -> None:
    async with loaded(model) as core:
        before = time.time_ns() // 1_000_000
        await ask(core, "choosy", {"slow": stage})
        stats = told(core)
        assert stats["inference_stats"][part]["ns"] >= SLEEP * 1e9
        assert before <= stats["last_inference"] <= time.time_ns() // 1_000_000
        assert counts(stats) == {**dict.fromkeys(("success", *PARTS), 1), "fail": 0, "cache_hit": 0, "cache_miss": 0}


async def test_waiting_for_the_models_thread_is_time_in_the_queue() -> None:
    async with loaded(Choosy()) as core:
        await asyncio.gather(*(ask(core, "choosy", {"slow": "predict"}) for _ in range(3)))
        assert told(core)["inference_stats"]["queue"]["ns"] >= SLEEP * 1e9


async def test_whatever_ends_without_an_answer_is_a_failure_and_no_inference() -> None:
    async with loaded(Choosy()) as core:
        for stage in ("preprocess", "predict", "postprocess"):
            with pytest.raises(Exception, match=stage):
                await ask(core, "choosy", {"fails": stage})
        waiting = ask(core, "choosy", {"slow": "predict"})
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait({waiting})
        stats = told(core)
        assert (stats["inference_count"], stats["execution_count"]) == (0, 0)
        assert counts(stats) == {**dict.fromkeys(counts(stats), 0), "fail": 4}


async def test_an_output_that_the_model_does_not_have_is_a_failure_too() -> None:
    async with loaded(Double()) as core:
        given = InferInput("x", [1], "FP32", np.zeros(1, np.float32))
        with pytest.raises(InvalidInput):
            await ask(core, "double", InferRequest("double", [given], request_outputs=[RequestedOutput("z")]))
        assert (counts(told(core))["success"], counts(told(core))["fail"]) == (0, 1)


async def test_a_model_that_is_loaded_anew_begins_at_zero_and_the_others_go_on() -> None:
    async with loaded(Double(), Choosy()) as core:

        async def executions() -> dict[str, int]:
            """How often each model was asked, after both are asked once more."""
            for name in ("double", "choosy"):
                await ask(core, name, {"instances": [1.0]})
            return {stats["name"]: stats["execution_count"] for stats in Statistics(core).told()}

        assert await executions() == {"double": 1, "choosy": 1}
        await Repository(core).load("double", {})
        assert [stats["execution_count"] for stats in Statistics(core).told("double")] == [0]
        assert await executions() == {"double": 1, "choosy": 2}


async def test_each_version_has_its_own_and_all_are_told_without_one() -> None:
    second = Double()
    second.version = "2"
    async with loaded(Double(), second) as core:
        for version in ("1", "1", "2"):
            await Asker(core).run("predict", "double", version, {"instances": [1.0]}, {})
        told = Statistics(core).told
        assert [(each["version"], each["execution_count"]) for each in told("double")] == [("1", 2), ("2", 1)]
        assert [(each["version"], each["execution_count"]) for each in told("double", "2")] == [("2", 1)]
        assert told() == told("double")
        for name, version in (("nope", None), ("double", "3")):
            with pytest.raises(ModelNotFound):
                told(name, version)
