"""Tells which digit an image shows. The image is the file itself: PNG, JPEG, or what else Pillow reads."""

from io import BytesIO
from pathlib import Path
from typing import Any

import joblib
import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from mpserve import InvalidInput, Tensor, TensorModel


class Upload(TensorModel):
    """A classifier of 8x8 images, behind a decoder of files."""

    name = "digit"
    inputs = (Tensor("image", "BYTES", (-1,)),)
    outputs = (Tensor("digit", "INT64", (-1,)),)

    def preload(self) -> None:
        """Read the classifier once, in the arbiter: every worker then shares its memory."""
        self.classifier = joblib.load(Path(__file__).with_name("digits.joblib"))

    def predict(self, image: NDArray[Any]) -> Any:
        """Answer with the digit in each file. Raises InvalidInput if a file is no image."""
        return self.classifier.predict(np.stack([pixels(file) for file in image]))


def pixels(file: bytes) -> NDArray[Any]:
    """The image in a file as 64 numbers from 0 to 1."""
    try:
        image = Image.open(BytesIO(file))
        return np.asarray(image.convert("L").resize((8, 8))).reshape(64) / 255
    except (UnidentifiedImageError, OSError) as error:
        raise InvalidInput(f"expected an image that Pillow reads: {error}") from None
