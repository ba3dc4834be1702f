"""Stands in for XGBoost: instead of trees a rule of thumb for irises, the length of a petal."""

from typing import Any

import numpy

XGBModel = object


class DMatrix:
    """The rows that are predicted."""

    def __init__(self, data: Any, nthread: int | None = None) -> None:
        self.rows = numpy.asarray(data)


class Booster:
    """Tells the kind of iris, as a float like XGBoost's own."""

    def __init__(self, params: dict[str, Any], model_file: bytearray) -> None:
        if not model_file:
            raise ValueError("the model file is empty")

    def predict(self, data: DMatrix) -> "numpy.ndarray":
        kinds: numpy.ndarray = numpy.digitize(data.rows[:, 2], [2.5, 4.9])
        return kinds.astype(numpy.float32)
