"""Run to completion and the ordinary way: whatever is asked, the same is answered, counted and let go on both."""

import asyncio
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from starlette.exceptions import HTTPException

from mpserve.errors import InvalidInput, ModelNotReady
from mpserve.http.accounts import Accounts
from mpserve.http.lane import Lane
from mpserve.protocol.messages import InferOutput, InferResponse
from mpserve.serving.dataplane import Dataplane
from mpserve.serving.model import Model
from mpserve.serving.tensors import Tensor
from tests.asgi import loaded
from tests.lanes import ROWS, V1, V2, Arrays, Case, Function, awaited, begun, case, nan_at, outcome, raising, v2


class Whole(Model):
    """An SDK-style model with nothing but a predict."""

    name = "m"

    def __init__(self, answer: Function) -> None:
        super().__init__()
        self.answer = answer

    def predict(self, payload: Any, headers: Any = None, response_headers: Any = None) -> Any:
        return self.answer(payload)


class Staged(Whole):
    def preprocess(self, payload: Any, headers: Any = None) -> Any:
        return {"instances": payload["instances"] * 2}

    def postprocess(self, payload: Any, headers: Any = None) -> Any:
        return {"post": payload}


class Headed(Whole):
    def predict(self, payload: Any, headers: Any = None, response_headers: Any = None) -> Any:
        response_headers.update({"x-theirs": "1", "x-seen": headers.get("x-mine", "none")})
        headers["x-mine"] = "changed"
        headers.pop("accept-encoding", None)
        return self.answer(payload)


class Explaining(Whole):
    def explain(self, payload: Any, headers: Any = None) -> Any:
        return self.answer(payload)


class Guarded(Arrays):
    def validate(self, payload: Any) -> Any:
        if not payload:
            raise InvalidInput("nothing in it")
        return payload


def versioned(version: str) -> Model:
    model = Arrays(lambda x: x * int(version))
    model.version = version
    return model


async def _coroutine(*given: Any) -> None: ...


def parts(*given: Any) -> Iterator[Any]:
    yield "a"
    yield b"b"


def failing_parts(*given: Any) -> Iterator[Any]:
    yield "a"
    raise ValueError("in the midst")


def fails_at_once(*given: Any) -> Iterator[Any]:
    raise InvalidInput("no parts for this")
    yield


def array_parts(x: Any) -> Iterator[Any]:
    yield x
    yield x


RESPONSE = InferResponse(None, "m", [InferOutput("y", [1], "INT64", [7])])
GZIP = [(b"accept-encoding", b"gzip")]
LONG = 400

BODIES: dict[str, tuple[str, Any]] = {
    "V1": (V1, ROWS),
    "V1, long": (V1, {"instances": [float(n) for n in range(LONG)]}),
    "V1, long rows too many": (V1, {"instances": [[float(n)] for n in range(LONG)]}),
    "V1, the alias": (V1, {"inputs": [1, 2]}),
    "V1, by name": (V1, {"instances": [{"x": 1}, {"x": 2}]}),
    "V1, columns": (V1, {"inputs": {"x": [1, 2]}}),
    "V1, a number": (V1, {"inputs": 5}),
    "V1, nothing in it": (V1, {}),
    "V1, no rows": (V1, {"instances": []}),
    "V1, text": (V1, {"instances": ["a"]}),
    "V1, ragged": (V1, {"instances": [[1], [1, 2]]}),
    "V1, out of range": (V1, {"instances": [1e39]}),
    "V1, no list": (V1, {"instances": 5}),
    "V1, no JSON": (V1, b"{"),
    "V1, no object": (V1, b"[]"),
    "V1, empty": (V1, b""),
    "V2": (V2, v2()),
    "V2, an id": (V2, v2(id="7")),
    "V2, long": (V2, v2([float(n) for n in range(LONG)], [LONG])),
    "V2, two rows": (V2, v2([[1], [2]], [2, 1])),
    "V2, a wrong name": (V2, v2(name="z")),
    "V2, a wrong datatype": (V2, v2(datatype="FP64")),
    "V2, a lower-case datatype": (V2, v2(datatype="fp32")),
    "V2, a wrong shape": (V2, v2(shape=[3])),
    "V2, a boolean": (V2, v2([1, True])),
    "V2, out of range": (V2, v2([1, 1e39])),
    "V2, no data": (V2, v2([], [0])),
    "V2, parameters": (V2, v2(parameters={"a": 1})),
    "V2, an output": (V2, v2(outputs=[{"name": "y"}])),
    "V2, no such output": (V2, v2(outputs=[{"name": "z"}])),
    "V2, binary output": (V2, v2(outputs=[{"name": "y", "parameters": {"binary_data": True}}])),
    "V2, an extra field": (V2, v2(other=1)),
    "V2, an id of a wrong type": (V2, v2(id=7)),
    "V2, no JSON": (V2, b"{"),
    "V2, no inputs": (V2, {}),
    "V2, the version": ("/v2/models/m/versions/1/infer", v2()),
    "explain": ("/v1/models/m:explain", ROWS),
}
FUNCTIONS: dict[str, Function] = {
    "doubles": lambda: Arrays(lambda x: x * 2),
    "undeclared": lambda: Arrays(lambda *arrays: arrays, inputs=(), outputs=()),
    "of two outputs": lambda: Arrays(
        lambda x: {"z": x, "y": x.sum()}, outputs=(Tensor("y", "FP32", ()), Tensor("z", "FP32", (-1,)))
    ),
    "of one shape": lambda: Arrays(lambda x: x, inputs=(Tensor("x", "FP32", (2,)),), outputs=()),
    "guarded": lambda: Guarded(lambda x: x),
    "whole": lambda: Whole(lambda payload: payload if isinstance(payload, dict) else RESPONSE),
}
ANSWERS: dict[str, Function] = {
    **{
        f"raises {type(error).__name__}": raising(error)
        for error in (
            ValueError("bad"), InvalidInput("no cat"), ModelNotReady("m"), SystemExit(3), KeyboardInterrupt(), StopIteration(1),
            asyncio.CancelledError(), NotImplementedError(), NotImplementedError("no kernel"), HTTPException(418, "a teapot"),
            GeneratorExit(), TimeoutError(), OSError(5, "disk"), StopAsyncIteration(),
        )
    },
    "None": lambda *given: None,
    "a coroutine": _coroutine,
    "parts": parts,
    "failing parts": failing_parts,
    "parts that fail at once": fails_at_once,
    "no parts": lambda *given: iter(()),
    "a dict": lambda *given: {"y": [1.5]},
    "text": lambda *given: "é",
    "bytes": lambda *given: b"\xff",
    "an object": lambda *given: object(),
    "a response": lambda *given: RESPONSE,
    "NaN": lambda *given: {"y": [float("nan")]},
    "NaN in an array": lambda *given: np.float32([1, np.nan]),
    "much": lambda *given: np.zeros(3000, np.float32),
    "a list of arrays": lambda *given: [np.float32([1])],
}  # fmt: skip
ARRAYS: dict[str, Function] = {
    "parts of arrays": array_parts,
    "a tuple": lambda x: (x,),
    "a tuple of two": lambda x: (x, x),
    "FP64": lambda x: x.astype(np.float64),
    "big-endian": lambda x: x.astype(">f4"),
    "a column": lambda x: np.stack([x, x], 1)[:, 1],
    "reversed": lambda x: x[::-1],
    "another shape": lambda x: x.reshape(-1, 1),
    "a scalar": lambda x: x.sum(),
    "integers": lambda x: x.astype(np.int32),
    "complex": lambda x: x.astype(np.complex64),
    "NaN at the end": nan_at(-1),
    "what it was given": lambda x: x,
    "nothing": lambda x: x[:0],
}

CASES: dict[str, Case] = {}
for model_name, function in FUNCTIONS.items():
    for body_name, (path, body) in BODIES.items():
        if "explain" not in body_name:
            CASES[f"{model_name} | {body_name}"] = case(function, path, body)
for way, (path, body) in {"V1": (V1, ROWS), "V2": (V2, v2(id="7"))}.items():
    for answer_name, answer in ANSWERS.items():
        CASES[f"a model | {way} | {answer_name}"] = case(lambda answer=answer: Whole(answer), path, body)
    for answer_name, answer in (ANSWERS | ARRAYS).items():
        for nonfinite in ("error", "null"):
            CASES[f"arrays | {way} | {answer_name} | {nonfinite}"] = case(
                lambda answer=answer: Arrays(answer), path, body, options={"nonfinite": nonfinite}
            )
    CASES |= {
        f"headers | {way}": case(
            lambda: Headed(lambda payload: "x" * 5000), path, body, headers=[(b"x-mine", b"1"), *GZIP]
        ),
        f"gzip | {way}": case(lambda: Arrays(lambda x: np.zeros(5000, np.float32)), path, body, headers=GZIP),
        f"gzip, an error | {way}": case(lambda: Arrays(raising(ValueError("x" * 5000))), path, body, headers=GZIP),
        f"an id | {way}": case(FUNCTIONS["doubles"], path, body, headers=[(b"x-request-id", b"mine")]),
        f"versions | {way}": case([lambda: versioned("1"), lambda: versioned("2")], path, body),
        f"no such model | {way}": case(
            FUNCTIONS["doubles"], path.replace("models/m", "models/other"), body, begins=False
        ),
    }
CASES |= {
    "stages": case(lambda: Staged(lambda payload: payload), V1, ROWS),
    "stages that fail": case(lambda: Staged(lambda payload: payload), V1, {}),
    "stages, a stage that fails": case(lambda: Staged(raising(KeyError("x"))), V1, ROWS),
    "one of several versions": case([lambda: versioned("1"), lambda: versioned("2")], BODIES["V2, the version"][0], v2()),
    "no such version": case(FUNCTIONS["doubles"], "/v2/models/m/versions/9/infer", v2(), begins=False),
    "explain": case(lambda: Explaining(lambda payload: payload), *BODIES["explain"]),
    "no explain": case(FUNCTIONS["doubles"], *BODIES["explain"], begins=False),
    "a raw body": case(
        lambda: Arrays(lambda x: x * 2), V2, np.float32([1, 2]).tobytes(), headers=[(b"inference-header-content-length", b"0")]
    ),
    "other content": case(lambda: Whole(lambda payload: payload), V1, b"\xff", headers=[(b"content-type", b"x/y")]),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited")
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_request_is_answered_counted_and_logged_alike_both_ways(case: Case) -> None:
    at_once = asyncio.run(outcome(case, begun))
    assert (at_once is not None) == case.begins
    if at_once is not None:
        assert at_once == asyncio.run(outcome(case, awaited))


def test_what_a_model_does_to_its_headers_is_not_seen_by_the_next_request_with_the_same_head() -> None:
    async def main() -> None:
        async with loaded(Headed(lambda payload: payload)) as core:
            lane = Lane(Dataplane(core), Accounts(access_log=False))
            asked = lane.accept(V1.encode(), [(b"x-mine", b"1"), (b"accept-encoding", b"gzip")])
            assert asked is not None
            for _ in range(2):
                told: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
                assert lane.begin(asked, b"{}", None, lambda answer, _, told=told: told.set_result(answer))  # type: ignore[misc]
                assert dict((await told).headers)[b"x-seen"] == b"1"
                assert dict((await lane.answer(asked, b"{}", None))[0].headers)[b"x-seen"] == b"1"
            assert asked.call.headers == {"x-mine": "1", "accept-encoding": "gzip"}

    asyncio.run(main())


def test_a_request_goes_to_the_model_that_is_there_when_it_comes() -> None:
    """What is known of a head is not who answers."""

    async def main() -> None:
        async with loaded(versioned("2")) as core:
            lane = Lane(Dataplane(core), Accounts(access_log=False))
            asked = lane.accept(V1.encode(), [])
            assert asked is not None
            group = core.served.pop("m")
            assert lane.begin(asked, b"{}", None, print) is None
            assert (await lane.answer(asked, b"{}", None))[0].status != 200
            core.served["m"] = group
            group.newest.model.ready = False
            assert lane.begin(asked, b"{}", None, print) is None
            assert (await lane.answer(asked, b"{}", None))[0].status == 503
            group.newest.model.ready = True
            assert (await lane.answer(asked, b'{"instances":[1]}', None))[0].body == b'{"predictions":[2.0]}'

    asyncio.run(main())
