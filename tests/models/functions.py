"""The shortest model: a pair of functions. `load` takes nothing, so it runs once, in the master."""

import os
from typing import Any

import numpy as np


def load() -> int:
    return os.getpid()


def predict(master: int, rows: Any) -> Any:
    assert master == os.getppid()
    return np.full(len(rows), os.getpid())
