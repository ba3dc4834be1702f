"""Random tensors of every datatype, of ranks 0 to 4 and with sizes of zero; and all that can be told of tensors."""

from collections.abc import Callable
from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from mpserve.errors import MPServeError
from mpserve.protocol.codec import Inputs
from mpserve.protocol.datatypes import Array, numpy_dtype

SHAPES = npst.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)


def arrays(datatype: str, json: bool = False) -> st.SearchStrategy[Array]:
    """Arrays of any bits, and so of every NaN and subnormal; with `json` only what JSON can carry."""
    if datatype == "BYTES":
        elements = st.text().map(str.encode) if json else st.binary()
        return npst.arrays(object, SHAPES, elements=elements, fill=st.nothing())
    dtype = numpy_dtype(datatype)
    if datatype == "BOOL":
        return npst.arrays(dtype, SHAPES)
    if json and dtype.kind == "f":
        finite = npst.from_dtype(dtype, allow_nan=False, allow_infinity=False)
        return npst.arrays(dtype, SHAPES, elements=finite)
    made = npst.arrays(f"u{dtype.itemsize}", SHAPES).map(lambda bits: bits.view(dtype))
    # BF16, whose kind is no float's to numpy, is filtered instead.
    return made.filter(_is_finite) if json else made


def _is_finite(array: Array) -> bool:
    with np.errstate(all="ignore"):  # numpy warns of a NaN of BF16, on some processors
        return bool(np.isfinite(array.astype(np.float64)).all())


def bits(array: Array) -> Any:
    """All that can be told of an array."""
    contents = array.tolist() if array.dtype.kind == "O" else array.tobytes()
    return array.dtype, array.shape, contents, array.flags.writeable


def same(one: Array, other: Array) -> bool:
    """Whether they are the same tensor, bit for bit."""
    if one.dtype.kind == "O":
        return (one.shape, one.tolist()) == (other.shape, other.tolist())
    return (one.dtype, one.shape, one.tobytes()) == (other.dtype, other.shape, other.tobytes())


def told(inputs: Inputs) -> Any:
    """All that a model can be told of a request, whichever reader has read it."""
    request = inputs.given_to("m", None)
    tensors = [
        (given.name, given.datatype, given.shape, given.parameters, bits(given.as_numpy())) for given in request.inputs
    ]
    assert [name_and_type for *name_and_type, _ in inputs.arrays(())] == [
        [name, datatype] for name, datatype, *_ in tensors
    ]
    wanted = [(output.name, output.parameters) for output in inputs.requested or ()]
    assert wanted == [(output.name, output.parameters) for output in request.request_outputs]
    return inputs.id, request.id, inputs.parameters or None, request.parameters or None, wanted, inputs.state, tensors


def outcome(read: Callable[..., Inputs], *arguments: Any) -> Any:
    """All that can be told of the request that is read, or the kind and the words of its refusal."""
    try:
        return told(read(*arguments))
    except MPServeError as error:
        return type(error), str(error)
