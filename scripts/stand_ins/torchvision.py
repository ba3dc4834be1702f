"""Stands in for torchvision, whose weights would be downloaded: a network of one layer, with weights by chance."""

from collections.abc import Callable, Sequence
from functools import reduce
from types import SimpleNamespace
from typing import Any

import numpy
import torch


def alexnet(pretrained: bool = False, progress: bool = True) -> torch.nn.Module:
    """A thousand classes' scores of a picture; the same in every process."""
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(8), torch.nn.Flatten(), torch.nn.Linear(3 * 8 * 8, 1000))


def compose(steps: Sequence[Callable[[Any], Any]]) -> Callable[[Any], Any]:
    return lambda image: reduce(lambda value, step: step(value), steps, image)


def resize(size: int) -> Callable[[Any], Any]:
    return lambda image: image.resize((size, size))


def to_tensor() -> Callable[[Any], torch.Tensor]:
    return lambda image: torch.tensor(numpy.asarray(image)).permute(2, 0, 1) / 255


def normalize(mean: Sequence[float], std: Sequence[float]) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda tensor: (tensor - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]


models = SimpleNamespace(alexnet=alexnet)
transforms = SimpleNamespace(Compose=compose, Resize=resize, CenterCrop=resize, ToTensor=to_tensor, Normalize=normalize)
