"""Networks of texts: classes of a text and of its tokens, and words for a mask.

The answers are those of the pipelines of transformers, with the labels of ``id2label``. With ``return_probabilities`` they are
what huggingfaceserver gives, by label.
"""

from typing import Any

import numpy as np
import torch
from transformers import AutoModelForMaskedLM, AutoModelForSequenceClassification, AutoModelForTokenClassification

from mpserve.errors import ConfigurationError, InvalidInput
from mpserve.protocol.datatypes import Array
from mpserve.runtimes.documents import described, documents
from mpserve.runtimes.huggingface.network import BY_LABEL, NetworkModel, Passed
from mpserve.runtimes.huggingface.texts import TextModel
from mpserve.runtimes.named_outputs import PREDICT, PROBABILITIES
from mpserve.serving.models.model import Spec

OUTSIDE = "O"  # the label of a token that is part of nothing
BEST = 5  # words for a mask, as the pipeline of transformers has it


def _described_text(name: str) -> Spec:
    return {"name": name, "datatype": "BYTES", "shape": [-1]}


class Classes:
    """What the logits of a classifier mean: one class of several, several classes at once, or numbers."""

    def __init__(self, config: Any) -> None:
        self.labels = [str(config.id2label[index]) for index in range(config.num_labels)]
        problem = getattr(config, "problem_type", None)
        self.is_regression = problem == "regression" or len(self.labels) == 1
        self.is_multiple = problem == "multi_label_classification"
        self._apply = torch.nn.Identity() if problem == "regression" else torch.nn.Sigmoid()

    def serve(self, model: NetworkModel) -> None:
        """Give a model the outputs of these classes."""
        if self.is_regression:
            shape = [-1] if len(self.labels) == 1 else [-1, len(self.labels)]
            model.methods = {PREDICT: self._numbers}
            model.described = [{"name": PREDICT, "datatype": "FP32", "shape": shape}]
            return
        chosen = self._several if self.is_multiple else self._one
        model.methods = {PREDICT: chosen, PROBABILITIES: self._probabilities, BY_LABEL: self._by_label}
        model.described = [
            described(PREDICT) if self.is_multiple else _described_text(PREDICT),
            {"name": PROBABILITIES, "datatype": "FP32", "shape": [-1, len(self.labels)],
             "parameters": {"labels": self.labels}},
            described(BY_LABEL),
        ]  # fmt: skip

    def _probabilities(self, passed: Passed) -> Any:
        logits = passed.out.logits.float()
        return self._apply(logits) if self.is_multiple else logits.softmax(-1)

    def _numbers(self, passed: Passed) -> Any:
        numbers = self._apply(passed.out.logits.float())
        return numbers[:, 0] if len(self.labels) == 1 else numbers

    def _one(self, passed: Passed) -> Any:
        return np.array([self.labels[index] for index in passed.out.logits.argmax(-1).tolist()], dtype=object)

    def _several(self, passed: Passed) -> Array:
        chosen = (self._probabilities(passed) > 0.5).tolist()
        return documents([
            [label for label, is_chosen in zip(self.labels, row, strict=True) if is_chosen] for row in chosen
        ])  # fmt: skip

    def _by_label(self, passed: Passed) -> Array:
        rows = self._probabilities(passed).tolist()
        return documents([dict(zip(self.labels, row, strict=True)) for row in rows])


class SequenceClassification(TextModel):
    """The class of a text."""

    auto = AutoModelForSequenceClassification

    def preload(self) -> None:
        super().preload()
        Classes(self.network.config).serve(self)


class TokenClassification(TextModel):
    """The entities in a text, as the pipeline of transformers gives them."""

    auto = AutoModelForTokenClassification

    def preload(self) -> None:
        super().preload()
        self.labels = self.network.config.id2label
        self.methods = {PREDICT: self._entities}
        self.described = [described(PREDICT)]

    @property
    def wants_offsets(self) -> bool:
        return bool(self.tokenizer.is_fast)

    def _entities(self, passed: Passed) -> Array:
        scores, indices = passed.out.logits.float().softmax(-1).max(-1)
        return documents([
            self._entities_of(passed.encoding, row, scores[row].tolist(), indices[row].tolist())
            for row in range(len(scores))
        ])  # fmt: skip

    def _entities_of(self, encoding: Any, row: int, scores: list[float], indices: list[int]) -> list[dict[str, Any]]:
        ids = encoding["input_ids"][row].tolist()
        words = self.tokenizer.convert_ids_to_tokens(ids)
        if self.wants_offsets:
            offsets, special = encoding["offset_mapping"][row].tolist(), encoding["special_tokens_mask"][row].tolist()
        else:
            special = self.tokenizer.get_special_tokens_mask(ids, already_has_special_tokens=True)
            offsets = [(None, None)] * len(ids)
        found = []
        for place, (score, label) in enumerate(zip(scores, map(self.labels.get, indices), strict=True)):
            if not special[place] and label != OUTSIDE:
                start, end = offsets[place]
                found.append(
                    {"entity": label, "score": score, "index": place, "word": words[place], "start": start, "end": end}
                )
        return found


class FillMask(TextModel):
    """The words for the masks in a text."""

    auto = AutoModelForMaskedLM

    def preload(self) -> None:
        super().preload()
        if self.tokenizer.mask_token is None:
            raise ConfigurationError(f"{self.path.name}: its tokenizer has no mask")
        self.sample_text = self.tokenizer.mask_token
        self.methods = {PREDICT: self._words, BY_LABEL: self._best}
        self.described = [_described_text(PREDICT), described(BY_LABEL)]

    def _masks(self, passed: Passed) -> list[tuple[Any, Any]]:
        """The ids of each text, and the places of its masks."""
        masks = []
        for number, ids in enumerate(passed.encoding["input_ids"]):
            places = (ids == self.tokenizer.mask_token_id).nonzero()[:, 0]
            if not len(places):
                within = "" if self.most_tokens is None else f" among its first {self.most_tokens} tokens"
                raise InvalidInput(f"text {number} has no {self.tokenizer.mask_token}{within}")
            masks.append((ids, places))
        return masks

    def _words(self, passed: Passed) -> Array:
        best = [passed.out.logits[row, places].argmax(-1) for row, (_, places) in enumerate(self._masks(passed))]
        return np.array([self.tokenizer.decode(ids.tolist()) for ids in best], dtype=object)

    def _best(self, passed: Passed) -> Array:
        rows = []
        for row, (ids, places) in enumerate(self._masks(passed)):
            text = ids[: int(passed.encoding["attention_mask"][row].sum())]  # without padding, which is at the right
            each = [self._best_at(passed.out.logits[row, place], text, place, len(places) == 1) for place in places]
            rows.append(each[0] if len(each) == 1 else each)
        return documents(rows)

    def _best_at(self, logits: Any, ids: Any, place: Any, is_only: bool) -> list[dict[str, Any]]:
        scores, tokens = logits.float().softmax(-1).topk(min(BEST, len(logits)))
        found = []
        for score, token in zip(scores.tolist(), tokens.tolist(), strict=True):
            filled = ids.clone()
            filled[place] = token
            sequence = self.tokenizer.decode(filled.tolist(), skip_special_tokens=is_only)
            found.append(
                {"score": score, "token": token, "token_str": self.tokenizer.decode([token]), "sequence": sequence}
            )
        return found
