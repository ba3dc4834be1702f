"""A digit classifier behind mpserve: `mpserve serve examples/digits/model.py:Digits --workers 2`."""

from pathlib import Path

import torch
from network import DigitsNetwork

from mpserve import Tensor, TorchModel

WEIGHTS = Path(__file__).with_name("weights.pt")


class Digits(TorchModel):
    """Tells which digit an 8x8 image shows, and how sure it is."""

    name = "digits"
    inputs = (Tensor("image", "FP32", (-1, 8, 8)),)
    outputs = (Tensor("digit", "INT64", (-1,)), Tensor("probability", "FP32", (-1,)))

    def preload(self) -> None:
        """Read the weights once, in the arbiter: every worker then shares these pages."""
        self.network = DigitsNetwork()
        self.network.load_state_dict(torch.load(WEIGHTS, map_location="cpu", weights_only=True))

    def load(self) -> None:
        """Move the network to this worker's device."""
        self.network.to(self.device).eval()

    def predict(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Answer with the most probable digit of each image and its probability."""
        best = self.network(image).softmax(dim=1).max(dim=1)
        return best.indices, best.values
