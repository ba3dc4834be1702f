"""The calls of the model repository extension, as tritonclient and as kserve's client send them."""

from typing import Any

import grpc

from mpserve.protocol.protobuf import inference_pb2 as pb
from tests.cases import each
from tests.grpc.models import Double
from tests.grpc.serving import ask, refusal, serving

READY = pb.RepositoryIndexResponse.ModelIndex(name="double", version="1", state="READY")


@each("field", ["model_name", "repository_name"])
async def test_a_model_is_unloaded_and_loaded_by_the_field_that_either_client_sends(field: str) -> None:
    async with serving(Double()) as client:
        assert list((await client("RepositoryIndex", ready=True)).models) == [READY]
        named = {field: "double"}
        unloaded = await client("RepositoryModelUnload", **named)
        assert unloaded == pb.RepositoryModelUnloadResponse(model_name="double", isUnloaded=True)
        assert not (await client("RepositoryIndex", ready=True)).models
        [entry] = (await client("RepositoryIndex")).models
        assert (entry.name, entry.state, entry.reason) == ("double", "UNAVAILABLE", "it is not loaded")
        assert not (await client("ModelReady", name="double")).ready
        loaded = await client("RepositoryModelLoad", **named)
        assert loaded == pb.RepositoryModelLoadResponse(model_name="double", isLoaded=True)
        assert (await client("ModelReady", name="double")).ready


def test_unload_dependents_is_accepted() -> None:
    parameters = {"unload_dependents": {"bool_param": True}}
    assert ask(Double(), "RepositoryModelUnload", model_name="double", parameters=parameters).isUnloaded


@each("fields, code, words", [
    ({"model_name": "nope"}, grpc.StatusCode.NOT_FOUND, "Model with name nope does not exist. There are: double."),
    ({}, grpc.StatusCode.INVALID_ARGUMENT, "expected the name of a model as model_name, got none"),
    (
        {"model_name": "double", "parameters": {"config": {"string_param": "{}"}}},
        grpc.StatusCode.UNIMPLEMENTED,
        "the parameter 'config' is not supported",
    ),
])  # fmt: skip
async def test_what_cannot_be_loaded_is_refused_in_words(fields: Any, code: grpc.StatusCode, words: str) -> None:
    async with serving(Double()) as client:
        got, told = await refusal(client("RepositoryModelLoad", **fields))
        assert got is code
        assert told.startswith(words)


async def test_a_failing_load_is_internal_and_says_why() -> None:
    class Once(Double):
        def load(self) -> None:
            if self.loaded:
                raise ValueError("no weights")

    async with serving(Once()) as client:
        code, told = await refusal(client("RepositoryModelLoad", model_name="double"))
        assert code is grpc.StatusCode.INTERNAL
        assert "in slot 0: load() of model double failed: ValueError: no weights" in told
