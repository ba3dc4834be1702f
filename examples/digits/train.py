"""Trains the digits network on scikit-learn's bundled digits and writes what the example serves.

Run it with `python examples/digits/train.py`. It needs torch and scikit-learn, no network access and a few seconds. Beside
this file it writes `weights.pt`, and one image that the training never saw as a V1 and as a V2 request.
"""

import json
from pathlib import Path

import torch
from network import DigitsNetwork
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn

HERE = Path(__file__).parent
SEED = 0
EPOCHS = 40
BATCH = 64
SAMPLE_DIGIT = 7


def train(images: torch.Tensor, labels: torch.Tensor) -> DigitsNetwork:
    """Fit a fresh network to (n, 8, 8) images and their labels."""
    torch.manual_seed(SEED)
    network = DigitsNetwork()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3, weight_decay=1e-4)
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(images)).split(BATCH):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(images[batch]), labels[batch]).backward()
            optimizer.step()
    return network.eval()


def write_requests(image: torch.Tensor) -> None:
    """Write one image as the bodies of a V1 and of a V2 request, a row of pixels per line."""
    rows = ",\n   ".join(json.dumps(row) for row in image.int().tolist())
    (HERE / "request_v1.json").write_text(f'{{"instances": [\n  [{rows}]\n]}}\n')
    tensor = f'"name": "image", "datatype": "FP32", "shape": [1, 8, 8], "data": [\n  [{rows}]\n]'
    (HERE / "request_v2.json").write_text(f'{{"inputs": [{{{tensor}}}]}}\n')


def main() -> None:
    """Train, measure on the held-out fifth, write the files."""
    # One thread and a fixed seed: the same machine writes the same weights again.
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    digits = load_digits()
    split = train_test_split(digits.images, digits.target, test_size=0.2, random_state=SEED, stratify=digits.target)
    images, held_out, labels, truth = (torch.from_numpy(part) for part in split)
    network = train(images.float(), labels)
    with torch.inference_mode():
        guesses = network(held_out.float()).argmax(dim=1)
    print(f"{(guesses == truth).double().mean().item():.1%} of {len(truth)} held-out images are right")
    torch.save(network.state_dict(), HERE / "weights.pt")
    write_requests(held_out[truth == SAMPLE_DIGIT][0])


if __name__ == "__main__":
    main()
