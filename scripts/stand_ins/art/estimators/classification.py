"""Stands in for the adversarial robustness toolbox's classifier around a function."""

from collections.abc import Callable
from typing import Any

import numpy


class BlackBoxClassifierNeuralNetwork:
    """Asks the function."""

    def __init__(self, predict: Callable[[Any], Any], shape: tuple[int, ...], classes: int, **options: Any) -> None:
        self._predict = predict

    def predict(self, x: "numpy.ndarray", batch_size: int = 1) -> "numpy.ndarray":
        return numpy.array([self._predict(x)])
