"""The calls of the extensions, as tritonclient and kserve's client send them. What they do is shown in tests/serving."""

import logging
from collections.abc import Iterator
from typing import Any, cast

import grpc
import numpy as np
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest
from grpc_health.v1.health_pb2_grpc import HealthStub

from mpserve.grpc.calls import address_of
from mpserve.grpc.servicer import SERVICE
from mpserve.protocol.protobuf import inference_pb2 as pb
from mpserve.serving.shared_memory.regions import CUDA_REFUSED
from tests.cases import each
from tests.grpc.models import Double, Raising
from tests.grpc.serving import ask, infer, refusal, refused, run, serving
from tests.memory import memory

INVALID, MISSING = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND
UNIMPLEMENTED = grpc.StatusCode.UNIMPLEMENTED
LOAD = "RepositoryModelLoad"


@each("method, fields, code, words", [
    (LOAD, {"model_name": "nope"}, MISSING, "Model with name nope does not exist. There are: double."),
    (LOAD, {}, INVALID, "expected the name of a model as model_name, got none"),
    (LOAD, {"model_name": "double", "parameters": {"config": {"string_param": "{}"}}}, UNIMPLEMENTED,
     "the parameter 'config' is not supported"),
    ("TraceSetting", {"model_name": "nope"}, MISSING, "Model with name nope does not exist. There are: double."),
    ("TraceSetting", {"settings": {"trace_level": {"value": ["TIMESTAMPS"]}}}, UNIMPLEMENTED, "not traced"),
    ("TraceSetting", {"settings": {"level": {}}}, INVALID, "unknown trace setting 'level'"),
    ("LogSettings", {"settings": {"log_file": {"string_param": "x"}}}, UNIMPLEMENTED, "'log_file'"),
    ("LogSettings", {"settings": {"log_info": {"string_param": "x"}}}, INVALID, "'log_info'"),
    *((f"SystemSharedMemory{call}", {"name": "r"}, UNIMPLEMENTED, "--allow_client_shm")
      for call in ("Status", "Register", "Unregister")),
    ("CudaSharedMemoryRegister", {}, UNIMPLEMENTED, CUDA_REFUSED),
])  # fmt: skip
def test_what_cannot_be_is_refused_in_words(method: str, fields: Any, code: grpc.StatusCode, words: str) -> None:
    got, told = refused(Double(), method, **fields)
    assert (got, words in told) == (code, True), told


@each("field", ["model_name", "repository_name"])
async def test_a_model_is_unloaded_and_loaded_by_the_field_that_either_client_sends(field: str) -> None:
    ready = pb.RepositoryIndexResponse.ModelIndex(name="double", version="1", state="READY")
    named = {field: "double"}
    async with serving(Double()) as client:
        assert list((await client("RepositoryIndex", ready=True)).models) == [ready]
        parameters = {"unload_dependents": {"bool_param": True}}
        unloaded = await client("RepositoryModelUnload", **named, parameters=parameters)
        assert unloaded == pb.RepositoryModelUnloadResponse(model_name="double", isUnloaded=True)
        assert not (await client("RepositoryIndex", ready=True)).models
        [entry] = (await client("RepositoryIndex")).models
        assert (entry.name, entry.state, entry.reason) == ("double", "UNAVAILABLE", "it is not loaded")
        loaded = await client(LOAD, **named)
        assert loaded == pb.RepositoryModelLoadResponse(model_name="double", isLoaded=True)
        assert (await client("ModelReady", name="double")).ready


def test_the_configuration_of_a_model() -> None:
    config = ask(Double(), "ModelConfig", name="double", version="1").config
    assert (config.name, config.platform, config.backend, config.max_batch_size) == ("double", "numpy", "python", 0)
    assert list(config.input) == [pb.ModelInput(name="x", data_type="TYPE_FP32", dims=[-1])]
    assert list(config.output) == [pb.ModelOutput(name="y", data_type="TYPE_FP32", dims=[-1])]


@each("settings", [{}, {"trace_level": {"value": ["OFF"]}}, {"trace_level": {}}])
def test_trace_settings_are_tritons_defaults(settings: Any) -> None:
    told = ask(Double(), "TraceSetting", settings=settings, model_name="double").settings
    assert {name: list(setting.value) for name, setting in told.items()} == {
        "trace_file": [""], "trace_level": ["OFF"], "trace_rate": ["1000"], "trace_count": ["-1"],
        "log_frequency": ["0"], "trace_mode": ["triton"],
    }  # fmt: skip


@pytest.fixture
def level_as_before() -> Iterator[None]:
    before = logging.getLogger().level
    yield
    logging.getLogger().setLevel(before)


async def test_log_settings_are_told_and_changed(level_as_before: None) -> None:
    async with serving(Double()) as client:
        change = {"log_verbose_level": {"uint32_param": 1}, "log_info": {"bool_param": True}, "log_file": {}}
        changed = (await client("LogSettings", settings=change)).settings
        assert logging.getLogger().level == logging.DEBUG
        told = (await client("LogSettings")).settings
        assert told == changed
        assert (told["log_info"].bool_param, told["log_verbose_level"].uint32_param) == (True, 1)
        assert (told["log_file"].string_param, told["log_format"].string_param) == ("", "default")


async def test_a_call_is_in_the_statistics_that_are_asked_after_it() -> None:
    async with serving(Double(), Raising()) as client:
        await client("ModelInfer", infer("double"))
        [stats] = (await client("ModelStatistics", name="double", version="1")).model_stats
        assert (stats.name, stats.version, stats.inference_count, stats.execution_count) == ("double", "1", 2, 1)
        assert stats.inference_stats.success.ns > stats.inference_stats.compute_infer.ns > 0
        everything = await client("ModelStatistics")
        assert [each.name for each in everything.model_stats] == ["double", "raising"]


def placed(offset: int) -> dict[str, Any]:
    fields = {"shared_memory_byte_size": {"int64_param": 8}, "shared_memory_offset": {"int64_param": offset}}
    return {"shared_memory_region": {"string_param": "r"}, **fields}


async def test_a_region_is_registered_told_used_and_unregistered() -> None:
    x = np.array([1, 2], np.float32)
    with memory(x.tobytes() + bytes(8)) as path:
        async with serving(Double(), allow_client_shm=True) as client:
            region = {"name": "r", "key": path.name, "byte_size": 16}
            await client("SystemSharedMemoryRegister", **region)
            told = pb.SystemSharedMemoryStatusResponse.RegionStatus(**region)
            for name in ("", "r"):
                assert dict((await client("SystemSharedMemoryStatus", name=name)).regions) == {"r": told}
            again = client("SystemSharedMemoryRegister", **region)
            assert (await refusal(again))[0] is grpc.StatusCode.ALREADY_EXISTS

            inputs = [{"name": "x", "datatype": "FP32", "shape": [2], "parameters": placed(0)}]
            outputs = [{"name": "y", "parameters": placed(8)}]
            response = await client("ModelInfer", infer("double", inputs=inputs, outputs=outputs))
            (output,) = response.outputs
            assert (output.datatype, output.shape, output.HasField("contents")) == ("FP32", [2], False)
            assert (output.parameters["shared_memory_offset"].int64_param, response.raw_output_contents) == (8, [b""])
            assert path.read_bytes() == x.tobytes() + (2 * x).tobytes()

            await client("SystemSharedMemoryUnregister", name="r")
            assert not (await client("SystemSharedMemoryStatus")).regions
            call = client("ModelInfer", infer("double", inputs=inputs))
            assert await refusal(call) == (MISSING, "input 'x': shared memory region 'r' is not registered")


def test_of_cuda_there_is_none_and_many_clients_begin_by_unregistering_all() -> None:
    assert ask(Double(), "CudaSharedMemoryUnregister") == pb.CudaSharedMemoryUnregisterResponse()
    assert ask(Double(), "CudaSharedMemoryStatus") == pb.CudaSharedMemoryStatusResponse()


def denied(metadata: Any, **options: Any) -> set[str]:
    """The methods, inference apart, that deny access to a client with this metadata."""

    async def main() -> set[str]:
        async with serving(Double(), allow_client_shm=True, **options) as client:
            methods = set(SERVICE.methods_by_name) - {"ModelInfer", "ModelStreamInfer"}
            codes = {method: await client(method, metadata=metadata).code() for method in methods}
        return {method for method, code in codes.items() if code is grpc.StatusCode.PERMISSION_DENIED}

    return cast(set[str], run(main()))


def test_management_answers_to_the_same_host_only() -> None:
    shared_memory = {method for method in SERVICE.methods_by_name if "SharedMemory" in method}
    managing = {LOAD, "RepositoryModelUnload", "LogSettings", "TraceSetting", *shared_memory}
    assert denied((), management="off") == managing
    assert denied((("x-forwarded-for", "127.0.0.1"),)) == managing
    assert denied((("x-forwarded-for", "10.1.2.4"),), management="anywhere") == set()
    assert denied(()) == set()


@each("peer, address", [
    ("ipv4:10.1.2.4:50000", "10.1.2.4"), ("ipv6:%5B::1%5D:50000", "::1"), ("ipv6:[::ffff:10.1.2.4]:1", "::ffff:10.1.2.4"),
    ("unix:", None), ("unix:/run/s", None), ("unknown", None),
])  # fmt: skip
def test_the_address_of_a_client(peer: str, address: str | None) -> None:
    assert address_of(peer) == address


async def test_an_error_repeats_at_most_100_characters_of_a_name() -> None:
    long = "n" * 5000
    names = ("name", "model_name", "model_version", "version", "key", "id")
    async with serving(Double(), allow_client_shm=True) as client:
        for method, described in SERVICE.methods_by_name.items():
            fields = {name: long for name in names if name in described.input_type.fields_by_name}
            if method != "ModelStreamInfer":
                told = await client(method, **fields).details()
                assert "n" * 101 not in told, (method, told)
        told = await HealthStub(client.channel).Check(HealthCheckRequest(service=long)).details()
        assert told.count("n") > 90
        assert "n" * 101 not in told
