"""The models that the error table is asked of: one that answers, and others that fail in their own ways."""

from typing import Any

from mpserve import InferenceError, InferOutput, InferRequest, InferResponse, InvalidInput, Model


class Echo(Model):
    name = "echo"

    def predict(self, payload: Any, headers: Any = None) -> Any:
        if not isinstance(payload, InferRequest):
            return {"predictions": payload["instances"]}
        outputs = [InferOutput(i.name, i.shape, i.datatype, i.as_numpy()) for i in payload.inputs]
        return InferResponse(payload.id, self.name, outputs)


class Raising(Model):
    """Raises what it is told to, by the first instance or the first element of the first input."""

    name = "raising"

    def predict(self, payload: Any, headers: Any = None) -> Any:
        told = payload.inputs[0].as_string() if isinstance(payload, InferRequest) else payload["instances"]
        raise {
            "error": RuntimeError("boom"),
            "inference": InferenceError("bad infer"),
            "invalid": InvalidInput("expected a cat, got a dog"),
            "exit": SystemExit(3),
            "stop": StopIteration("at once"),
        }[told[0]]


class AsyncRaising(Raising):
    name = "async_raising"

    async def predict(self, payload: Any, headers: Any = None) -> Any:
        return super().predict(payload, headers)


class Bare(Model):
    name = "bare"


class Resting(Model):
    """Takes itself out of service when it is first asked."""

    name = "resting"

    def predict(self, payload: Any, headers: Any = None) -> Any:
        self.ready = False
        return {"predictions": []}


class Streaming(Model):
    name = "streaming"

    def predict(self, payload: Any, headers: Any = None) -> Any:
        yield from payload["instances"]


class AsyncStreaming(Model):
    name = "async_streaming"

    async def predict(self, payload: Any, headers: Any = None) -> Any:
        for instance in payload["instances"]:
            yield instance


class Unwritable(Model):
    name = "unwritable"

    def predict(self, payload: Any, headers: Any = None) -> Any:
        return {"predictions": float("nan")}


models = [each() for each in (Echo, Raising, AsyncRaising, Bare, Resting, Streaming, AsyncStreaming, Unwritable)]
