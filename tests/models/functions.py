"""The shortest model: a pair of functions. `load` takes nothing, so it runs once, in the arbiter."""

import os
from typing import Any

import numpy as np


def load() -> int:
    return os.getpid()


def predict(arbiter: int, rows: Any) -> Any:
    assert arbiter == os.getppid()
    return np.full(len(rows), os.getpid())
