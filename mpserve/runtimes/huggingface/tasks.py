"""Chooses the class that serves a Hugging Face folder by the architecture that its ``config.json`` names."""

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers.models.auto import modeling_auto

from mpserve.errors import ConfigurationError
from mpserve.runtimes.huggingface.folder import needs_code, read_config
from mpserve.serving.models.model import Model

_HERE = "mpserve.runtimes.huggingface"
TASKS: tuple[tuple[Mapping[str, Any], str], ...] = (
    (modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES, f"{_HERE}.encoders:SequenceClassification"),
    (modeling_auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES, f"{_HERE}.encoders:TokenClassification"),
    (modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES, f"{_HERE}.images:ImageClassification"),
    (modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, f"{_HERE}.generation:CausalGeneration"),
    (modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES, f"{_HERE}.generation:Seq2SeqGeneration"),
    (modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES, f"{_HERE}.encoders:FillMask"),
    (modeling_auto.MODEL_MAPPING_NAMES, f"{_HERE}.embeddings:Embedding"),
)
"""transformers' names of architectures by type of model -> the class that serves them. The first that fits wins."""


def serve(name: str, path: Path, return_probabilities: bool = False) -> Model:
    """The model of a folder. Raises ConfigurationError if its architecture is not served."""
    config = read_config(path)
    architecture = (getattr(config, "architectures", None) or [None])[0]
    if architecture is None:
        raise ConfigurationError(f"{path.name}: its config.json names no architecture, expected architectures: [...]")
    served = next((served for names, served in TASKS if architecture in _flat(names)), None)
    if served is None and getattr(config, "auto_map", None):
        raise needs_code(path)
    if served is None:
        raise ConfigurationError(
            f"{path.name} is a {architecture}, which is not served without code: expected a network that classifies texts, tokens"
            " or images, fills masks, embeds texts or generates text; write a model.py that loads it (docs/reference/models.md)"
        )
    module, _, class_name = served.partition(":")
    chosen = getattr(importlib.import_module(module), class_name)
    model: Model = chosen(name, path, return_probabilities)
    return model


def _flat(names: Mapping[str, Any]) -> set[str]:
    return {
        name
        for value in names.values()
        for name in ([value] if isinstance(value, str) else value)
        if isinstance(name, str)
    }
