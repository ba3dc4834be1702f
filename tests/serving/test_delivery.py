"""What a request wants done with its outputs: read once, refused early, taken out of the request."""

from typing import Any

import pytest

from mpserve.errors import InvalidInput
from mpserve.protocol.messages import InferInput, InferRequest, RequestedOutput
from mpserve.serving.delivery import Delivery, take_deliveries
from mpserve.serving.host import ModelHost
from mpserve.settings import Settings

HOST = ModelHost(Settings())


def request(*wanted: RequestedOutput) -> InferRequest:
    return InferRequest("m", [InferInput("x", [1], "INT64", [1])], request_outputs=list(wanted))


@pytest.mark.parametrize(
    ("parameters", "classes", "left"),
    [
        (None, None, None),
        ({"binary_data": True}, None, {"binary_data": True}),
        ({"classification": 2}, 2, None),
        ({"classification": 1, "binary_data": False}, 1, {"binary_data": False}),
    ],
)
def test_what_is_asked_for_is_taken_out_of_the_request(parameters: Any, classes: int | None, left: Any) -> None:
    asked = request(RequestedOutput("y", parameters))
    assert take_deliveries(asked, HOST) == ({} if classes is None else {"y": Delivery(classes)})
    assert asked.request_outputs == [RequestedOutput("y", left)]


@pytest.mark.parametrize(
    ("count", "shown"), [(0, "0"), (-1, "-1"), (1.0, "1.0"), (True, "true"), ("2", '"2"'), (None, "null")]
)
def test_a_number_of_classes_that_is_none_is_refused(count: Any, shown: str) -> None:
    with pytest.raises(InvalidInput, match=f"^output 'y': parameter 'classification' is {shown}, expected an integer"):
        take_deliveries(request(RequestedOutput("y", {"classification": count})), HOST)
