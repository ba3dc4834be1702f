"""Tensors in shared memory, as the asker takes and gives them, whichever front end they came by."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mpserve.errors import InvalidInput, MPServeError, NotSupported, RegionNotFound
from mpserve.protocol.binary import encode_tensor
from mpserve.protocol.datatypes import DATATYPES, numpy_dtype
from mpserve.protocol.messages import InferInput, InferOutput, InferRequest, InferResponse, RequestedOutput
from mpserve.serving.models.model import Model
from mpserve.serving.repository.core import ServerCore
from tests.asgi import loaded
from tests.asking import ask
from tests.cases import each
from tests.memory import memory


class Echo(Model):
    """Answers with its inputs, keeps the request, and calls ``meanwhile`` first."""

    name = "echo"
    request: InferRequest
    meanwhile: Callable[[], object] = staticmethod(lambda: None)

    def predict(self, payload: InferRequest, headers: Any = None) -> InferResponse:
        self.request = payload
        self.meanwhile()
        outputs = [InferOutput(each.name, each.shape, each.datatype, each.as_numpy()) for each in payload.inputs]
        return InferResponse(payload.id, self.name, outputs)


def place(size: int, offset: int = 0, region: str = "r", **more: Any) -> dict[str, Any]:
    named = {"shared_memory_region": region, "shared_memory_byte_size": size, **more}
    return named | ({"shared_memory_offset": offset} if offset else {})


def given(parameters: Any, shape: Any = (2,), datatype: str = "FP32") -> InferInput:
    return InferInput("x", shape, datatype, None, parameters)


HERE = InferInput("x", [2], "FP32", [1, 2])
X = np.array([1, 2], np.float32).tobytes()


async def infer(core: ServerCore, tensor: InferInput, wanted: Any = None) -> InferOutput:
    outputs = [] if wanted is None else [RequestedOutput("x", wanted)]
    answer = await ask(core, "echo", InferRequest("echo", [tensor], request_outputs=outputs))
    output: InferOutput = answer.outputs[0]
    return output


@asynccontextmanager
async def sharing(model: Echo, content: bytes) -> AsyncIterator[tuple[ServerCore, Path]]:
    """The model, loaded, and an object of this content behind the region ``r``."""
    with memory(content) as path:
        async with loaded(model, allow_client_shm=True) as core:
            core.regions.register("r", path.name, 0, len(content))
            yield core, path


def once(
    tensor: InferInput, wanted: Any = None, *, content: bytes = X, model: Echo | None = None
) -> tuple[InferOutput, bytes]:
    """The output of one request, and the object after it."""

    async def main() -> tuple[InferOutput, bytes]:
        async with sharing(model or Echo(), content) as (core, path):
            return await infer(core, tensor, wanted), path.read_bytes()

    return asyncio.run(main())


@each("datatype", DATATYPES)
def test_an_input_is_read_where_it_lies(datatype: str) -> None:
    values = [b"a", b"", b"\xff\0"] if datatype == "BYTES" else [0, 1, 1]
    data = bytes(encode_tensor(np.array(values, dtype=numpy_dtype(datatype)), datatype))
    output, _ = once(given(place(len(data), 3), (3, 1), datatype), content=b"abc" + data)
    assert output.as_numpy().ravel().tolist() == values


def test_the_model_gets_an_ordinary_input_that_it_cannot_write_to_and_an_ordinary_wish() -> None:
    model = Echo()
    once(given(place(8, binary=True)), model=model)
    (seen,) = model.request.inputs
    assert seen == InferInput("x", [2], "FP32", [1, 2], {"binary": True})
    assert not seen.as_numpy().flags.writeable
    once(HERE, place(8, binary_data=False), model=model)
    assert model.request.request_outputs == [RequestedOutput("x", {"binary_data": False})]


async def test_an_input_does_not_change_under_the_model() -> None:
    async with sharing(Echo(), X) as (core, path):
        output = await infer(core, given(place(8)))
        path.write_bytes(np.array([5, 6], np.float32).tobytes())
        assert output.as_numpy().tolist() == [1, 2]


@each("tensor, size, offset", [
    (HERE, 8, 0), (HERE, 16, 4), (InferInput("x", [2], "BYTES", [b"a", b""]), 9, 0),
    (InferInput("x", [0, 2], "INT64", []), 0, 0),
])  # fmt: skip
def test_an_output_is_written_where_it_is_wanted_and_comes_without_data(
    tensor: InferInput, size: int, offset: int
) -> None:
    output, content = once(tensor, place(size, offset), content=b"\xee" * 32)
    data = bytes(encode_tensor(tensor.as_numpy(), tensor.datatype))
    assert output == InferOutput("x", tensor.shape, tensor.datatype, None, place(len(data), offset))
    assert output.in_shared_memory
    assert content == b"\xee" * offset + data + b"\xee" * (32 - offset - len(data))


@each("parameters, error, words", [
    ({"shared_memory_region": "r"}, InvalidInput, "shared_memory_byte_size is null, expected a number of bytes"),
    ({"shared_memory_region": 1}, InvalidInput, "shared_memory_region is 1, expected a string"),
    (place(-8), InvalidInput, "shared_memory_byte_size is -8, expected a number of bytes"),
    (place(8, -1), InvalidInput, "shared_memory_offset is -1, expected a number of bytes"),
    (place(True), InvalidInput, "shared_memory_byte_size is true, expected a number of bytes"),
    (place(8, 1.5), InvalidInput, "shared_memory_offset is 1.5, expected a number of bytes"),  # type: ignore[arg-type]
    (place(8, 1), InvalidInput, "shared memory region 'r' has 8 bytes, expected 9 or more for 8 bytes from offset 1 on"),
    (place(8, 2**63), InvalidInput, "shared memory region 'r' has 8 bytes, expected 9223372036854775816 or more"),
    (place(8, region="s"), RegionNotFound, "shared memory region 's' is not registered"),
])  # fmt: skip
def test_a_place_that_is_none_is_refused_before_the_model_is_asked(
    parameters: Any, error: type[MPServeError], words: str
) -> None:
    for tensor, wanted, what in ((given(parameters), None, "input"), (HERE, parameters, "output")):
        model = Echo()
        with pytest.raises(error, match=f"^{what} 'x': {words}"):
            once(tensor, wanted, model=model)
        assert not hasattr(model, "request")


@each("tensor, wanted, words", [
    (HERE, place(7), "output 'x' has 8 bytes, expected at most the 7 of its shared_memory_byte_"),
    (given(place(4)), None, r"input 'x': expected 8 bytes for FP32 of shape \[2\], got 4"),
    (given(place(8), [3]), None, r"input 'x': expected 12 bytes for FP32 of shape \[3\], got 8"),
    (given(place(8), [1], "BYTES"), None, "input 'x': element 0 reaches beyond the 8 bytes"),
    (given(place(8), [8], "BOOL"), None, "input 'x': element 2 is the byte 128, expected 0 or 1 for BOOL"),
    (given(place(8), [2], "FP31"), None, "input 'x': unknown datatype 'FP31'"),
])  # fmt: skip
def test_bytes_that_do_not_fit_the_tensor_are_refused(tensor: InferInput, wanted: Any, words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        once(tensor, wanted)


@each("tensor, wanted", [(given(place(8)), None), (HERE, place(8))])
async def test_without_the_option_it_is_refused_in_words(tensor: InferInput, wanted: Any) -> None:
    async with loaded(Echo()) as core:
        with pytest.raises(NotSupported, match=r"uses no shared memory of clients, unless .* --allow_client_shm$"):
            await infer(core, tensor, wanted)


async def test_a_region_that_is_unregistered_meanwhile_serves_to_the_end() -> None:
    model = Echo()
    async with sharing(model, X + bytes(8)) as (core, path):
        model.meanwhile = lambda: core.regions.unregister("r")
        await infer(core, given(place(8)), place(8, 8))
        assert model.request.inputs[0].as_numpy().tolist() == [1, 2]
        assert path.read_bytes() == X + X


async def test_an_object_that_shrinks_meanwhile_is_not_written_to() -> None:
    model = Echo()
    async with sharing(model, X + bytes(8)) as (core, path):
        model.meanwhile = lambda: os.truncate(path, 8)
        with pytest.raises(MPServeError, match="its object has shrunk to 8 bytes, expected 16 or more"):
            await infer(core, given(place(8)), place(8, 8))
