"""The base of models of texts, whose answer is a row for each text: classes, entities, words for a mask, embeddings."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from mpserve.errors import InvalidInput, shown
from mpserve.protocol.datatypes import Array
from mpserve.protocol.declaration import TEXT, Tensor
from mpserve.runtimes.documents import only_bytes
from mpserve.runtimes.huggingface.folder import most_tokens, read_network, read_tokenizer, refuse_nan
from mpserve.serving.fitting.binding import Bind
from mpserve.serving.models.model import Spec
from mpserve.serving.models.tensor_model import TensorModel

PREDICT, PROBABILITIES, BY_LABEL = "predict", "predict_proba", "probabilities"
ROWS = 64  # texts or images of one pass through the network, which bounds its memory


class Passed(NamedTuple):
    """Texts or images that have gone through the network: what the tokenizer made of them, and what came out."""

    encoding: Any
    out: Any


class RowWise(TensorModel):
    """Serves a network that answers row by row. The outputs are methods, of which a V2 client may name some.

    Attributes:
        methods: the outputs by name; the first answers a client that names none.
        described: the metadata of the outputs.
        most_rows: how many rows go through the network at once.
    """

    platform = "huggingface"
    chooses_outputs = True
    auto: Any
    network: Any
    most_rows = ROWS

    def __init__(self, name: str, path: Path, return_probabilities: bool = False) -> None:
        super().__init__(name)
        self.path = path
        self.prefers_probabilities = return_probabilities
        self.methods: Mapping[str, Callable[[Passed], Any]] = {}
        self.described: Sequence[Spec] = ()

    def preload(self) -> None:
        self.network = read_network(self.path, self.auto)

    def load(self) -> None:
        self.network = self.network.to(self.device)

    def passed(self, rows: list[Any]) -> Passed:
        """Put these rows through the network. Raises InvalidInput if they cannot be taken."""
        raise NotImplementedError

    def binding(self) -> Bind:
        return partial(only_bytes, self.inputs[0])

    def predict(self, *arrays: Any) -> Any:
        return self.invoke_for(arrays, ())

    def invoke(self, arrays: Sequence[Any]) -> Any:
        return self.invoke_for(arrays, ())

    @torch.inference_mode()
    def invoke_for(self, arrays: Sequence[Any], asked: tuple[str, ...]) -> dict[str, Array]:
        """The outputs of these names, or the model's own choice. Raises InvalidInput: no such output, or no such rows."""
        names = asked or (self.default_output,)
        for name in names:
            if name not in self.methods:
                expected = ", ".join(map(repr, self.methods))
                raise InvalidInput(
                    f"Unexpected inference output {shown(name)!r} for model {self.name!r}; expected {expected}"
                )
        rows = arrays[0].tolist()
        if not rows:
            raise InvalidInput("expected at least one instance, got none")
        parts: dict[str, list[Array]] = {name: [] for name in names}
        for start in range(0, len(rows), self.most_rows):
            passed = self.passed(rows[start : start + self.most_rows])
            if "logits" in passed.out:
                refuse_nan(passed.out.logits)
            for name, part in parts.items():
                part.append(_array(self.methods[name](passed)))
        return {name: part[0] if len(part) == 1 else np.concatenate(part) for name, part in parts.items()}

    @property
    def default_output(self) -> str:
        if self.prefers_probabilities and BY_LABEL in self.methods:
            return BY_LABEL
        return next(iter(self.methods))

    def get_output_types(self) -> list[Spec]:
        return list(self.described)


class TextModel(RowWise):
    """Serves a network of texts. A text of more tokens than the network takes is cut at its end, as in huggingfaceserver."""

    inputs = (Tensor("text", "BYTES", (-1,), content_type=TEXT),)
    most_tokens: int | None = None
    sample_text = "a"

    def preload(self) -> None:
        super().preload()
        self.tokenizer = read_tokenizer(self.path)
        self.most_tokens = most_tokens(self.tokenizer, self.network)
        if self.tokenizer.pad_token is None:
            self.most_rows = 1

    def warmup(self) -> None:
        self.invoke_for([np.array([self.sample_text], dtype=object)], tuple(self.methods))

    def passed(self, rows: list[Any]) -> Passed:
        encoding = self.tokenizer(
            rows,
            padding=self.most_rows > 1,
            truncation=self.most_tokens is not None,
            max_length=self.most_tokens,
            return_offsets_mapping=self.wants_offsets,
            return_special_tokens_mask=self.wants_offsets,
            return_tensors="pt",
        )
        names = [name for name in encoding if name not in ("offset_mapping", "special_tokens_mask")]
        return Passed(encoding, self.network(**{name: encoding[name].to(self.device) for name in names}))

    @property
    def wants_offsets(self) -> bool:
        return False


def _array(rows: Any) -> Array:
    if isinstance(rows, torch.Tensor):
        rows = rows.float().cpu().numpy()
    return np.asarray(rows)
