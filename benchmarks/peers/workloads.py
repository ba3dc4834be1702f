"""What servers are asked: the same bytes for all of them, and whether an answer is right."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import orjson

from benchmarks.peers.apps import models

Array: TypeAlias = npt.NDArray[np.float32]


class WrongAnswer(Exception):
    """An answer is not what the model says; the message says what came instead."""


@dataclass(frozen=True)
class Workload:
    """A request, and how many connections send it.

    Attributes:
        protocol: ``v2``, ``v1`` or ``binary`` (V2 with the tensor's bytes behind the JSON).
        model: ``identity`` or ``mlp``.
    """

    name: str
    title: str
    protocol: str
    shape: tuple[int, ...]
    connections: int = 16
    model: str = "identity"

    @property
    def is_slow(self) -> bool:
        """Whether one takes tens of milliseconds, so that more time is needed to count enough of them."""
        return math.prod(self.shape) > 100_000

    @cached_property
    def x(self) -> Array:
        return self.other_x(7)

    def other_x(self, seed: int) -> Array:
        return np.random.default_rng(seed).standard_normal(self.shape).astype(np.float32)

    def body(self, x: Array) -> tuple[bytes, dict[str, str]]:
        """The request's body and headers."""
        if self.protocol == "v1":
            body = orjson.dumps({"instances": x}, option=orjson.OPT_SERIALIZE_NUMPY)
            return body, {"Content-Type": "application/json"}
        tensor: dict[str, Any] = {"name": "x", "datatype": "FP32", "shape": x.shape}
        if self.protocol == "v2":
            body = orjson.dumps(
                {"id": "1", "inputs": [tensor | {"data": x.ravel()}]}, option=orjson.OPT_SERIALIZE_NUMPY
            )
            return body, {"Content-Type": "application/json"}
        tensor["parameters"] = {"binary_data_size": x.nbytes}
        head = orjson.dumps({"id": "1", "inputs": [tensor], "parameters": {"binary_data_output": True}})
        headers = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(len(head))}
        return head + x.tobytes(), headers

    def check(self, x: Array, headers: Mapping[str, str], answer: bytes) -> None:
        """Compare an answer, with its headers by lower-case name, with what the model makes of ``x``.

        Raises:
            WrongAnswer: it is another, or cannot be read.
        """
        want: Array = models.expected(self.model, x)  # type: ignore[no-untyped-call]
        try:
            got = self._read(headers, answer)
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise WrongAnswer(f"{self.title}: {error!r} in {answer[:200]!r}") from error
        if got.shape != want.shape or not np.allclose(got, want, rtol=0, atol=1e-5 if self.model == "mlp" else 0):
            raise WrongAnswer(
                f"{self.title}: expected {want.shape} {want.ravel()[:4]}, got {got.shape} {got.ravel()[:4]}"
            )

    def _read(self, headers: Mapping[str, str], answer: bytes) -> Array:
        if self.protocol == "v1":
            return np.array(json.loads(answer)["predictions"], np.float32)
        length = int(headers["inference-header-content-length"]) if self.protocol == "binary" else len(answer)
        output = json.loads(answer[:length])["outputs"][0]
        shape: list[int] = output["shape"]
        if self.protocol == "v2":
            return np.array(output["data"], np.float32).reshape(shape)
        return np.frombuffer(answer[length:], np.float32).reshape(shape)


SMALL = Workload("v2_small", "V2 JSON [1,4]", "v2", (1, 4))
MEDIUM = Workload("v2_medium", "V2 JSON [32,128]", "v2", (32, 128))
LARGE = Workload("v2_large", "V2 JSON [1,3,224,224]", "v2", (1, 3, 224, 224), connections=4)
V1_SMALL = Workload("v1_small", "V1 JSON [1,4]", "v1", (1, 4))
V1_MEDIUM = Workload("v1_medium", "V1 JSON [32,128]", "v1", (32, 128))
BINARY = Workload("binary_large", "V2 binary [1,3,224,224]", "binary", (1, 3, 224, 224), connections=4)
IDENTITY = (SMALL, V1_SMALL, MEDIUM, V1_MEDIUM, LARGE, BINARY)
"""In the order in which they are measured: what is compared with each other shortly after one another."""
MLP = Workload("mlp", "torch MLP", "v2", (1, 128), connections=32, model="mlp")
LOADS = (1, 4, 16, 64)
"""Connections at which latency is looked at, with SMALL."""
