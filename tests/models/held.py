"""Holds what cannot be pickled. Nothing needs to be: workers are forked, and each builds or inherits its own."""

import os
import threading
from pathlib import Path
from typing import Any

from mpserve import Model


class Held(Model):
    def __init__(self) -> None:
        super().__init__("m")
        self.lock = threading.Lock()
        self.double = lambda x: 2 * x
        self.file = Path(__file__).open()  # noqa: SIM115
        self.generator = (number for number in range(1000))

    def predict(self, payload: Any, headers: Any = None) -> Any:
        with self.lock:
            return {"predictions": [os.getpid(), self.double(21), next(self.generator), self.file.readable()]}
