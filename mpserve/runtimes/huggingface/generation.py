"""Generation of text, a token at a time: whole, or in parts as the tokens come.

Each prompt goes through the network alone, with the network's cache. So prompts need no padding, and the answer does not depend
on the other prompts.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from mpserve.errors import InvalidInput
from mpserve.protocol.datatypes import not_utf8
from mpserve.protocol.messages import InferOutput, InferRequest, InferResponse
from mpserve.runtimes.huggingface.folder import most_tokens, read_network, read_tokenizer
from mpserve.runtimes.huggingface.sampling import NEW_TOKENS, Sampling, Stops, read_sampling
from mpserve.serving.models.model import Model, Spec

logger = logging.getLogger(__name__)

PROMPT, ANSWER = "text_input", "text_output"
CACHE_WORDS = ("cache", "past_key_values")  # what transformers 5 has renamed
BEFORE = 5  # tokens before a piece of text with which it is decoded: a tokenizer may join them
SILENCE = 8  # rounds without text after which an empty part is sent: a generation is ended between two parts only
INCOMPLETE = "\N{REPLACEMENT CHARACTER}"  # ends a text whose last character lacks bytes


class Generation(Model):
    """Serves a network that generates text. Several requests generate at the same time, in a thread each."""

    platform = "huggingface"
    takes_request = True
    concurrency = 4
    auto: Any
    most_tokens: int | None = None

    def __init__(self, name: str, path: Path, return_probabilities: bool = False) -> None:
        super().__init__(name)
        self.path = path

    def preload(self) -> None:
        self.network = read_network(self.path, self.auto)
        self.tokenizer = read_tokenizer(self.path)
        self.most_tokens = most_tokens(self.tokenizer, self.network)
        self.defaults = self.network.generation_config
        known = signature(self.network.forward).parameters
        self.cache_word = next((word for word in CACHE_WORDS if word in known), CACHE_WORDS[0])
        ends = self.defaults.eos_token_id
        ends = self.tokenizer.eos_token_id if ends is None else ends
        self.ends = frozenset(ends if isinstance(ends, list) else [ends])
        if (self.defaults.num_beams or 1) > 1:
            logger.warning(
                "model %s: num_beams=%d has no effect, since text is generated a token at a time",
                self.name, self.defaults.num_beams,
            )  # fmt: skip

    def load(self) -> None:
        self.network = self.network.to(self.device)

    def warmup(self) -> None:
        self.whole([self.pieces("a", read_sampling({"max_new_tokens": 2}, self.defaults))], lambda: False)

    def get_input_types(self) -> list[Spec]:
        return [{"name": PROMPT, "datatype": "BYTES", "shape": [-1]}]

    def get_output_types(self) -> list[Spec]:
        return [{"name": ANSWER, "datatype": "BYTES", "shape": [-1]}]

    def predict(self, payload: Any, request: Any = None) -> Any:
        """Answer a request: V1's predictions, or a V2 response; in parts if the client wants them so."""
        is_v2 = isinstance(payload, InferRequest)
        prompts, parameters = _of_v2(payload) if is_v2 else _of_v1(payload)
        sampling = read_sampling(parameters, self.defaults)
        in_parts = sampling.stream if sampling.stream is not None else is_v2 and request.in_parts
        if in_parts and not is_v2 and len(prompts) != 1:
            raise InvalidInput(f"expected one instance for an answer in parts, got {len(prompts)}")
        texts = [self.pieces(prompt, sampling) for prompt in prompts]
        if in_parts:
            return self.parts(texts, is_v2)
        answers = self.whole(texts, request.done)
        return self.response(answers) if is_v2 else {"predictions": answers}

    def response(self, texts: Sequence[str]) -> InferResponse:
        return InferResponse(None, self.name, [InferOutput(ANSWER, [len(texts)], "BYTES", list(texts))])

    def parts(self, texts: Sequence[Iterator[str]], is_v2: bool) -> Iterator[Any]:
        """The texts as they grow: V2 responses, or pieces of V1's only text."""
        for pieces in rounds(texts):
            yield self.response(pieces) if is_v2 else pieces[0]

    def whole(self, texts: Sequence[Iterator[str]], is_over: Callable[[], bool]) -> list[str]:
        """The texts as a whole, one after the other; unfinished if nobody waits for them any more."""
        answers = []
        for pieces in texts:
            kept: list[str] = []
            for piece in pieces:
                kept.append(piece)
                if is_over():
                    break
            answers.append("".join(kept))
        return answers

    def pieces(self, prompt: str, sampling: Sampling) -> Iterator[str]:
        """What a token adds to the text, for each token. Raises InvalidInput if the prompt is too long."""
        ids = self.tokenizer(prompt)["input_ids"] or [self.tokenizer.bos_token_id]
        if ids[0] is None:
            raise InvalidInput("the prompt is empty")
        return self._pieces(ids, self.room(len(ids), sampling.new_tokens), sampling)

    def room(self, length: int, wanted: int | None) -> int:
        """How many tokens may be generated behind a prompt of this length. Raises InvalidInput if it is too long."""
        room = self.longest_answer(length)
        if room is not None and (room < 1 or (wanted or 0) > room):
            more = f" and max_new_tokens={wanted}" if room >= 1 else ""
            raise InvalidInput(f"the prompt has {length} tokens{more}, the model takes at most {self.most_tokens}")
        usual = wanted or self.defaults.max_new_tokens or NEW_TOKENS
        return usual if room is None else min(usual, room)

    def longest_answer(self, length: int) -> int | None:
        return None if self.most_tokens is None else self.most_tokens - length

    @torch.inference_mode()  # applies to each step of a generator, and not between two steps
    def _pieces(self, prompt: list[int], room: int, sampling: Sampling) -> Iterator[str]:
        stops, text = Stops(sampling.stop), Text(self.tokenizer, self.decoded_with(prompt))
        ids = torch.tensor([prompt], device=self.device)
        chooser = sampling.begin(ids.device)
        ids, forward = self.begin(ids)
        steps = Steps(forward, self.cache_word)
        for _ in range(room):
            token = chooser.next(ids, steps.logits(ids))
            if int(token) in self.ends:
                break
            ids = torch.cat([ids, token], dim=1)
            yield stops.take(text.add(int(token)))
            if stops.reached:
                return
        yield stops.take(text.rest()) + stops.rest()

    def decoded_with(self, prompt: list[int]) -> list[int]:
        """The tokens before the answer that its text follows."""
        return prompt[-BEFORE:]

    def begin(self, ids: Any) -> tuple[Any, Callable[..., Any]]:
        """The first tokens of the text, and a function that puts tokens through the network."""
        return ids, lambda ids, **cache: self.network(input_ids=ids, **cache)


class CausalGeneration(Generation):
    """Goes on with the prompt."""

    auto = AutoModelForCausalLM


class Seq2SeqGeneration(Generation):
    """Answers the prompt, which an encoder reads."""

    auto = AutoModelForSeq2SeqLM

    def decoded_with(self, prompt: list[int]) -> list[int]:
        return []

    def longest_answer(self, length: int) -> int | None:
        if self.most_tokens is not None and length > self.most_tokens:
            return 0
        return self.most_tokens

    def begin(self, ids: Any) -> tuple[Any, Callable[..., Any]]:
        encoded = self.network.get_encoder()(input_ids=ids)
        start = self.defaults.decoder_start_token_id
        first = self.defaults.bos_token_id if start is None else start

        def forward(ids: Any, **cache: Any) -> Any:
            return self.network(encoder_outputs=encoded, decoder_input_ids=ids, **cache)

        return torch.tensor([[first]], device=ids.device), forward


class Steps:
    """Puts the tokens of one text through the network, each once: the network's cache knows the earlier ones.

    Args:
        forward: puts tokens through the network.
        word: what the network calls its cache, as a parameter and in its output.
    """

    def __init__(self, forward: Callable[..., Any], word: str) -> None:
        self._forward = forward
        self._word = word
        self._cache: Any = None
        self._seen = 0

    def logits(self, ids: Any) -> Any:
        """The scores of the token behind ``ids``, which begin with the ids of the call before."""
        cache = {} if self._cache is None else {self._word: self._cache}
        out = self._forward(ids[:, self._seen :], use_cache=True, **cache)
        self._cache = getattr(out, self._word, None)
        self._seen = 0 if self._cache is None else ids.shape[1]
        return out.logits[:, -1]


class Text:
    """Decodes tokens as they come. A piece is decoded with the tokens before it, and only once its characters are complete."""

    def __init__(self, tokenizer: Any, before: list[int]) -> None:
        self._decode = tokenizer.decode
        self._ids = before
        self._read = len(before)  # tokens whose text is out

    def add(self, token: int) -> str:
        self._ids.append(token)
        piece = self._behind()
        if piece.endswith(INCOMPLETE):
            return ""
        self._ids = self._ids[-BEFORE:]
        self._read = len(self._ids)
        return piece

    def rest(self) -> str:
        """The text of the tokens that still lack bytes, at the end."""
        return self._behind() if self._read < len(self._ids) else ""

    def _behind(self) -> str:
        out = self._decode(self._ids[: self._read], skip_special_tokens=True)
        both: str = self._decode(self._ids, skip_special_tokens=True)
        return both[len(out) :]


def rounds(texts: Sequence[Iterator[str]]) -> Iterator[list[str]]:
    """The next pieces of all texts, until all have ended. Up to ``SILENCE`` rounds in which no text has grown are left out."""
    running = dict(enumerate(texts))
    silent = 0
    try:
        while running:
            pieces = [""] * len(texts)
            for number, text in list(running.items()):
                piece = next(text, None)
                if piece is None:
                    del running[number]
                else:
                    pieces[number] = piece
            silent = 0 if any(pieces) else silent + 1
            if silent % SILENCE == 0:
                yield pieces
    finally:
        for text in running.values():
            text.close()  # type: ignore[attr-defined]


def _of_v1(payload: Any) -> tuple[list[str], Mapping[str, Any]]:
    """The prompts and the parameters in a V1 document."""
    if not isinstance(payload, dict):
        raise InvalidInput('expected a JSON object with a list of "instances"')
    fields = dict(payload)
    instances = fields.pop("instances", None) or fields.pop("inputs", None) or ()
    nested = fields.pop("parameters", None) or {}
    prompts = [each.get(PROMPT) if isinstance(each, dict) else each for each in instances]
    texts = [prompt for prompt in prompts if isinstance(prompt, str)]
    if not texts or len(texts) < len(prompts):
        raise InvalidInput(f'expected "instances" of texts, or of objects with {PROMPT!r}')
    if not isinstance(nested, dict):
        raise InvalidInput(f"parameters is of type {type(nested).__name__}, expected an object")
    return texts, {**fields, **nested}


def _of_v2(message: InferRequest) -> tuple[list[str], Mapping[str, Any]]:
    """The prompts and the parameters in a V2 request."""
    if len(message.inputs) != 1:
        names = ", ".join(repr(each.name) for each in message.inputs) or "none"
        raise InvalidInput(f"expected one input, {PROMPT!r}, got {names}")
    [given] = message.inputs
    if given.datatype != "BYTES":
        raise InvalidInput(f"input {given.name!r}: expected text, BYTES, got {given.datatype}")
    array = given.as_numpy()
    if not array.size:
        raise InvalidInput(f"input {given.name!r}: expected at least one text, got none")
    try:
        return [text.decode() for text in array.reshape(-1).tolist()], message.parameters or {}
    except UnicodeDecodeError as error:
        raise InvalidInput(f"input {given.name!r} {not_utf8(error)}") from None
