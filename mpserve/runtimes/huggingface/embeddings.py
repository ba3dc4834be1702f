"""Embeddings of texts: as the folder of sentence-transformers says, or else the mean of the tokens with length one.

Source: sentence-transformers' ``modules.json`` and ``1_Pooling/config.json``; huggingfaceserver for the rest.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModel

from mpserve.errors import ConfigurationError
from mpserve.runtimes.huggingface.network import Passed
from mpserve.runtimes.huggingface.texts import TextModel
from mpserve.runtimes.named_outputs import PREDICT

Pool = Callable[[Any, Any], Any]


def _mean(hidden: Any, mask: Any) -> Any:
    return (hidden * mask).sum(1) / mask.sum(1).clamp(min=1e-9)


def _first(hidden: Any, mask: Any) -> Any:
    return hidden[torch.arange(len(hidden), device=mask.device), mask[:, :, 0].argmax(1)]


def _last(hidden: Any, mask: Any) -> Any:
    places = torch.arange(mask.shape[1], device=mask.device)
    return hidden[torch.arange(len(hidden), device=mask.device), (mask[:, :, 0] * places).argmax(1)]


POOLS: dict[str, Pool] = {
    "cls_token": _first,
    "lasttoken": _last,
    "max_tokens": lambda hidden, mask: hidden.masked_fill(mask == 0, -1e9).max(1).values,
    "mean_tokens": _mean,
    "mean_sqrt_len_tokens": lambda hidden, mask: (hidden * mask).sum(1) / mask.sum(1).clamp(min=1e-9).sqrt(),
}
"""How the vectors of a text's tokens become one vector, in the order in which sentence-transformers joins several."""

POOLING = "1_Pooling/config.json"
_PREFIX = "pooling_mode_"


class Embedding(TextModel):
    """A vector for each text."""

    auto = AutoModel

    def preload(self) -> None:
        super().preload()
        self.pools, self.is_normalised = read_pooling(self.path)
        said = _read(self.path / "sentence_bert_config.json").get("max_seq_length")
        if isinstance(said, int):
            self.most_tokens = said if self.most_tokens is None else min(said, self.most_tokens)
        self.methods = {PREDICT: self._vectors}
        size = self.network.config.get_text_config().hidden_size * len(self.pools)
        self.described = [{"name": PREDICT, "datatype": "FP32", "shape": [-1, size]}]

    def _vectors(self, passed: Passed) -> Any:
        hidden = passed.out.last_hidden_state.float()
        mask = passed.encoding["attention_mask"].to(hidden.device).unsqueeze(-1).to(hidden.dtype)
        vectors = torch.cat([pool(hidden, mask) for pool in self.pools], dim=1)
        return torch.nn.functional.normalize(vectors, p=2, dim=1) if self.is_normalised else vectors


def read_pooling(path: Path) -> tuple[list[Pool], bool]:
    """How a folder wants the tokens to be pooled, and whether the vector gets length one.
    Raises ConfigurationError if the folder wants a step that is unknown here.
    """
    if not (path / POOLING).is_file():
        return [_mean], True
    said = _read(path / POOLING)
    wanted = {name.removeprefix(_PREFIX) for name, value in said.items() if name.startswith(_PREFIX) and value is True}
    modules = _read(path / "modules.json") or []
    kinds = [str(module.get("type")).rpartition(".")[2] for module in modules]
    unknown = sorted(wanted - POOLS.keys()) + [
        kind for kind in kinds if kind not in ("Transformer", "Pooling", "Normalize")
    ]
    if unknown or not wanted:
        raise ConfigurationError(
            f"{path.name}: its sentence-transformers has {', '.join(unknown) or 'no pooling'}, which is not known here; write a"
            " model.py that loads it with sentence-transformers (docs/reference/models.md)"
        )
    return [pool for name, pool in POOLS.items() if name in wanted], "Normalize" in kinds


def _read(file: Path) -> Any:
    if not file.is_file():
        return {}
    try:
        return json.loads(file.read_bytes())
    except ValueError as error:
        raise ConfigurationError(f"{file} cannot be read: {error}") from None
