"""Serves folders of spaCy (``meta.json`` and ``config.cfg``): what the pipeline finds in each text, as ``Doc.to_json`` has it."""

from functools import partial
from pathlib import Path

import numpy as np
import spacy

from mpserve.errors import ConfigurationError, InvalidInput, first_line
from mpserve.protocol.datatypes import Array
from mpserve.protocol.declaration import TEXT, Tensor
from mpserve.runtimes.documents import described, documents, only_bytes
from mpserve.runtimes.named_outputs import PREDICT
from mpserve.serving.fitting.binding import Bind
from mpserve.serving.models.model import Spec
from mpserve.serving.models.tensor_model import TensorModel


class SpacyModel(TensorModel):
    """Serves a pipeline of spaCy: entities, categories, tags and what else its components find."""

    platform = "spacy"
    inputs = (Tensor("text", "BYTES", (-1,), content_type=TEXT),)

    def __init__(self, name: str, path: Path) -> None:
        super().__init__(name)
        self.path = path

    def preload(self) -> None:
        try:
            self.nlp = spacy.load(self.path)
        except (ValueError, OSError) as error:
            raise ConfigurationError(
                f"{self.path.name} cannot be read by spaCy {spacy.about.__version__}: {first_line(error)}"
            ) from None

    def warmup(self) -> None:
        self.predict(np.array(["a"], dtype=object))

    def binding(self) -> Bind:
        return partial(only_bytes, self.inputs[0])

    def predict(self, *arrays: Array) -> dict[str, Array]:
        texts = arrays[0].tolist()
        longest = max(map(len, texts), default=0)
        if longest > self.nlp.max_length:
            raise InvalidInput(f"a text has {longest} characters, the pipeline takes at most {self.nlp.max_length}")
        return {PREDICT: documents([doc.to_json() for doc in self.nlp.pipe(texts)])}

    def get_output_types(self) -> list[Spec]:
        return [described(PREDICT)]
