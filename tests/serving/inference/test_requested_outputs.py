"""The outputs that a request asks for: which, in which order, and what is done with each."""

from typing import Any

import numpy as np
import pytest

from mpserve.config.settings import Settings
from mpserve.errors import InvalidInput
from mpserve.protocol.codec import Inputs, Outputs
from mpserve.protocol.messages import RequestedOutput
from mpserve.serving.inference.requested_outputs import NOTHING, Treatment, select, take_treatments
from mpserve.serving.repository.host import ModelHost
from tests.cases import each

HOST = ModelHost(Settings())
TENSORS = [("y", "FP32", np.float32([[0.1, 0.7, 0.2]])), ("z", "INT64", np.int64([7]))]


@each("parameters, classes, left", [
    (None, None, None), ({"binary_data": True}, None, {"binary_data": True}), ({"classification": 2}, 2, None),
    ({"classification": 1, "binary_data": False}, 1, {"binary_data": False}),
])  # fmt: skip
def test_a_treatment_is_taken_out_of_the_request(parameters: Any, classes: int | None, left: Any) -> None:
    requested = [RequestedOutput("y", parameters)]
    assert take_treatments(requested, HOST) == ({} if classes is None else {"y": Treatment(classes)})
    assert requested == [RequestedOutput("y", left)]


@each("count, shown", [(0, "0"), (-1, "-1"), (1.0, "1.0"), (True, "true"), ("2", '"2"'), (None, "null")])
def test_a_count_of_classes_that_is_no_count_is_refused(count: Any, shown: str) -> None:
    with pytest.raises(InvalidInput, match=f"^output 'y': parameter 'classification' is {shown}, expected an integer"):
        take_treatments([RequestedOutput("y", {"classification": count})], HOST)


def selected(*names: str, classes: int | None = None) -> Outputs:
    inputs = Inputs(TENSORS, requested=[RequestedOutput(name) for name in names])
    treatments = NOTHING if classes is None else {"y": Treatment(classes)}
    outputs = Outputs("m", "1", None, TENSORS)
    select(inputs, outputs, treatments)
    return outputs


@each("names", [("y",), ("z",), ("z", "y"), ("y", "y")])
def test_outputs_come_as_and_in_the_order_that_they_are_asked_for(names: tuple[str, ...]) -> None:
    assert [name for name, _, _ in selected(*names).tensors or ()] == list(names)
    assert [output.name for output in selected(*names, classes=1).result.outputs] == list(names)


@each("classes", [None, 1])
def test_an_output_that_is_not_there_is_the_clients_fault(classes: int | None) -> None:
    with pytest.raises(InvalidInput, match=r"^Unexpected inference output 'a' for model 'm'; expected 'y', 'z'$"):
        selected("y", "a", classes=classes)


def test_an_output_is_classified_and_its_neighbour_left_alone() -> None:
    y, z = selected("y", "z", classes=1).result.outputs
    assert y.as_numpy().tolist() == [[b"0.7:1"]]
    assert z.as_numpy().tolist() == [7]
