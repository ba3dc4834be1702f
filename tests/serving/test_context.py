"""What a stage leaves in a context variable is there for the stages behind it, and for no other request."""

import asyncio
import itertools
from contextvars import ContextVar
from typing import Any

from mpserve.serving.models.model import Model
from tests.asgi import loaded
from tests.asking import ask
from tests.cases import each

trace: ContextVar[tuple[str, ...]] = ContextVar("trace", default=())


def traced(stage: str, payload: Any) -> tuple[str, ...]:
    """Add to the trace, of the request that the payload names."""
    trace.set((*trace.get(), f"{stage} {payload}"))
    return trace.get()


def stage_of(name: str, is_async: bool) -> Any:
    """A stage that passes its payload on; the last stage answers with the trace."""

    def stage(self: Model, payload: Any, headers: Any = None) -> Any:
        told = traced(name, payload)
        return told if name == "postprocess" else payload

    async def async_stage(self: Model, payload: Any, headers: Any = None) -> Any:
        await asyncio.sleep(0)
        return stage(self, payload)

    return async_stage if is_async else stage


STAGES = ("preprocess", "predict", "postprocess")


@each("mix", itertools.product([False, True], repeat=3))
async def test_a_context_variable_reaches_the_stages_behind(mix: tuple[bool, ...]) -> None:
    stages = {name: stage_of(name, is_async) for name, is_async in zip(STAGES, mix, strict=True)}
    async with loaded(type("Traced", (Model,), stages)("m")) as core:
        answers = await asyncio.gather(*(ask(core, "m", number) for number in (1, 2, 3)))
    assert answers == [tuple(f"{name} {number}" for name in STAGES) for number in (1, 2, 3)]
    assert trace.get() == ()


def steps(self: Model, payload: Any, headers: Any = None) -> Any:
    yield traced("a", payload)
    yield traced("b", payload)


async def async_steps(self: Model, payload: Any, headers: Any = None) -> Any:
    yield traced("a", payload)
    yield traced("b", payload)


@each("before", [False, True])
@each("predict", [steps, async_steps])
async def test_it_reaches_the_steps_of_a_generator(before: bool, predict: Any) -> None:
    stages = {"preprocess": stage_of("preprocess", before), "predict": predict}
    async with loaded(type("Traced", (Model,), stages)("m")) as core:
        streams = [await ask(core, "m", number) for number in (1, 2)]
        for number, stream in enumerate(streams, 1):
            first, second = [part async for part in stream]
            assert first == (f"preprocess {number}", f"a {number}")
            # An asynchronous step has a task of its own.
            assert second in ((*first, f"b {number}"), (first[0], f"b {number}"))
