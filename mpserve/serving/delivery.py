"""What a V2 request wants done with its outputs, instead of having them sent as the model gave them.

It is read before the model is asked, so that what cannot be done costs nobody an inference, and taken out of the request:
a model that sends the request on gets values back, and here is where they are done with as the client asked.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from mpserve.errors import InvalidInput
from mpserve.protocol.documents import MAX_SHOWN, show
from mpserve.protocol.messages import InferOutput, InferRequest, Parameters, RequestedOutput
from mpserve.protocol.tensors import REGION
from mpserve.serving import shared_memory
from mpserve.serving.classification import classified
from mpserve.serving.host import ModelHost
from mpserve.serving.regions import Window

CLASSIFICATION = "classification"
OURS = frozenset({CLASSIFICATION, *shared_memory.PARAMETERS})


class Delivery(NamedTuple):
    """What is to be done with one output: made so many classes of, if any, then put in a place, if in any."""

    classes: int | None = None
    place: Window | None = None

    def of(self, output: InferOutput) -> InferOutput:
        """The output as it is to be sent.

        Raises:
            InvalidInput: that cannot be done with an output such as this.
        """
        if self.classes is not None:
            output = classified(output, self.classes)
        return output if self.place is None else shared_memory.put(output, self.place)


Deliveries = Mapping[str, Delivery]
"""By the name of the output."""

NOTHING: Deliveries = {}
"""What most requests ask for."""


def take_deliveries(request: InferRequest, host: ModelHost) -> Deliveries:
    """What is asked for, which the request does not say any more from then on.

    Raises:
        InvalidInput: a parameter is not as its extension has it, or names memory that there is not.
        NotSupported: it is to go to shared memory, which this server does not offer.
    """
    return {
        wanted.name: _taken(wanted, wanted.parameters, host)
        for wanted in request.request_outputs
        if wanted.parameters and not OURS.isdisjoint(wanted.parameters)
    }


def _taken(wanted: RequestedOutput, parameters: Parameters, host: ModelHost) -> Delivery:
    what = f"output '{wanted.name[:MAX_SHOWN]}'"
    classes = _classes(parameters[CLASSIFICATION], what) if CLASSIFICATION in parameters else None
    place = shared_memory.window(parameters, host.regions, what) if REGION in parameters else None
    wanted.parameters = {name: value for name, value in parameters.items() if name not in OURS} or None
    return Delivery(classes, place)


def _classes(count: Any, what: str) -> int:
    if type(count) is not int or count < 1:
        raise InvalidInput(f"{what}: parameter '{CLASSIFICATION}' is {show(count)}, expected an integer of 1 or more")
    return count
