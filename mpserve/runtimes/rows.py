"""The base of models from files that answer row by row: what goes in, which outputs there are, and whose fault a failure is."""

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mpserve.errors import InvalidInput, MPServeError, shown
from mpserve.protocol.datatypes import Array, datatype_of
from mpserve.serving.models.fit import to_numpy
from mpserve.serving.models.model import Spec
from mpserve.serving.models.tensor_model import TensorModel

logger = logging.getLogger(__name__)

INPUT = "input-0"
PREDICT, PROBABILITIES = "predict", "predict_proba"
_PLACE = re.compile(
    r"^\[\d\d:\d\d:\d\d\] \S+:\d+: |(?:/[\w.+-]+)+/(?=[\w.+-]+)"
)  # of a source, and folders of the server


class RowsModel(TensorModel):
    """Serves a file whose model takes the rows of one matrix. The outputs are methods, of which a V2 client may name some.

    Attributes:
        features: the number of columns; None: the file does not say.
        labels: the classes, in the order of the probabilities.
        methods: the outputs by name; the first answers a client that names none.
        refusals: the exceptions by which the library refuses rows.
    """

    chooses_outputs = True
    features: int | None = None
    labels: Sequence[Any] = ()
    methods: Mapping[str, Callable[[Any], Any]] = {}
    refusals: tuple[type[Exception], ...] = (ValueError, TypeError)

    def __init__(self, name: str, path: Path, predict_proba: bool = False) -> None:
        super().__init__(name)
        self.path = path
        self.prefers_probabilities = predict_proba
        self._described: list[Spec] = []

    def predict(self, *arrays: Any) -> Any:
        return self.invoke_for(arrays, ())

    def invoke(self, arrays: Sequence[Array]) -> Any:
        return self.invoke_for(arrays, ())

    def invoke_for(self, arrays: Sequence[Array], asked: tuple[str, ...]) -> dict[str, Any]:
        """The outputs of these names, or the model's own choice.
        Raises InvalidInput: there is no such output, or the model cannot take these rows.
        """
        for name in asked:
            if name not in self.methods:
                expected = ", ".join(map(repr, self.methods))
                raise InvalidInput(
                    f"Unexpected inference output {shown(name)!r} for model {self.name!r}; expected {expected}"
                )
        rows = self.rows_of(arrays)
        try:
            return {name: self.methods[name](rows) for name in asked or (self.default_output,)}
        except MPServeError:
            raise
        except self.refusals as error:
            logger.info("model %s refused an input", self.name, exc_info=True)
            raise InvalidInput(f"the model refused the input: {_first_line(error)}") from error

    @property
    def default_output(self) -> str:
        if self.prefers_probabilities and PROBABILITIES in self.methods:
            return PROBABILITIES
        return next(iter(self.methods))

    def rows_of(self, arrays: Sequence[Array]) -> Any:
        """The rows in the inputs of a request. Raises InvalidInput if they do not fit the model."""
        if len(arrays) != 1:
            raise InvalidInput(f"expected one input, {self._expected()}, got {len(arrays)} inputs")
        [array] = arrays
        if self.features is not None and (array.ndim != 2 or array.shape[1] != self.features):
            raise InvalidInput(f"expected {self._expected()}, got shape {list(array.shape)}")
        return array

    def _expected(self) -> str:
        return f"rows of {'any number of' if self.features is None else self.features} columns"

    def warmup(self) -> None:
        """Predict a row of zeros, which shows the datatypes of the outputs; a model that refuses it says nothing of them."""
        if self.features is None:
            return
        row = np.zeros((1, self.features))
        described = []
        for name, method in self.methods.items():
            try:
                array = to_numpy(method(self.rows_of([row])))
                described.append(self._describe(name, array))
            except Exception:
                logger.debug("model %s: output %s cannot be described", self.name, name, exc_info=True)
        self._described = described

    def _describe(self, name: str, array: Array) -> Spec:
        spec: Spec = {"name": name, "datatype": datatype_of(array.dtype), "shape": [-1, *array.shape[1:]]}
        if array.dtype.kind == "O":
            spec["datatype"] = "BYTES"
        if len(self.labels) and name == PROBABILITIES:
            spec["parameters"] = {"labels": [_plain(label) for label in self.labels]}
        return spec

    def get_input_types(self) -> list[Spec]:
        return [] if self.features is None else [{"name": INPUT, "datatype": "FP64", "shape": [-1, self.features]}]

    def get_output_types(self) -> list[Spec]:
        return self._described


def _plain(label: Any) -> Any:
    return label.item() if isinstance(label, np.generic) else label


def _first_line(error: Exception) -> str:
    """What a library says, without places of the server."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return _PLACE.sub("", lines[0].strip())
