"""The base of models of texts, whose answer is a row for each text: classes, entities, words for a mask, embeddings."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from mpserve.errors import InvalidInput
from mpserve.protocol.datatypes import Array
from mpserve.protocol.declaration import TEXT, Tensor
from mpserve.runtimes.documents import only_bytes
from mpserve.runtimes.huggingface.folder import most_tokens, read_network, read_tokenizer, refuse_nan
from mpserve.runtimes.named_outputs import NamedOutputs
from mpserve.serving.fitting.binding import Bind
from mpserve.serving.models.model import Spec

BY_LABEL = "probabilities"  # the output of huggingfaceserver with return_probabilities
ROWS = 64  # texts or images of one pass through the network, which bounds its memory


class Passed(NamedTuple):
    """Texts or images that have gone through the network: what the tokenizer made of them, and what came out."""

    encoding: Any
    out: Any


class RowWise(NamedOutputs):
    """Serves a network that answers row by row.

    Attributes:
        described: the metadata of the outputs.
        most_rows: how many rows go through the network at once.
    """

    platform = "huggingface"
    probabilities = BY_LABEL
    auto: Any
    network: Any
    most_rows = ROWS

    def __init__(self, name: str, path: Path, return_probabilities: bool = False) -> None:
        super().__init__(name, path, return_probabilities)
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

    @torch.inference_mode()
    def invoke_for(self, arrays: Sequence[Any], asked: tuple[str, ...]) -> dict[str, Array]:
        """The outputs of these names, or the model's own choice. Raises InvalidInput: no such output, or no such rows."""
        methods = self.asked_methods(asked)
        rows = arrays[0].tolist()
        if not rows:
            raise InvalidInput("expected at least one instance, got none")
        parts: dict[str, list[Array]] = {name: [] for name in methods}
        for start in range(0, len(rows), self.most_rows):
            passed = self.passed(rows[start : start + self.most_rows])
            if "logits" in passed.out:
                refuse_nan(passed.out.logits)
            for name, part in parts.items():
                part.append(_array(methods[name](passed)))
        return {name: part[0] if len(part) == 1 else np.concatenate(part) for name, part in parts.items()}

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
