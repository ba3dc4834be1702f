"""What users write, with all its types: a type checker finds nothing here (tests/test_typing.py)."""

from collections.abc import AsyncIterator, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpserve import InferOutput, InferRequest, InferResponse, Model, ModelServer, Tensor, TensorModel, asgi_app
from mpserve.testing import Client, Refused

Floats = NDArray[np.float32]


class Twice(TensorModel):
    name = "twice"
    inputs = [Tensor("x", "FP32", [-1, 2])]  # noqa: RUF012
    outputs = [Tensor("y", "FP32", [-1, 2])]  # noqa: RUF012
    max_batch_size = 8

    def preload(self) -> None:
        self.factor = 2

    def load(self) -> None:
        self.threads = self.native_threads

    def predict(self, x: Floats) -> Floats:
        return x * self.factor


class Several(TensorModel):
    name = "several"
    inputs = (Tensor("x", "FP32", (-1,)), Tensor("weight", "FP32", (-1,)))
    sample = {"x": np.ones(1), "weight": np.ones(1)}  # noqa: RUF012

    def predict(self, x: Floats, weight: Floats) -> dict[str, Floats]:
        return {"sum": x + weight, "product": x * weight}


class Heavier(Several):
    def predict(self, x: Floats, weight: Floats) -> dict[str, Floats]:
        return super().predict(x, weight * 2)


class Awaited(TensorModel):
    async def predict(self, x: Floats) -> tuple[Floats, Floats]:
        return x, x


class InParts(TensorModel):
    def predict(self, x: Floats) -> Iterator[Floats]:
        yield from np.split(x, len(x))


class OfDocuments(Model):
    name = "documents"

    def load(self) -> bool:
        self.ready = True
        return self.ready

    def preprocess(self, payload: dict[str, Any], headers: dict[str, str] | None = None) -> list[float]:
        instances: list[float] = payload["instances"]
        return instances

    def predict(self, payload: list[float], headers: dict[str, str] | None = None) -> dict[str, Any]:
        return {"predictions": [2 * number for number in payload]}


class OfMessages(Model):
    async def load(self) -> None: ...

    async def predict(self, payload: InferRequest, headers: dict[str, str] | None = None) -> InferResponse:
        array = payload.inputs[0].as_numpy()
        output = InferOutput("y", list(array.shape), "FP32")
        output.set_data_from_numpy(array)
        return InferResponse(payload.id, self.name, [output])


class Transformer(Model):
    async def predict(
        self,
        payload: dict[str, Any],
        headers: dict[str, str] | None = None,
        response_headers: dict[str, str] | None = None,
    ) -> Any:
        return await super().predict(payload, headers, response_headers)


class Speaking(Model):
    async def predict(self, payload: dict[str, Any], headers: dict[str, str] | None = None) -> AsyncIterator[str]:
        yield "word"


def test_twice() -> None:
    with Client([Twice, OfDocuments("other")], max_batch_delay=0.01) as client:
        assert client.predict("twice", [[1, 2]]) == [[2.0, 4.0]]
        [output] = client.infer("twice", [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}])
        assert output["data"] == [2.0, 4.0]
        assert client.request("GET", "/v2/models/twice/ready").status == 200
        try:
            client.predict("twice", [[1]])
        except Refused as refused:
            print(refused.status, refused.reason)


def application() -> object:
    return asgi_app([Twice], max_batch_size=8)


if __name__ == "__main__":
    ModelServer(workers=2, http_port=8080).start(
        [Twice(), Several("two"), Awaited, InParts, OfMessages, Transformer, Speaking]
    )
