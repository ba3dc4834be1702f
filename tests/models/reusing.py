"""Models that write all their answers into one array, and answer each row with twice its numbers and one more."""

import asyncio

import numpy as np

from mpserve import Model, Tensor, TensorModel
from mpserve.errors import ModelNotReady


class Reusing(TensorModel):
    name = "plain"
    inputs = (Tensor("x", "FP64", (-1, -1)),)
    outputs = (Tensor("y", "FP64", (-1, -1)),)

    def load(self):
        self.memory = np.zeros(100_000)
        self.ready = True
        return True

    def predict(self, x):
        if (x < 0).any():
            raise ValueError(f"because of {x.min():.0f}")
        return self.answer(x, 1)

    def answer(self, x, more):
        y = self.memory[: x.size].reshape(x.shape)
        np.multiply(x, 2, out=y)
        np.add(y, more, out=y)
        return y


class Between(Reusing):
    name = "between"

    async def preprocess(self, payload, headers=None):
        return payload

    async def postprocess(self, result, headers=None):
        for _ in range(3):
            await asyncio.sleep(0)
        return result


class Batched(Reusing):
    name = "batched"
    max_batch_size = 500


class Awaits(Reusing):
    name = "awaits"

    async def predict(self, x):
        await asyncio.sleep(0)
        return x * 2 + 1


class Parts(Reusing):
    name = "parts"

    def predict(self, x):
        for more in range(1, 4):
            yield self.answer(x, more)


class Resting(Model):
    name = "resting"

    def predict(self, payload, headers=None):
        raise ModelNotReady("resting")


class Other(Reusing):
    name = "other"


models = [Reusing, Between, Batched, Awaits, Parts, Resting, Other]
