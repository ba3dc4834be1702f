"""Answers of V2 over REST: plain ones are written in one go, and as the strict writer writes them, to the byte."""

from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mpserve.errors import MPServeError
from mpserve.protocol.codec import Encoded, Inputs, Outputs
from mpserve.protocol.datatypes import DATATYPES
from mpserve.protocol.messages import InferOutput, InferResponse, RequestedOutput
from mpserve.protocol.v2 import codec as v2
from mpserve.protocol.v2.codec import V2Codec, encode_answer
from tests.arrays import arrays
from tests.cases import each

LAYOUTS = {
    "as it is": lambda array: array,
    "column-major": np.asfortranarray,
    "strided": lambda array: np.repeat(array, 2, axis=-1)[..., ::2] if array.ndim else array,
    "reversed": lambda array: array[::-1] if array.ndim else array,
    "transposed": lambda array: array.T,
    "big-endian": lambda array: array.astype(array.dtype.newbyteorder(">")) if array.dtype.kind in "iuf" else array,
    "read-only": lambda array: np.broadcast_to(array, array.shape),
    "nested": lambda array: array.tolist() if array.ndim and array.dtype.kind in "biu" else array,
}
OF_OUTPUT = st.sampled_from([None, {}, {"a": 1}, {"b": float("nan")}])
OF_REQUEST = st.sampled_from([None, {}, {"binary_data_output": True}, {"binary_data_output": False, "a": 1}])
WANTED = st.sampled_from([None, {}, {"binary_data": True}, {"binary_data": False}, {"binary_data": True, "a": 1}])
IDS = st.sampled_from([None, "", "1", "null", 'é"'])
ORDINARY = Inputs([])


def written(codec: V2Codec, inputs: Inputs, outputs: Outputs) -> Any:
    """The answer as the codec and as the strict writer write or refuse it, which is the same."""
    try:
        encoded: Any = codec.write(inputs, outputs)
    except MPServeError as error:
        encoded = type(error), str(error)
    response = outputs.response(inputs) if outputs.tensors is not None else outputs.result
    try:
        chunks = encode_answer(response, inputs.given_to("m", None), codec.nonfinite)
        length = str(chunks.json_length)
        binary = Encoded(chunks.join(), None, {"content-type": v2.OCTETS, "inference-header-content-length": length})
        strict: Any = Encoded(chunks.join(), "application/json") if chunks.json_length is None else binary
    except MPServeError as error:
        strict = type(error), str(error)
    assert encoded == strict
    return encoded


@st.composite
def outputs_of(draw: st.DrawFn, name: str) -> InferOutput:
    datatype = draw(st.sampled_from(DATATYPES))
    array = draw(arrays(datatype, json=draw(st.booleans())))
    shape = array.T.shape if (layout := draw(st.sampled_from(sorted(LAYOUTS)))) == "transposed" else array.shape
    wrong = draw(st.booleans()) and draw(st.booleans()) and draw(st.booleans())
    return InferOutput(name, [*shape, 7] if wrong else shape, datatype, LAYOUTS[layout](array), draw(OF_OUTPUT))


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
@given(st.data(), st.sampled_from(["", "a", "a", "ab"]), st.sampled_from(["error", "null"]))
def test_any_answer_is_written_or_refused_as_by_the_strict_writer(
    data: st.DataObject, names: str, nonfinite: Any
) -> None:
    requested = [RequestedOutput(name, data.draw(WANTED)) for name in names] if data.draw(st.booleans()) else None
    inputs = Inputs([], data.draw(IDS), requested, data.draw(OF_REQUEST))
    version = data.draw(st.sampled_from([None, "1"]))
    if data.draw(st.booleans()):
        datatypes = [data.draw(st.sampled_from(DATATYPES)) for _ in names]
        tensors = [
            (name, datatype, data.draw(arrays(datatype))) for name, datatype in zip(names, datatypes, strict=True)
        ]
        written(V2Codec(nonfinite), inputs, Outputs("m", "1", version, tensors))
    else:
        made = [data.draw(outputs_of(name)) for name in names]
        response = InferResponse(data.draw(IDS), "é", made, version, parameters=data.draw(OF_OUTPUT))  # type: ignore[arg-type]
        written(V2Codec(nonfinite), inputs, Outputs("m", "1", version, None, response))


@each("count", [3, 3000])
@each("datatype", ["FP16", "FP32", "FP64", "BF16"])
def test_what_is_not_finite_is_refused_or_null(count: int, datatype: str) -> None:
    array = np.ones(count, np.float32)
    array[1], array[2] = np.nan, -np.inf
    outputs = Outputs("m", "1", None, [("y", datatype, array)])
    assert "holds NaN or infinity" in written(V2Codec("error"), ORDINARY, outputs)[1]
    answer = orjson.loads(written(V2Codec("null"), ORDINARY, outputs).body)
    assert answer["outputs"][0]["data"][:3] == [1.0, None, None]


NAMES = ["y", "n", "null", '"data":[', '"data":[n', "data\\", "é"]


@each("at", [0, 2500, 4999])
@each("model", NAMES)
@each("name", NAMES)
def test_in_a_long_answer_no_name_hides_what_is_not_finite_nor_is_taken_for_it(name: str, model: str, at: int) -> None:
    finite, spoilt = np.ones(5000), np.ones(5000)
    spoilt[at] = np.nan
    good, bad, other = (name, "FP64", finite), (name, "FP64", spoilt), (f"{name}2", "FP64", finite)
    for tensors in ([bad], [bad, other], [other, bad]):
        assert "holds NaN or infinity" in written(V2Codec("error"), ORDINARY, Outputs(model, "1", None, tensors))[1]
    for tensors in ([good], [good, other]):
        answer = orjson.loads(written(V2Codec("error"), Inputs([], "null"), Outputs(model, "1", None, tensors)).body)
        assert [output["data"] for output in answer["outputs"]] == [finite.tolist()] * len(tensors)


@pytest.mark.parametrize("binary", [True, False])
def test_an_answer_is_in_memory_of_its_own(binary: bool) -> None:
    """A model may use its arrays again in its next predict."""
    array = np.ones(3, np.float32)
    inputs = Inputs([], parameters={"binary_data_output": binary})
    answer = V2Codec("error").write(inputs, Outputs("m", "1", None, [("y", "FP32", array)])).body
    before = bytes(answer)
    array[:] = 2
    assert answer == before
