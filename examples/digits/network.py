"""The digits network: from an 8x8 image to ten scores. Shared by training and serving; knows neither."""

from torch import Tensor, nn

PIXEL_MAXIMUM = 16.0


class DigitsNetwork(nn.Module):
    """Two convolutions and one linear layer, 9,930 parameters: small enough for its weights to live in a repository."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 16, kernel_size=3, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 32, kernel_size=3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(32 * 4 * 4, 10),
        )

    def forward(self, image: Tensor) -> Tensor:
        """Score each digit. `image` is (n, 8, 8) with pixels from 0 to 16; the result is (n, 10), not normalised."""
        scores: Tensor = self.layers(image.unsqueeze(1) / PIXEL_MAXIMUM)
        return scores
