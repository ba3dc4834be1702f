"""Remembers which process ran which moment of its life."""

import os
from typing import Any

from mpserve import Model


class Moments(Model):
    name = "m"
    sample = {"instances": []}  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__()
        self.ran = {"constructor": os.getpid()}

    def preload(self) -> None:
        self.ran["preload"] = os.getpid()
        self.weights = object()

    async def load(self) -> None:
        self.ran["load"] = os.getpid()

    async def predict(self, payload: Any, headers: Any = None) -> Any:
        self.ran.setdefault("first predict", os.getpid() if self.ready else -1)
        return {"predictions": [os.getpid(), self.ran, id(self.weights)]}

    async def explain(self, payload: Any, headers: Any = None) -> Any:
        return {"explanations": payload["instances"]}
