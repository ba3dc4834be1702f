"""Reads a Hugging Face folder by transformers: network, tokenizer and what its ``config.json`` says.

Everything comes from the folder itself: nothing is downloaded, and no code of the folder is run.
"""

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

# transformers 5 would read the weights in threads of its own, in the arbiter. The variable is read at each load.
os.environ.setdefault("HF_DEACTIVATE_ASYNC_LOAD", "1")

import torch
import transformers

from mpserve.errors import ConfigurationError, InferenceError, first_line

_LOCAL = {"local_files_only": True, "trust_remote_code": False}
_NO_LIMIT = 10**9  # a tokenizer without a limit says 10**30

transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]


def read_config(path: Path) -> Any:
    """The configuration in the folder. Raises ConfigurationError if transformers does not know such models."""
    try:
        return transformers.AutoConfig.from_pretrained(str(path), **_LOCAL)
    except (ValueError, OSError, KeyError) as error:
        if "trust_remote_code" in str(error):
            raise needs_code(path) from None
        raise _unreadable(path, "config.json", error) from None


def needs_code(path: Path) -> ConfigurationError:
    return ConfigurationError(
        f"{path.name} needs code of its author (auto_map in its config.json), which is never run by itself: read that code, and"
        " write a model.py that loads the folder with trust_remote_code=True (docs/reference/models.md)"
    )


def read_network(path: Path, auto: Any) -> Any:
    """The network of a folder, on the CPU. Half precision of 16 bits becomes FP32, which CPUs compute with."""
    network = auto.from_pretrained(str(path), **_LOCAL).eval().requires_grad_(False)
    return network.float() if network.dtype == torch.float16 else network


def read_tokenizer(path: Path) -> Any:
    """The tokenizer of a folder. Raises ConfigurationError if there is none: transformers 5 would make one that knows no word."""
    tokenizer = _read(path, "tokenizer", transformers.AutoTokenizer.from_pretrained)
    files = tokenizer.vocab_files_names.values()
    if files and not any((path / file).is_file() for file in files):
        raise ConfigurationError(f"{path.name} has no tokenizer, expected one of {', '.join(files)}")
    return tokenizer


def read_image_processor(path: Path) -> Any:
    return _read(path, "preprocessor_config.json", transformers.AutoImageProcessor.from_pretrained)


def most_tokens(tokenizer: Any, network: Any) -> int | None:
    """How many tokens the network takes; None if there is no limit."""
    limits = [tokenizer.model_max_length] if tokenizer.model_max_length < _NO_LIMIT else []
    config = network.config.get_text_config()
    positions = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
    if isinstance(positions, int) and positions > 0:
        table = getattr(getattr(network.base_model, "embeddings", None), "position_embeddings", None)
        padding = getattr(table, "padding_idx", None)  # models like RoBERTa count positions from behind it
        limits.append(positions if padding is None else positions - padding - 1)
    return min(limits, default=None)


def refuse_nan(scores: Any) -> None:
    """Raise InferenceError for scores that are no numbers: the best of them would be a wrong answer like any other."""
    if not bool((scores < math.inf).all()):
        raise InferenceError("the network gave NaN or infinity")


def _read(path: Path, what: str, read: Callable[..., Any]) -> Any:
    try:
        return read(str(path), **_LOCAL)
    except (ValueError, OSError, KeyError) as error:
        raise _unreadable(path, what, error) from None


def _unreadable(path: Path, what: str, error: Exception) -> ConfigurationError:
    return ConfigurationError(
        f"{path.name}: transformers {transformers.__version__} cannot read its {what}: {first_line(error)}"
    )
