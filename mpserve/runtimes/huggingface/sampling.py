"""What a request says of a generation: how many tokens, how each is chosen, where to stop."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import transformers

from mpserve.errors import InvalidInput, shown
from mpserve.runtimes.huggingface.folder import refuse_nan
from mpserve.serving.execution.admission import TIMEOUT

NEW_TOKENS = 256
"""Tokens of an answer where neither the request nor the folder says how many, as in transformers' pipeline."""

ALIASES = {"max_tokens": "max_new_tokens"}  # Triton's vLLM backend
NOT_OURS = frozenset({TIMEOUT, "binary_data_output", "priority", "sequence_id", "sequence_start", "sequence_end"})
TRITON = "triton_"  # begins names of parameters of ModelStreamInfer


class Rule(NamedTuple):
    """A parameter: whether a value is allowed, and what is expected."""

    allows: Callable[[Any], bool]
    expected: str


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_stop(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, list) and all(isinstance(each, str) for each in value))


RULES = {
    "max_new_tokens": Rule(lambda value: _is_integer(value) and value > 0, "an integer of 1 or more"),
    "do_sample": Rule(lambda value: isinstance(value, bool), "true or false"),
    "temperature": Rule(lambda value: _is_number(value) and value >= 0, "a number of 0 or more"),
    "top_k": Rule(lambda value: _is_integer(value) and value >= 0, "an integer of 0 or more"),
    "top_p": Rule(lambda value: _is_number(value) and 0 < value <= 1, "a number above 0 and at most 1"),
    "repetition_penalty": Rule(lambda value: _is_number(value) and value > 0, "a number above 0"),
    "seed": Rule(lambda value: _is_integer(value) and 0 <= value < 2**63, "an integer of 0 or more"),
    "stop": Rule(_is_stop, "a text, or in V1 a list of texts"),
    "stream": Rule(lambda value: isinstance(value, bool), "true or false"),
}


class Sampling(NamedTuple):
    """How to generate. ``new_tokens`` is None if the request does not say; ``stream`` too."""

    new_tokens: int | None
    stop: tuple[str, ...]
    stream: bool | None
    is_random: bool
    seed: int | None
    adjusted: Any

    def begin(self, device: Any) -> "Chooser":
        generator = None if self.seed is None else torch.Generator(device).manual_seed(self.seed)
        return Chooser(self.adjusted, self.is_random, generator)


class Chooser:
    """Chooses the tokens of one answer."""

    def __init__(self, adjusted: Any, is_random: bool, generator: torch.Generator | None) -> None:
        self._adjusted = adjusted
        self._is_random = is_random
        self._generator = generator

    def next(self, ids: Any, logits: Any) -> Any:
        """The token behind ``ids``, as a tensor of shape [1, 1]."""
        refuse_nan(logits)
        scores = self._adjusted(ids, logits.float())
        if not self._is_random:
            return scores.argmax(-1, keepdim=True)
        return torch.multinomial(scores.softmax(-1), 1, generator=self._generator)


def read_sampling(parameters: Mapping[str, Any], defaults: Any) -> Sampling:
    """The sampling of a request; ``defaults`` is the ``GenerationConfig`` of the folder.
    Raises InvalidInput for an unknown parameter or a wrong value.
    """
    given: dict[str, Any] = {}
    for name, value in parameters.items():
        known = ALIASES.get(name, name)
        if known in RULES:
            if not RULES[known].allows(value):
                raise InvalidInput(f"parameter {name!r} is {shown(repr(value))}, expected {RULES[known].expected}")
            given[known] = value
        elif name not in NOT_OURS and not name.startswith(TRITON):
            raise InvalidInput(f"unknown parameter {shown(name)!r}; expected {', '.join(RULES)}")
    stop = given.get("stop", ())
    is_random = _is_random(given, defaults)
    return Sampling(
        given.get("max_new_tokens"),
        tuple(each for each in ([stop] if isinstance(stop, str) else stop) if each),
        given.get("stream"),
        is_random,
        given.get("seed"),
        _processors(given, defaults, is_random),
    )


def _is_random(given: Mapping[str, Any], defaults: Any) -> bool:
    if given.get("temperature") == 0:
        return False
    if "do_sample" in given:
        return bool(given["do_sample"])
    return bool(defaults.do_sample) or not given.keys().isdisjoint({"temperature", "top_p", "top_k"})


def _processors(given: Mapping[str, Any], defaults: Any, is_random: bool) -> Any:
    """What changes the scores of tokens before one is chosen, in transformers' order."""

    def value(name: str) -> Any:
        return given[name] if name in given else getattr(defaults, name, None)

    found: list[Any] = []
    if value("repetition_penalty") not in (None, 1.0):
        found.append(transformers.RepetitionPenaltyLogitsProcessor(float(value("repetition_penalty"))))
    if defaults.no_repeat_ngram_size:
        found.append(transformers.NoRepeatNGramLogitsProcessor(defaults.no_repeat_ngram_size))
    if defaults.forced_bos_token_id is not None:
        found.append(transformers.ForcedBOSTokenLogitsProcessor(defaults.forced_bos_token_id))
    if is_random:
        if value("temperature") not in (None, 1.0):
            found.append(transformers.TemperatureLogitsWarper(float(value("temperature"))))
        if value("top_k"):
            found.append(transformers.TopKLogitsWarper(value("top_k")))
        if value("top_p") not in (None, 1.0):
            found.append(transformers.TopPLogitsWarper(float(value("top_p"))))
    return transformers.LogitsProcessorList(found)


class Stops:
    """Ends a text before one of its stops. What may be the beginning of a stop is held back."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = stops
        self._held = ""
        self.reached = False

    def take(self, piece: str) -> str:
        """The part of the text that is certain, with the next piece of it."""
        text = self._held + piece
        places = [place for stop in self._stops if (place := text.find(stop)) >= 0]
        if places:
            self.reached, self._held = True, ""
            return text[: min(places)]
        longest = max(map(len, self._stops), default=1) - 1
        kept = next((size for size in range(min(longest, len(text)), 0, -1) if self._may_begin(text[-size:])), 0)
        self._held = text[len(text) - kept :]
        return text[: len(text) - kept]

    def _may_begin(self, end: str) -> bool:
        return any(stop.startswith(end) for stop in self._stops)

    def rest(self) -> str:
        """What was held back, at the end of the text."""
        held, self._held = self._held, ""
        return held
