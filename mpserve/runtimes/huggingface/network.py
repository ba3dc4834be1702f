"""The base of models of networks that answer row by row, of texts or of images."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from mpserve.errors import InvalidInput
from mpserve.protocol.datatypes import Array
from mpserve.runtimes.documents import only_bytes
from mpserve.runtimes.huggingface.folder import read_network, refuse_nan
from mpserve.runtimes.named_outputs import NamedOutputs
from mpserve.serving.fitting.binding import Bind
from mpserve.serving.models.model import Spec

BY_LABEL = "probabilities"  # the output of huggingfaceserver with return_probabilities
ROWS = 64  # texts or images of one pass through the network, which bounds its memory


class Passed(NamedTuple):
    """Texts or images that have gone through the network: what the tokenizer made of them, and what came out."""

    encoding: Any
    out: Any


class NetworkModel(NamedOutputs):
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


def _array(rows: Any) -> Array:
    if isinstance(rows, torch.Tensor):
        rows = rows.float().cpu().numpy()
    return np.asarray(rows)
