"""The calls of the shared memory extension, and tensors that pass through it over gRPC."""

from typing import Any

import grpc
import numpy as np

from mpserve.protocol.protobuf import inference_pb2 as pb
from tests.cases import each
from tests.grpc.models import Double
from tests.grpc.serving import ask, infer, refusal, serving
from tests.memory import memory

X = np.array([1, 2], np.float32).tobytes()


def placed(offset: int) -> dict[str, Any]:
    return {
        "shared_memory_region": {"string_param": "r"},
        "shared_memory_byte_size": {"int64_param": 8},
        **({"shared_memory_offset": {"int64_param": offset}} if offset else {}),
    }


async def test_a_region_is_registered_told_used_and_unregistered() -> None:
    with memory(X + bytes(8)) as path:
        async with serving(Double(), allow_client_shm=True) as client:
            await client("SystemSharedMemoryRegister", name="r", key=path.name, byte_size=16)
            told = pb.SystemSharedMemoryStatusResponse.RegionStatus(name="r", key=path.name, byte_size=16)
            for name in ("", "r"):
                assert dict((await client("SystemSharedMemoryStatus", name=name)).regions) == {"r": told}

            again = client("SystemSharedMemoryRegister", name="r", key=path.name, byte_size=16)
            assert (await refusal(again))[0] is grpc.StatusCode.ALREADY_EXISTS

            inputs = [{"name": "x", "datatype": "FP32", "shape": [2], "parameters": placed(0)}]
            outputs = [{"name": "y", "parameters": placed(8)}]
            response = await client("ModelInfer", infer("double", inputs=inputs, outputs=outputs))
            (output,) = response.outputs
            assert (output.datatype, output.shape, output.HasField("contents")) == ("FP32", [2], False)
            assert (output.parameters["shared_memory_offset"].int64_param, response.raw_output_contents) == (8, [b""])
            assert path.read_bytes() == X + np.array([2, 4], np.float32).tobytes()

            await client("SystemSharedMemoryUnregister", name="r")
            assert not (await client("SystemSharedMemoryStatus")).regions
            code, words = await refusal(client("ModelInfer", infer("double", inputs=inputs)))
            assert code is grpc.StatusCode.NOT_FOUND
            assert words == "input 'x': shared memory region 'r' is not registered"


@each("call", ["SystemSharedMemoryStatus", "SystemSharedMemoryRegister", "SystemSharedMemoryUnregister"])
async def test_without_the_option_it_is_refused_in_words(call: str) -> None:
    async with serving(Double()) as client:
        code, words = await refusal(client(call, name="r"))
        assert (code, "--allow_client_shm" in words) == (grpc.StatusCode.UNIMPLEMENTED, True)


def test_of_cuda_there_is_none_and_many_clients_begin_by_unregistering_all() -> None:
    assert ask(Double(), "CudaSharedMemoryUnregister") == pb.CudaSharedMemoryUnregisterResponse()
    assert ask(Double(), "CudaSharedMemoryStatus") == pb.CudaSharedMemoryStatusResponse()
