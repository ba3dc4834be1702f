"""Classes of images. An image is the bytes of a file that pillow reads, or its base64 as text."""

import base64
import binascii
import io
import warnings
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError
from transformers import AutoModelForImageClassification

from mpserve.errors import InvalidInput
from mpserve.protocol.declaration import Tensor
from mpserve.runtimes.huggingface.encoders import Classes
from mpserve.runtimes.huggingface.folder import read_image_processor
from mpserve.runtimes.huggingface.network import NetworkModel, Passed


class ImageClassification(NetworkModel):
    """The class of an image."""

    auto = AutoModelForImageClassification
    inputs = (Tensor("image", "BYTES", (-1,)),)

    def preload(self) -> None:
        super().preload()
        self.processor = read_image_processor(self.path)
        Classes(self.network.config).serve(self)

    def warmup(self) -> None:
        file = io.BytesIO()
        Image.new("RGB", (32, 32)).save(file, "PNG")
        self.invoke_for([np.array([file.getvalue()], dtype=object)], tuple(self.methods))

    def passed(self, rows: list[Any]) -> Passed:
        encoding = self.processor([read_image(number, row) for number, row in enumerate(rows)], return_tensors="pt")
        return Passed(encoding, self.network(pixel_values=encoding["pixel_values"].to(self.device)))


def read_image(number: int, data: bytes) -> Any:
    """The image in these bytes. Raises InvalidInput if they are no image, or too large a one."""
    try:
        return _opened(data)
    except UnidentifiedImageError:
        pass
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InvalidInput(f"image {number} cannot be read: {error}") from None
    try:
        return _opened(base64.b64decode(data, validate=True))
    except Exception as error:
        is_text = isinstance(error, binascii.Error)
        raise InvalidInput(
            f"image {number} is {'neither an image file' if is_text else 'base64, but not'} that pillow reads"
            f"{' nor base64 of one' if is_text else ''}"
        ) from None


def _opened(data: bytes) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        return Image.open(io.BytesIO(data)).convert("RGB")
