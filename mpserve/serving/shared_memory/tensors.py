"""Tensors in shared memory, which clients name by the parameters of a tensor without data.

An input becomes an ordinary input before the model sees it: a copy, which the model may not write to. The client must not change
the memory before it has the answer. An output is written to the memory, and sent without data.

Source: Triton's docs/protocol/extension_shared_memory.md.
"""

from typing import Any, Protocol

from mpserve.errors import InvalidInput, RegionNotFound
from mpserve.protocol.binary import decode_tensor, encode_tensor
from mpserve.protocol.json.documents import MAX_SHOWN, show
from mpserve.protocol.messages import InferInput, InferOutput, InferRequest, Parameters
from mpserve.protocol.tensors import REGION
from mpserve.serving.shared_memory.regions import Regions, RegionView

OFFSET, SIZE = "shared_memory_offset", "shared_memory_byte_size"
PARAMETERS = (REGION, OFFSET, SIZE)


def window(parameters: Parameters, regions: Regions, what: str) -> RegionView:
    """The memory that the parameters name; ``what`` names the tensor in messages.
    Raises RegionNotFound for an unknown region; InvalidInput if a parameter is missing or wrong, or the region is too short.
    """
    name = parameters[REGION]
    try:
        if not isinstance(name, str):
            raise InvalidInput(f"{REGION} is {show(name)}, expected a string")
        return regions.window(name, _bytes(OFFSET, parameters.get(OFFSET, 0)), _bytes(SIZE, parameters.get(SIZE)))
    except (InvalidInput, RegionNotFound) as error:
        raise type(error)(f"{what}: {error}") from None


class Holder(Protocol):
    """The owner of the regions. ``regions`` raises NotSupported if the server was started without shared memory."""

    @property
    def regions(self) -> Regions: ...


def fetch_inputs(request: InferRequest, holder: Holder) -> None:
    """Make ordinary inputs of the inputs in shared memory. Raises as ``Holder.regions`` and ``fetch``."""
    for given in request.inputs:
        if given.parameters and given.in_shared_memory:
            fetch(given, holder.regions)


def fetch(given: InferInput, regions: Regions) -> None:
    """Give an input the data that its parameters name, and remove the parameters.
    Raises as ``window``, and InvalidInput if the data does not fit the datatype and shape of the input.
    """
    parameters = given.parameters or {}
    what = f"input '{given.name[:MAX_SHOWN]}'"
    memory = window(parameters, regions, what).read()
    given.set_data_from_numpy(decode_tensor(memory, given.datatype, given.shape, what))
    given.parameters = {name: value for name, value in parameters.items() if name not in PARAMETERS} or None


def put(output: InferOutput, place: RegionView) -> InferOutput:
    """Write an output to ``place``; returns the output to send, with the number of its bytes.
    Raises InvalidInput if the output is larger than the place; InferenceError if it does not fit its declaration.
    """
    array = output.as_numpy()
    try:
        data = encode_tensor(array, output.datatype)
    except TypeError:
        raise output.missing_text() from None
    if len(data) > place.byte_size:
        raise InvalidInput(
            f"output '{output.name}' has {len(data)} bytes, expected at most the {place.byte_size} of its {SIZE}"
        )
    place.write(data)
    parameters = {**(output.parameters or {}), REGION: place.region.name, SIZE: len(data)}
    if place.offset:
        parameters[OFFSET] = place.offset
    return InferOutput(output.name, array.shape, output.datatype, None, parameters)


def _bytes(parameter: str, value: Any) -> int:
    if type(value) is not int or value < 0:
        raise InvalidInput(f"{parameter} is {show(value)}, expected a number of bytes")
    return value
