"""``mpserve test``: loads the models of a TARGET without a server, asks each by V2, V1 and in a batch, and reports.

The exit status is 0 if every model answered, always alike and as it declares.
"""

import json
import logging
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from mpserve.commands.arguments import read
from mpserve.config.options import TEXT, Option
from mpserve.errors import ConfigurationError, MPServeError
from mpserve.prefork.arbiter.application import make_app
from mpserve.server import find
from mpserve.serving.repository.import_target import starts_server
from mpserve.telemetry.logging import configure
from mpserve.testing import Client, Refused

logger = logging.getLogger("mpserve")

_HELP = "File with a JSON request of V1 (instances) or V2 (inputs), for each model"
OWN = (Option("input", None, TEXT, "Test", _HELP, "--input"),)

LARGEST = 1 << 24  # characters of a request made from a declaration


class Failed(Exception):
    """A check failed; the message says what was found."""


def run(arguments: Sequence[str]) -> int:
    """Test the models and return the exit status. Raises ConfigurationError for a mistake in the command line."""
    settings, own, _ = read(arguments, OWN, log_level="warning")
    configure(settings)
    if settings.target is not None and settings.target.endswith(".py") and starts_server(Path(settings.target)):
        raise ConfigurationError(f"{settings.target} starts a server; name the model in it: {settings.target}:Class")
    request = _read(own["input"])
    begin = time.monotonic()
    try:
        app = make_app(settings, find)
        core = app.state.core
        with Client.of(app) as client:
            _say("ok", "load and warm up", f"{time.monotonic() - begin:.2f} s")
            failures = sum([_test(client, core, name, request) for name in list(core.models)])
    except MPServeError as error:
        if error.__cause__ is not None:
            logger.error("the model's code failed", exc_info=error.__cause__)
        _say("FAIL", "load and warm up", str(error))
        return 1
    print(f"{failures} of the checks failed" if failures else "all checks passed")
    return 1 if failures else 0


def _read(file: str | None) -> Any:
    if file is None:
        return None
    try:
        request = json.loads(Path(file).read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"--input: {file} cannot be read: {error}") from None
    if not isinstance(request, dict) or not {"instances", "inputs"} & request.keys():
        raise ConfigurationError(
            f"--input: {file} holds no request, expected an object with instances (V1) or inputs (V2)"
        )
    return request


def _say(outcome: str, check: str, detail: str) -> None:
    print(f"  {outcome:<5} {check:<18} {detail}")


def _test(client: Client, core: Any, name: str, request: Any) -> int:
    """Test a model and return how many checks failed."""
    from mpserve.http.management.examples import example_of  # these import numpy
    from mpserve.serving.models.tensor_model import TensorModel

    print(f"model {name}")
    if request is None:
        example = client.run(example_of(core, core.models[name].newest, LARGEST))
        request = json.loads(example.body or "null")
    if request is None:
        _say("FAIL", "a request", "none is known: declare inputs, set sample, or give one by --input FILE")
        return 1
    checks = _Checks(client, name, speaks_arrays=isinstance(core.models[name].newest.model, TensorModel))
    if "instances" in request:
        checks.check("V1 predict", lambda: _shown(client.predict(name, request["instances"])))
    else:
        checks.of_v2(request["inputs"])
    return checks.failed


class _Checks:
    def __init__(self, client: Client, name: str, speaks_arrays: bool) -> None:
        self.client = client
        self.name = name
        self.speaks_arrays = speaks_arrays
        self.failed = 0

    def check(self, what: str, ask: Callable[[], str]) -> None:
        begin = time.monotonic()
        try:
            detail = ask()
        except (Failed, Refused) as failure:
            self.failed += 1
            _say("FAIL", what, str(failure))
        else:
            _say("ok", what, f"{(time.monotonic() - begin) * 1000:.1f} ms  {detail}")

    def of_v2(self, inputs: list[dict[str, Any]]) -> None:
        first: list[dict[str, Any]] = []

        def infer() -> str:
            first.extend(self.client.infer(self.name, inputs))
            return ", ".join(f"{output['name']} {output['datatype']} {output['shape']}" for output in first)

        def again() -> str:
            _compare(self.client.infer(self.name, inputs), first, "the second answer differs from the first")
            return "the same answer"

        self.check("V2 infer", infer)
        if not first:
            return
        self.check("again", again)
        if not self.speaks_arrays or len({_rows(tensor) for tensor in (*inputs, *first)}) != 1 or not _rows(inputs[0]):
            return
        self.check("V1 predict", lambda: self._v1(inputs, first))
        if self._takes_any_rows():
            self.check("a batch of 2", lambda: self._batch(inputs, first))

    def _takes_any_rows(self) -> bool:
        metadata = self.client.request("GET", f"/v2/models/{quote(self.name, safe='')}").json()
        shapes = [tensor["shape"] for tensor in (*metadata["inputs"], *metadata["outputs"])]
        return bool(metadata["inputs"]) and all(shape[:1] == [-1] for shape in shapes)

    def _v1(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> str:
        predictions = self.client.predict(self.name, _instances(inputs))
        _compare(predictions, _instances(outputs), "V1 differs from V2")
        return "as V2"

    def _batch(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> str:
        def twice(tensors: list[dict[str, Any]]) -> list[dict[str, Any]]:
            return [
                {**tensor, "shape": [tensor["shape"][0] * 2, *tensor["shape"][1:]], "data": tensor["data"] * 2}
                for tensor in tensors
            ]

        _compare(
            self.client.infer(self.name, twice(inputs)), twice(outputs), "twice the rows differ from the rows alone"
        )
        return "as each row alone"


def _rows(tensor: dict[str, Any]) -> int:
    return tensor["shape"][0] if tensor["shape"] else 0


def _instances(tensors: list[dict[str, Any]]) -> list[Any]:
    """The rows of V1: of the only tensor, or an object with a row of each."""
    nested = {tensor["name"]: _nested(tensor["data"], tensor["shape"]) for tensor in tensors}
    if len(nested) == 1:
        return next(iter(nested.values()))
    return [dict(zip(nested, rows, strict=True)) for rows in zip(*nested.values(), strict=True)]


def _nested(data: list[Any], shape: Sequence[int]) -> list[Any]:
    if len(data) != math.prod(shape):  # nested already
        return data
    for size in reversed(shape[1:]):
        data = [data[start : start + size] for start in range(0, len(data), size)] if size else [[]] * shape[0]
    return data


def _compare(found: Any, expected: Any, what: str) -> None:
    if not _alike(found, expected):
        raise Failed(f"{what}: {_shown(found)}, expected {_shown(expected)}")


def _alike(found: Any, expected: Any) -> bool:
    if isinstance(found, list) and isinstance(expected, list):
        return len(found) == len(expected) and all(map(_alike, found, expected))
    if isinstance(found, dict) and isinstance(expected, dict):
        return found.keys() == expected.keys() and all(_alike(found[key], expected[key]) for key in found)
    if isinstance(found, float) or isinstance(expected, float):
        numbers = isinstance(found, int | float) and isinstance(expected, int | float)
        return numbers and math.isclose(found, expected, rel_tol=1e-4, abs_tol=1e-6)
    return bool(found == expected)


def _shown(value: Any) -> str:
    if isinstance(value, list) and all(isinstance(tensor, dict) and "data" in tensor for tensor in value):
        value = {tensor["name"]: tensor["data"] for tensor in value}
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:59]}…"
