"""The outputs that a V2 request asks for: which outputs, and how each is treated before it is sent.

The treatments are read before the model runs, so an impossible treatment costs no inference. They are removed from the
request: a model that forwards the request gets plain outputs back, which are treated here.

Source: Open Inference Protocol, "Request Output"; Triton's classification and shared memory extensions.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from mpserve.errors import InvalidInput
from mpserve.protocol.codec import Inputs, Outputs
from mpserve.protocol.json.documents import MAX_SHOWN, show
from mpserve.protocol.messages import InferOutput, InferResponse, Parameters, RequestedOutput, unexpected_output
from mpserve.protocol.tensors import REGION
from mpserve.serving.extensions.classification import classified
from mpserve.serving.repository.host import ModelHost
from mpserve.serving.shared_memory import tensors as shared_memory
from mpserve.serving.shared_memory.regions import RegionView

CLASSIFICATION = "classification"
OURS = frozenset({CLASSIFICATION, *shared_memory.PARAMETERS})


class Treatment(NamedTuple):
    """The treatment of an output: its number of classes, if it is classified, and its region, if it goes to shared memory."""

    classes: int | None = None
    place: RegionView | None = None

    def of(self, output: InferOutput) -> InferOutput:
        """The output as it is sent. Raises InvalidInput if the output cannot be treated so."""
        if self.classes is not None:
            output = classified(output, self.classes)
        return output if self.place is None else shared_memory.put(output, self.place)


Treatments = Mapping[str, Treatment]  # by the name of the output
NOTHING: Treatments = {}


def take_treatments(requested: list[RequestedOutput], host: ModelHost) -> Treatments:
    """Read the treatments of the outputs, and remove them from the request.
    Raises InvalidInput for a wrong parameter or an unknown region; NotSupported if this server offers no shared memory.
    """
    return {
        wanted.name: _taken(wanted, wanted.parameters, host)
        for wanted in requested
        if wanted.parameters and not OURS.isdisjoint(wanted.parameters)
    }


def completed(response: InferResponse, request_id: str | None, version: str | None) -> InferResponse:
    """A copy of the response, with the id of the request and the version if the model has set none.
    The model may return the same object for every request.
    """
    copy = object.__new__(InferResponse)
    vars(copy).update(vars(response))
    copy.id = request_id if response.id is None else response.id
    copy.model_version = response.model_version or version
    return copy


def select(inputs: Inputs, outputs: Outputs, treatments: Treatments) -> None:
    """Leave only the outputs that the request asks for, in its order, each with its treatment.
    Raises InvalidInput if an output is missing or cannot be treated so; InferenceError if it does not fit its declaration.
    """
    tensors, requested = outputs.tensors, inputs.requested or ()
    if tensors is not None and not treatments:
        by_name = {}
        for tensor in tensors:
            by_name[tensor[0]] = tensor
        selected = []
        for wanted in requested:
            if wanted.name not in by_name:
                raise unexpected_output(wanted.name, outputs.model_name, list(by_name))
            selected.append(by_name[wanted.name])
        outputs.tensors = selected
        return
    response = outputs.response(inputs) if tensors is not None else outputs.result
    if not isinstance(response, InferResponse):
        return
    treated = []
    for wanted in requested:
        output = response.get_output_by_name(wanted.name)
        if output is None:
            raise unexpected_output(wanted.name, response.model_name, [output.name for output in response.outputs])
        treated.append(treatments[wanted.name].of(output) if wanted.name in treatments else output)
    response.outputs = treated
    outputs.tensors, outputs.result = None, response


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
