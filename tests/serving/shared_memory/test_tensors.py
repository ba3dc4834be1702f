"""Tensors in shared memory, as the asker takes and gives them, whichever front end they came by."""

import asyncio
import os
from collections.abc import Callable
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
from tests.asking import Asker
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
    request = InferRequest("echo", [tensor], request_outputs=outputs)
    answer, _ = await Asker(core).run("predict", "echo", None, request, {})
    output: InferOutput = answer.outputs[0]
    return output


def once(
    tensor: InferInput, wanted: Any = None, *, content: bytes = X, model: Echo | None = None, allow: bool = True
) -> tuple[InferOutput, bytes]:
    """The output of one request, and the object behind the region ``r`` after it."""

    async def main() -> tuple[InferOutput, bytes]:
        with memory(content) as path:
            async with loaded(model or Echo(), allow_client_shm=allow) as core:
                if allow:
                    core.regions.register("r", path.name, 0, len(content))
                return await infer(core, tensor, wanted), path.read_bytes()

    return asyncio.run(main())


@each("datatype", DATATYPES)
def test_an_input_is_read_where_it_lies(datatype: str) -> None:
    values = [b"a", b"", b"\xff\0"] if datatype == "BYTES" else [0, 1, 1]
    data = bytes(encode_tensor(np.array(values, dtype=numpy_dtype(datatype)), datatype))
    output, _ = once(given(place(len(data), 3), (3, 1), datatype), content=b"abc" + data)
    assert output.as_numpy().ravel().tolist() == values


def test_the_model_gets_an_ordinary_input_that_it_cannot_write_to() -> None:
    model = Echo()
    once(given(place(8, binary=True)), model=model)
    (seen,) = model.request.inputs
    assert seen == InferInput("x", [2], "FP32", [1, 2], {"binary": True})
    assert not seen.as_numpy().flags.writeable


def test_an_input_is_not_copied() -> None:
    async def main() -> list[float]:
        with memory(X) as path:
            async with loaded(Echo(), allow_client_shm=True) as core:
                core.regions.register("r", path.name, 0, 8)
                output = await infer(core, given(place(8)))
                path.write_bytes(np.array([5, 6], np.float32).tobytes())
                return list(output.as_numpy().tolist())

    assert asyncio.run(main()) == [5, 6]


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


def test_where_an_output_goes_is_not_told_to_the_model() -> None:
    model = Echo()
    once(HERE, place(8, binary_data=False), model=model)
    assert model.request.request_outputs == [RequestedOutput("x", {"binary_data": False})]


REFUSED = [
    ({"shared_memory_region": "r"}, "shared_memory_byte_size is null, expected a number of bytes"),
    ({"shared_memory_region": 1, "shared_memory_byte_size": 8}, "shared_memory_region is 1, expected a string"),
    (place(-8), "shared_memory_byte_size is -8, expected a number of bytes"),
    (place(8, -1), "shared_memory_offset is -1, expected a number of bytes"),
    (place(True), "shared_memory_byte_size is true, expected a number of bytes"),
    (place(8, 1.5), "shared_memory_offset is 1.5, expected a number of bytes"),  # type: ignore[arg-type]
    (place(8, 1), "shared memory region 'r' has 8 bytes, expected 9 or more for 8 bytes from offset 1 on"),
    (place(8, 2**63), "shared memory region 'r' has 8 bytes, expected 9223372036854775816 or more"),
]


@each("parameters, words", REFUSED)
def test_a_place_that_is_none_is_refused_before_the_model_is_asked(parameters: Any, words: str) -> None:
    for tensor, wanted, what in ((given(parameters), None, "input"), (HERE, parameters, "output")):
        model = Echo()
        with pytest.raises(InvalidInput, match=f"^{what} 'x': {words}"):
            once(tensor, wanted, model=model)
        assert not hasattr(model, "request")


def test_a_region_that_is_not_registered_is_not_found() -> None:
    with pytest.raises(RegionNotFound, match=r"^input 'x': shared memory region 's' is not registered"):
        once(given(place(8, region="s")))
    with pytest.raises(RegionNotFound, match=r"^output 'x': shared memory region 's' is not registered"):
        once(HERE, place(8, region="s"))


@each("tensor, words", [
    (given(place(4)), r"input 'x': expected 8 bytes for FP32 of shape \[2\], got 4"),
    (given(place(8), [3]), r"input 'x': expected 12 bytes for FP32 of shape \[3\], got 8"),
    (given(place(8), [1], "BYTES"), "input 'x': element 0 reaches beyond the 8 bytes"),
    (given(place(8), [8], "BOOL"), "input 'x': element 2 is the byte 128, expected 0 or 1 for BOOL"),
    (given(place(8), [2], "FP31"), "input 'x': unknown datatype 'FP31'"),
])  # fmt: skip
def test_bytes_that_are_not_the_tensor_are_refused(tensor: InferInput, words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        once(tensor)


def test_an_output_that_does_not_fit_is_refused_with_both_sizes() -> None:
    with pytest.raises(InvalidInput, match="output 'x' has 8 bytes, expected at most the 7 of its shared_memory_byte_"):
        once(HERE, place(7))


@each("tensor, wanted", [(given(place(8)), None), (HERE, place(8))])
def test_without_the_option_it_is_refused_in_words(tensor: InferInput, wanted: Any) -> None:
    with pytest.raises(NotSupported, match=r"uses no shared memory of clients, unless .* --allow_client_shm$"):
        once(tensor, wanted, allow=False)


def during(what: Callable[[ServerCore, Any], object]) -> tuple[list[float], bytes]:
    """What a request gives of which input and output are in the region, while ``what`` happens to it."""

    async def main() -> tuple[list[float], bytes]:
        model = Echo()
        with memory(X + bytes(8)) as path:
            async with loaded(model, allow_client_shm=True) as core:
                core.regions.register("r", path.name, 0, 16)
                model.meanwhile = lambda: what(core, path)
                await infer(core, given(place(8)), place(8, 8))
                return model.request.inputs[0].as_numpy().tolist(), path.read_bytes()

    return asyncio.run(main())


def test_a_region_that_is_unregistered_meanwhile_serves_to_the_end() -> None:
    assert during(lambda core, path: core.regions.unregister("r")) == ([1, 2], X + X)


def test_an_object_that_shrinks_meanwhile_is_not_written_to() -> None:
    with pytest.raises(MPServeError, match="its object has shrunk to 8 bytes, expected 16 or more"):
        during(lambda core, path: os.truncate(path, 8))
