"""2 x + 1 of two declared inputs, in torch."""

import torch

from mpserve import Tensor, TorchModel


class Affine(TorchModel):
    name = "affine"
    inputs = (Tensor("x", "FP32", (-1, 2)), Tensor("offset", "INT64", (-1,)))
    outputs = (Tensor("y", "FP32", (-1, 2)), Tensor("total", "FP32", (-1,)))

    def preload(self) -> None:
        self.factor = torch.nn.Parameter(torch.tensor(2.0))

    def load(self) -> None:
        self.factor = self.factor.to(self.device)

    def predict(self, x: torch.Tensor, offset: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = self.factor * x + offset[:, None]
        return y, y.sum(dim=1)
