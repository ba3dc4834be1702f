"""The base of models of texts, whose answer is a row for each text: classes, entities, words for a mask, embeddings."""

from typing import Any

import numpy as np

from mpserve.protocol.declaration import TEXT, Tensor
from mpserve.runtimes.huggingface.folder import most_tokens, read_tokenizer
from mpserve.runtimes.huggingface.network import NetworkModel, Passed


class TextModel(NetworkModel):
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
