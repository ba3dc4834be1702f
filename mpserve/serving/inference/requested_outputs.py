"""The outputs that a V2 request asks for: which, and what is to be done with each before it is sent.

What is to be done is read before the model is asked, so that what cannot be done costs nobody an inference, and taken out of
the request: a model that sends the request on gets values back, which are done with here as the client asked.

Source: Open Inference Protocol, "Request Output"; Triton's classification and shared memory extensions.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from mpserve.errors import InvalidInput
from mpserve.protocol.codec import Inputs, Outputs
from mpserve.protocol.json.documents import MAX_SHOWN, show
from mpserve.protocol.messages import InferOutput, InferResponse, Parameters, RequestedOutput
from mpserve.protocol.tensors import REGION
from mpserve.serving.extensions.classification import classified
from mpserve.serving.repository.host import ModelHost
from mpserve.serving.shared_memory import tensors as shared_memory
from mpserve.serving.shared_memory.regions import RegionView

CLASSIFICATION = "classification"
OURS = frozenset({CLASSIFICATION, *shared_memory.PARAMETERS})


class Treatment(NamedTuple):
    """What is to be done with one output: made so many classes of, if any, then put in a place, if in any."""

    classes: int | None = None
    place: RegionView | None = None

    def of(self, output: InferOutput) -> InferOutput:
        """The output as it is to be sent. Raises InvalidInput if that cannot be done with an output such as this."""
        if self.classes is not None:
            output = classified(output, self.classes)
        return output if self.place is None else shared_memory.put(output, self.place)


Treatments = Mapping[str, Treatment]  # by the name of the output

NOTHING: Treatments = {}  # what most requests ask for


def take_treatments(requested: list[RequestedOutput], host: ModelHost) -> Treatments:
    """What is to be done with the outputs, which the request does not say any more from then on.
    Raises InvalidInput if a parameter is not as its extension has it, or names memory that there is not; NotSupported if an
    output is to go to shared memory, which this server does not offer.
    """
    return {
        wanted.name: _taken(wanted, wanted.parameters, host)
        for wanted in requested
        if wanted.parameters and not OURS.isdisjoint(wanted.parameters)
    }


def completed(response: InferResponse, request_id: str | None, version: str | None) -> InferResponse:
    """A response with the id of its request and the version that the answer names, where the model has set none.

    It is a copy, since a model may well give the same object for every request.
    """
    copy = object.__new__(InferResponse)
    vars(copy).update(vars(response))
    copy.id = request_id if response.id is None else response.id
    copy.model_version = response.model_version or version
    return copy


def select(inputs: Inputs, outputs: Outputs, treatments: Treatments) -> Outputs:
    """The outputs that the request asks for, in its order, each treated as it asks.
    Raises InvalidInput if an output is not there, or cannot be treated so; InferenceError if an output does not fit its
    declaration.
    """
    tensors, requested = outputs.tensors, inputs.requested or ()
    if tensors is not None and not treatments:
        by_name = {}
        for tensor in tensors:
            by_name[tensor[0]] = tensor
        selected = []
        for wanted in requested:
            if wanted.name not in by_name:
                raise _unexpected(wanted.name, outputs.model_name, list(by_name))
            selected.append(by_name[wanted.name])
        return outputs._replace(tensors=selected)
    response = outputs.response(inputs) if tensors is not None else outputs.result
    if not isinstance(response, InferResponse):
        return outputs
    treated = []
    for wanted in requested:
        output = response.get_output_by_name(wanted.name)
        if output is None:
            raise _unexpected(wanted.name, response.model_name, [output.name for output in response.outputs])
        treated.append(treatments[wanted.name].of(output) if wanted.name in treatments else output)
    response.outputs = treated
    return outputs._replace(tensors=None, result=response)


def _unexpected(name: str, model_name: str, there: list[str]) -> InvalidInput:
    expected = ", ".join(map(repr, there)) or "none"
    return InvalidInput(f"Unexpected inference output {name!r} for model {model_name!r}; expected {expected}")


def _taken(wanted: RequestedOutput, parameters: Parameters, host: ModelHost) -> Treatment:
    what = f"output '{wanted.name[:MAX_SHOWN]}'"
    classes = _classes(parameters[CLASSIFICATION], what) if CLASSIFICATION in parameters else None
    place = shared_memory.window(parameters, host.regions, what) if REGION in parameters else None
    wanted.parameters = {name: value for name, value in parameters.items() if name not in OURS} or None
    return Treatment(classes, place)


def _classes(count: Any, what: str) -> int:
    if type(count) is not int or count < 1:
        raise InvalidInput(f"{what}: parameter '{CLASSIFICATION}' is {show(count)}, expected an integer of 1 or more")
    return count
