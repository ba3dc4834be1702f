"""Batching never changes an answer, loses one, or gives it to another caller, whatever the model and its callers do."""

import asyncio
import random
import time
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from mpserve.errors import InferenceError, InvalidInput
from mpserve.protocol.datatypes import Array, datatype_of
from mpserve.protocol.messages import InferInput, InferRequest, InferResponse, RequestedOutput
from mpserve.serving.models.tensor_model import Tensor, TensorModel
from tests.asgi import loaded
from tests.asking import Asker

pytestmark = pytest.mark.exhaustive

PATIENCE = 60.0
EXAMPLES, CLIENTS, TURNS = 20, 25, 20
"""10,000 requests."""

# Threads do not come in the same order twice, so an example that failed is shown as it was, not made smaller.
as_drawn = settings(max_examples=EXAMPLES, phases=[Phase.explicit, Phase.reuse, Phase.generate])

FINE, RAISES, EXITS, REFUSES, MISCOUNTS = range(5)
"""What a row makes of the batch that it is in; the last digit of its tag."""
FAULTS = {RAISES: ValueError, EXITS: SystemExit, REFUSES: InvalidInput}


class Case(NamedTuple):
    """A model, and the seed of all that its callers do."""

    seed: int
    size: int
    delay: float
    preferred: tuple[int, ...]
    pad_value: float | None
    concurrency: int | None
    declared: bool
    is_async: bool


def cases_of(size: int) -> st.SearchStrategy[Case]:
    return st.builds(
        Case,
        seed=st.integers(0, 2**32),
        size=st.just(size),
        delay=st.sampled_from([0.0, 0.0005, 0.003]),
        preferred=st.sets(st.integers(1, size), max_size=3).map(tuple),
        pad_value=st.sampled_from([None, 0.0]),
        concurrency=st.sampled_from([None, 1, 3]),
        declared=st.booleans(),
        is_async=st.booleans(),
    )


class Tagged(TensorModel):
    """Gives the tag of each row back, and what ``answered`` makes of the row; fails as the tags say."""

    name = "m"

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.max_batch_size, self.max_batch_delay, self.preferred_batch_sizes = case.size, case.delay, case.preferred
        self.pad_value, self.concurrency = case.pad_value, case.concurrency
        if case.declared:
            self.inputs = (Tensor("tag", "INT64", (-1,)), Tensor("x", "FP64", (-1, -1 if case.pad_value == 0 else 2)))
        self.calls: list[int] = []
        self.miscounted: set[int] = set()
        """Tags of all that were in a batch with one that made the model return too many rows."""

    def predict(self, tag: Array, x: Array) -> Any:
        time.sleep(self.pause(tag))
        return self.answer(tag, x)

    def pause(self, tags: Array) -> float:
        """None, mostly; else so long that others come meanwhile."""
        return float(tags.sum() // 10 % 4 == 0) * 0.001

    def answer(self, tags: Array, x: Array) -> Any:
        assert len(tags) == len(x)
        self.calls.append(len(tags))
        fates = (tags % 10).tolist()
        for tag, fate in zip(tags.tolist(), fates, strict=True):
            if fate in FAULTS:
                raise FAULTS[fate](f"because of {tag}")
        if MISCOUNTS in fates:
            self.miscounted.update(tags.tolist())
            return tags, np.zeros(len(tags) + 1)
        return tags, answered(x, self.pad_value)


class AsyncTagged(Tagged):
    async def predict(self, tag: Array, x: Array) -> Any:  # type: ignore[override]
        await asyncio.sleep(self.pause(tag))
        return self.answer(tag, x)


def answered(x: Array, pad_value: float | None) -> Array:
    """Thrice each element, or each row's sum where rows are padded."""
    if x.dtype == object:
        return x
    return x * 3 if pad_value is None else x.reshape(len(x), -1 if x.size else 0).sum(axis=1) * 3


class Asked(NamedTuple):
    """A request to ``Tagged`` and what is right for it."""

    payload: Any
    tag: int
    rows: int
    expected: Array
    outputs: list[int]


def asked(case: Case, seeded: random.Random, number: int) -> Asked:
    """A request of a random protocol, shape, datatype and fate."""
    fate = seeded.choice([*FAULTS, MISCOUNTS]) if seeded.random() < 0.04 else FINE
    by_v1 = seeded.random() < 0.3
    rows = seeded.randint(1 if by_v1 or fate else 0, min(4, case.size))
    if case.declared:
        shape, dtype = [rows, 2 if case.pad_value is None else seeded.randint(1, 4)], "f8"
    else:
        shape = [rows, *(seeded.randint(1, 3) for _ in range(seeded.randint(0, 2)))]
        dtype = seeded.choice(["f8", "i8"] if by_v1 else ["f4", "f8", "i8", "O"])
    tag = number * 10 + fate
    tags = np.full(rows, tag)
    x = np.array([seeded.randint(0, 1000) for _ in range(int(np.prod(shape)))]).reshape(shape).astype(dtype)
    if dtype == "O":
        x = np.array([b"%d" % item for item in x.ravel()], dtype=object).reshape(shape)
    expected = answered(x, case.pad_value)
    if by_v1:
        instances = [{"tag": tag, "x": row} for row in x.tolist()]
        return Asked({"instances": instances}, tag, rows, expected, [0, 1])
    inputs = [InferInput(n, list(a.shape), datatype_of(a.dtype), a) for n, a in (("tag", tags), ("x", x))]
    outputs = seeded.choice([[0, 1], [1], [1, 0]])
    wanted = [RequestedOutput(f"output-{output}") for output in outputs]
    return Asked(InferRequest("m", inputs, str(tag), request_outputs=wanted), tag, rows, expected, outputs)


def check(outcome: Any, asked: Asked, model: Tagged) -> None:
    """The outcome is what is right for the request, and it alone."""
    fate = asked.tag % 10
    if fate in FAULTS:
        assert type(outcome) is (InvalidInput if fate == REFUSES else InferenceError), outcome
        assert f"because of {asked.tag}" in str(outcome)
    elif asked.tag in model.miscounted or (not asked.rows and isinstance(outcome, InferenceError)):
        assert model.miscounted  # the model does not see who asked it for no rows
        assert type(outcome) is InferenceError
        assert "rows and returned shape" in str(outcome)
    else:
        assert fate == FINE
        assert isinstance(outcome, InferResponse), outcome
        assert outcome.id == (str(asked.tag) if isinstance(asked.payload, InferRequest) else None)
        assert [output.name for output in outcome.outputs] == [f"output-{output}" for output in asked.outputs]
        for output in outcome.outputs:
            expected = asked.expected if output.name == "output-1" else np.full(asked.rows, asked.tag)
            assert output.shape == list(expected.shape)
            assert output.as_numpy().dtype == expected.dtype
            assert output.as_numpy().tolist() == expected.tolist()


async def one_client(asker: Asker, model: Tagged, case: Case, number: int) -> int:
    """Ask again and again, and leave now and then before the answer is there; how many outcomes have been checked."""
    seeded = random.Random(case.seed * CLIENTS + number)
    for turn in range(TURNS):
        ours = asked(case, seeded, number * TURNS + turn)
        task = asyncio.create_task(asker.run("predict", "m", None, ours.payload, {}))
        leaves = False
        if seeded.random() < 0.15:
            for _ in range(seeded.randint(0, 6)):
                await asyncio.sleep(0)
            await asyncio.sleep(seeded.choice([0, 0.0005, 0.002]))
            leaves = task.cancel()
        [outcome] = await asyncio.gather(task, return_exceptions=True)
        assert task.cancelled() == leaves, outcome
        if not leaves:
            check(outcome if isinstance(outcome, BaseException) else outcome[0], ours, model)
    return TURNS


@as_drawn
@given(st.integers(1, 40).flatmap(cases_of))
def test_ten_thousand_requests_have_each_its_own_answer(case: Case) -> None:
    async def main() -> None:
        model: Tagged = AsyncTagged(case) if case.is_async else Tagged(case)
        async with loaded(model) as core:
            asker = Asker(core)
            clients = (one_client(asker, model, case, number) for number in range(CLIENTS))
            assert sum(await asyncio.gather(*clients)) == CLIENTS * TURNS
            assert max(model.calls) <= case.size
            instance = core.find("m")
            await instance.in_flight.until_idle()
            assert core.row.in_flight == 0
            await one_client(asker, model, case, CLIENTS)  # what went wrong, or went away, has cost nothing
            assert instance.batcher is not None
            while len(instance.batcher):  # the last one left a moment ago
                await asyncio.sleep(0.001)

    asyncio.run(asyncio.wait_for(main(), PATIENCE))
