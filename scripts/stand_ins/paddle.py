"""Stands in for PaddlePaddle: a network whose scores of two classes are the mean of the input, and minus that."""

from pathlib import Path
from types import SimpleNamespace

import numpy


class Config:
    """Which files the network is in."""

    def __init__(self, network: str, parameters: str) -> None:
        self.files = [Path(network), Path(parameters)]

    def disable_gpu(self) -> None:
        pass


class Handle:
    """A tensor of the predictor."""

    def copy_from_cpu(self, values: "numpy.ndarray") -> None:
        self.values = values

    def copy_to_cpu(self) -> "numpy.ndarray":
        return self.values


class Predictor:
    """One input, one output."""

    def __init__(self, config: Config) -> None:
        self.tensors = {"input": Handle(), "output": Handle()}

    def get_input_names(self) -> list[str]:
        return ["input"]

    def get_output_names(self) -> list[str]:
        return ["output"]

    def get_input_handle(self, name: str) -> Handle:
        return self.tensors[name]

    get_output_handle = get_input_handle

    def run(self) -> None:
        means = self.tensors["input"].values.mean(axis=(1, 2, 3))
        self.tensors["output"].copy_from_cpu(numpy.stack([means, -means], axis=1))


inference = SimpleNamespace(Config=Config, create_predictor=Predictor)
