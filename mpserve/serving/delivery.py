"""What a V2 request wants done with its outputs, instead of having them sent as the model gave them.

It is read before the model is asked, so that what cannot be done costs nobody an inference, and taken out of the request:
a model that sends the request on gets values back, and here is where they are done with as the client asked.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from mpserve.errors import InvalidInput
from mpserve.protocol.documents import MAX_SHOWN, show
from mpserve.protocol.messages import InferOutput, InferRequest, RequestedOutput
from mpserve.serving.classification import classified

CLASSIFICATION = "classification"


class Delivery(NamedTuple):
    """What is to be done with one output."""

    classes: int

    def of(self, output: InferOutput) -> InferOutput:
        """The output as it is to be sent.

        Raises:
            InvalidInput: that cannot be done with an output such as this.
        """
        return classified(output, self.classes)


Deliveries = Mapping[str, Delivery]
"""By the name of the output; most requests have none."""


def take_deliveries(request: InferRequest) -> Deliveries:
    """What is asked for, which the request does not say any more from then on.

    Raises:
        InvalidInput: a parameter is not as its extension has it.
    """
    return {
        wanted.name: Delivery(_classes(wanted))
        for wanted in request.request_outputs
        if wanted.parameters and CLASSIFICATION in wanted.parameters
    }


def _classes(wanted: RequestedOutput) -> int:
    count = _take(wanted, CLASSIFICATION)
    if type(count) is not int or count < 1:
        raise InvalidInput(
            f"output '{wanted.name[:MAX_SHOWN]}': parameter '{CLASSIFICATION}' is {show(count)}, expected an integer of"
            " 1 or more"
        )
    return count


def _take(wanted: RequestedOutput, name: str) -> Any:
    """A parameter, of which nothing is left."""
    parameters = dict(wanted.parameters or {})
    value = parameters.pop(name, None)
    wanted.parameters = parameters or None
    return value
