"""What a stage leaves in a context variable is there for the stages behind it, and for no other request."""

import asyncio
import itertools
from contextvars import ContextVar
from typing import Any

from mpserve.serving.models.model import Model
from tests.asgi import loaded
from tests.asking import Asker
from tests.cases import each

trace: ContextVar[tuple[str, ...]] = ContextVar("trace", default=())


def passed(stage: str, payload: Any) -> Any:
    """Add to the trace, of the request that the payload names."""
    trace.set((*trace.get(), f"{stage} {payload}"))
    return payload


def stage_of(name: str, is_async: bool) -> Any:
    def sync_stage(self: Model, payload: Any, headers: Any = None) -> Any:
        return passed(name, payload)

    async def async_stage(self: Model, payload: Any, headers: Any = None) -> Any:
        await asyncio.sleep(0)
        return passed(name, payload)

    return async_stage if is_async else sync_stage


def told(self: Model, payload: Any, headers: Any = None) -> Any:
    passed("postprocess", payload)
    return trace.get()


async def told_async(self: Model, payload: Any, headers: Any = None) -> Any:
    return told(self, payload)


MIXES = list(itertools.product([False, True], repeat=3))
EXPECTED = ("preprocess {0}", "predict {0}", "postprocess {0}")


@each("mix", MIXES)
async def test_a_context_variable_reaches_the_stages_behind(mix: tuple[bool, bool, bool]) -> None:
    before, verb, behind = mix
    stages = {
        "preprocess": stage_of("preprocess", before),
        "predict": stage_of("predict", verb),
        "postprocess": told_async if behind else told,
    }
    async with loaded(type("Traced", (Model,), stages)("m")) as core:
        asked = (Asker(core).run("predict", "m", None, number, {}) for number in (1, 2, 3))
        answers = [answer for answer, _ in await asyncio.gather(*asked)]
    assert answers == [tuple(word.format(number) for word in EXPECTED) for number in (1, 2, 3)]
    assert trace.get() == ()


def steps(self: Model, payload: Any, headers: Any = None) -> Any:
    for step in "ab":
        passed(step, payload)
        yield trace.get()


async def async_steps(self: Model, payload: Any, headers: Any = None) -> Any:
    for step in "ab":
        passed(step, payload)
        yield trace.get()


async def all_of(stream: Any) -> list[Any]:
    return [part async for part in stream]


@each("before", [False, True])
@each("predict", [steps, async_steps])
async def test_it_reaches_the_steps_of_a_generator(before: bool, predict: Any) -> None:
    stages = {"preprocess": stage_of("preprocess", before), "predict": predict}
    async with loaded(type("Traced", (Model,), stages)("m")) as core:
        streams = [(await Asker(core).run("predict", "m", None, number, {}))[0] for number in (1, 2)]
        parts = [await all_of(stream) for stream in streams]
    for number, (first, second) in enumerate(parts, 1):
        assert first == (f"preprocess {number}", f"a {number}")
        assert second in (
            (*first, f"b {number}"),
            (first[0], f"b {number}"),
        )  # an asynchronous step has a task of its own
