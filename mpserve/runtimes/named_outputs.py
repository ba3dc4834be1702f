"""The base of models whose outputs are methods: rows are computed once, and each output that was asked for is made of them."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mpserve.protocol.messages import unexpected_output
from mpserve.serving.models.tensor_model import TensorModel

PREDICT, PROBABILITIES = "predict", "predict_proba"


class NamedOutputs(TensorModel):
    """A model of a file. A V2 client may name some of its outputs; a derived class overrides ``invoke_for``.

    Attributes:
        methods: the outputs by name; the first answers a client that names none.
        probabilities: the output that answers such a client instead, if ``prefers_probabilities`` and the model has it.
        aliases: further names of the default output.
    """

    chooses_outputs = True
    methods: Mapping[str, Callable[[Any], Any]] = {}
    probabilities: str = PROBABILITIES
    aliases: frozenset[str] = frozenset()

    def __init__(self, name: str, path: Path, prefers_probabilities: bool = False) -> None:
        super().__init__(name)
        self.path = path
        self.prefers_probabilities = prefers_probabilities

    def predict(self, *arrays: Any) -> Any:
        return self.invoke_for(arrays, ())

    def invoke(self, arrays: Sequence[Any]) -> Any:
        return self.invoke_for(arrays, ())

    @property
    def default_output(self) -> str:
        if self.preferred_output is not None:
            return self.preferred_output
        if self.prefers_probabilities and self.probabilities in self.methods:
            return self.probabilities
        return next(iter(self.methods))

    def asked_methods(self, asked: tuple[str, ...]) -> dict[str, Callable[[Any], Any]]:
        """The methods of the outputs of these names; for none, of the default output. Raises InvalidInput: no such output."""
        found = {}
        for name in asked or (self.default_output,):
            method = self.methods.get(self.default_output if name in self.aliases else name)
            if method is None:
                raise unexpected_output(name, self.name, self.methods)
            found[name] = method
        return found
