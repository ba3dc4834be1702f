"""Stands in for LightGBM: instead of trees a rule of thumb for irises, the length of a petal."""

from pathlib import Path
from typing import Any

import numpy


class Booster:
    """Tells how probable each kind of iris is, of arrays and of DataFrames."""

    def __init__(self, params: dict[str, Any], model_file: str) -> None:
        if not Path(model_file).stat().st_size:
            raise ValueError("the model file is empty")

    def feature_name(self) -> list[str]:
        return ["sepal_length_(cm)", "sepal_width_(cm)", "petal_length_(cm)", "petal_width_(cm)"]

    def predict(self, data: Any) -> "numpy.ndarray":
        probabilities: numpy.ndarray = numpy.eye(3)[numpy.digitize(numpy.asarray(data)[:, 2], [2.5, 4.9])]
        return probabilities
