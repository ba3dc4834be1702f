"""What is told of all requests to a model, whoever asked them and however they ended."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
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
from tests.asking import Asker
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


@asynccontextmanager
async def serving(*models: Model) -> AsyncIterator[tuple[ServerCore, Asker]]:
    async with loaded(*models) as core:
        yield core, Asker(core)


def counts(stats: dict[str, Any]) -> dict[str, int]:
    return {name: duration["count"] for name, duration in stats["inference_stats"].items()}


async def test_before_the_first_request_all_is_zero() -> None:
    async with serving(Double()) as (core, _):
        zero = {"count": 0, "ns": 0}
        names = ("success", "fail", *PARTS, "cache_hit", "cache_miss")
        assert Statistics(core).told("double") == [
            {
                "name": "double",
                "version": "1",
                "last_inference": 0,
                "inference_count": 0,
                "execution_count": 0,
                "inference_stats": dict.fromkeys(names, zero),
                "batch_stats": [],
                "memory_usage": [],
                "response_stats": {},
            }
        ]


async def test_v1_and_v2_share_counts_and_rows_are_summed() -> None:
    async with serving(Double()) as (core, asker):
        array = np.zeros(3, np.float32)
        v2 = InferRequest(model_name="double", infer_inputs=[InferInput("x", [3], "FP32", array)])
        before = time.time_ns() // 1_000_000
        await asker.run("predict", "double", None, v2, {})
        await Asker(core).run("predict", "double", None, {"instances": [1.0, 2.0]}, {})
        [stats] = Statistics(core).told("double")
        assert (stats["inference_count"], stats["execution_count"]) == (5, 2)
        assert counts(stats) == {**dict.fromkeys(("success", *PARTS), 2), "fail": 0, "cache_hit": 0, "cache_miss": 0}
        spent = stats["inference_stats"]
        assert all(spent[part]["ns"] > 0 for part in PARTS)
        assert sum(spent[part]["ns"] for part in PARTS) <= spent["success"]["ns"]
        assert before <= stats["last_inference"] <= time.time_ns() // 1_000_000


@each("model", [Choosy(), AsyncChoosy()])
@each("stage, part", [("preprocess", "compute_input"), ("predict", "compute_infer"), ("postprocess", "compute_output")])
async def test_each_stage_is_time_of_its_part(model: Model, stage: str, part: str) -> None:
    async with serving(model) as (core, asker):
        await asker.run("predict", "choosy", None, {"slow": stage}, {})
        [stats] = Statistics(core).told("choosy")
        assert stats["inference_stats"][part]["ns"] >= SLEEP * 1e9


async def test_waiting_for_the_models_thread_is_time_in_the_queue() -> None:
    class Held(Choosy):
        released = threading.Event()

        def predict(self, payload: Any, headers: Any = None) -> Any:
            assert self.released.wait(60)
            return payload

    async with serving(Held()) as (core, asker):
        asked = [asyncio.ensure_future(asker.run("predict", "choosy", None, {}, {})) for _ in range(2)]
        await asyncio.sleep(0)  # until both are waiting
        await asyncio.sleep(SLEEP)
        Held.released.set()
        await asyncio.gather(*asked)
        [stats] = Statistics(core).told("choosy")
        assert stats["inference_stats"]["queue"]["ns"] >= SLEEP * 1e9


async def test_whatever_ends_without_an_answer_is_a_failure_and_no_inference() -> None:
    async with serving(Choosy()) as (core, asker):
        for stage in ("preprocess", "predict", "postprocess"):
            with pytest.raises(Exception, match=stage):
                await asker.run("predict", "choosy", None, {"fails": stage}, {})
        waiting = asyncio.ensure_future(asker.run("predict", "choosy", None, {"slow": "predict"}, {}))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait({waiting})
        [stats] = Statistics(core).told("choosy")
        assert (stats["inference_count"], stats["execution_count"]) == (0, 0)
        assert counts(stats) == {**dict.fromkeys(counts(stats), 0), "fail": 4}


async def test_an_output_that_the_model_does_not_have_is_a_failure_too() -> None:
    async with serving(Double()) as (core, asker):
        given = InferInput("x", [1], "FP32", np.zeros(1, np.float32))
        request = InferRequest(model_name="double", infer_inputs=[given], request_outputs=[RequestedOutput("z")])
        with pytest.raises(InvalidInput):
            await asker.run("predict", "double", None, request, {})
        [stats] = Statistics(core).told("double")
        assert (counts(stats)["success"], counts(stats)["fail"]) == (0, 1)


@each("name, version", [("nope", None), ("double", "2")])
async def test_an_unknown_model_or_version_has_none(name: str, version: str | None) -> None:
    async with serving(Double()) as (core, _):
        assert [each["version"] for each in Statistics(core).told("double", "1")] == ["1"]
        with pytest.raises(ModelNotFound):
            Statistics(core).told(name, version)


async def test_a_model_that_is_loaded_anew_begins_at_zero_and_the_others_go_on() -> None:
    async with serving(Double(), Choosy()) as (core, asker):

        async def ask(name: str) -> None:
            await asker.run("predict", name, None, {"instances": [1.0]}, {})

        for name in ("double", "choosy", "double", "choosy"):
            await ask(name)
        await Repository(core).load("double", {})
        assert {each["name"]: each["execution_count"] for each in Statistics(core).told()} == {"double": 0, "choosy": 2}
        for name in ("double", "choosy"):
            await ask(name)
        assert {each["name"]: each["execution_count"] for each in Statistics(core).told()} == {"double": 1, "choosy": 3}


async def test_each_version_has_its_own_and_all_are_told_without_one() -> None:
    second = Double()
    second.version = "2"
    async with serving(Double(), second) as (core, asker):
        for version in ("1", "1", "2"):
            await asker.run("predict", "double", version, {"instances": [1.0]}, {})
        told = Statistics(core).told
        assert [(each["version"], each["execution_count"]) for each in told("double")] == [("1", 2), ("2", 1)]
        assert [(each["version"], each["execution_count"]) for each in told("double", "2")] == [("2", 1)]
        assert told() == told("double")
