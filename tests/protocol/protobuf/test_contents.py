import numpy as np
import pytest

from mpserve.errors import InvalidInput
from mpserve.protocol.datatypes import numpy_dtype
from mpserve.protocol.protobuf import contents
from mpserve.protocol.protobuf import inference_pb2 as pb
from tests.cases import each

VALUES = {
    "BOOL": [True, False, True], "INT8": [-128, 127], "INT16": [-32768, 32767], "INT32": [-(2**31), 2**31 - 1],
    "INT64": [-(2**63), 2**63 - 1], "UINT8": [0, 255], "UINT16": [0, 65535], "UINT32": [0, 2**32 - 1],
    "UINT64": [0, 2**64 - 1], "FP32": [1.5, float("inf"), -0.0, 1e-45], "FP64": [0.1, float("-inf"), 5e-324],
    "BYTES": [b"", b"a\x00", "ü".encode()],
}  # fmt: skip


@each("datatype", VALUES)
def test_elements_keep_their_values_both_ways(datatype: str) -> None:
    array = np.array(VALUES[datatype], dtype=numpy_dtype(datatype))
    sent = pb.InferTensorContents.FromString(contents.serialised(array, datatype))
    assert sent == pb.InferTensorContents(**{contents.FIELDS[datatype]: VALUES[datatype]})
    received = contents.to_array(sent, datatype)
    assert received.dtype == array.dtype
    assert received.tolist() == array.tolist()
    assert sent == pb.InferTensorContents(**{contents.FIELDS[datatype]: VALUES[datatype]})


@each("datatype", [*VALUES, "FP16"])
def test_no_elements_are_an_empty_array(datatype: str) -> None:
    received = contents.to_array(pb.InferTensorContents(), datatype)
    assert (received.dtype, received.shape) == (numpy_dtype(datatype), (0,))


def test_a_strided_array_is_sent_row_by_row() -> None:
    array = np.arange(12, dtype=np.float32).reshape(3, 4)[::2, ::-1]
    sent = pb.InferTensorContents.FromString(contents.serialised(array, "FP32"))
    assert list(sent.fp32_contents) == array.ravel().tolist()


def test_unknown_fields_do_not_shift_the_elements() -> None:
    sent = pb.InferTensorContents(fp32_contents=[1, 2]).SerializeToString()
    received = pb.InferTensorContents.FromString(sent + b"\xfa\x06\x03abc")
    assert contents.to_array(received, "FP32").tolist() == [1, 2]


@each("given, datatype, says", [
    ({"int_contents": [1]}, "FP32", "got int_contents, expected fp32_contents, which holds FP32"),
    ({"fp32_contents": [1], "int_contents": [1]}, "FP32", "got int_contents, fp32_contents, expected fp32_contents"),
    ({"fp32_contents": [1]}, "FP16", "got fp32_contents, expected raw contents: FP16 has no typed ones"),
    ({"int_contents": [1, 300]}, "INT8", "element 1 of data is 300, out of range for INT8"),
    ({"uint_contents": [256]}, "UINT8", "element 0 of data is 256, out of range for UINT8"),
    ({"int_contents": [1]}, "FP31", "unknown datatype 'FP31'"),
])  # fmt: skip
def test_what_does_not_fit_the_datatype_is_the_clients_fault(
    given: dict[str, list[int]], datatype: str, says: str
) -> None:
    with pytest.raises(InvalidInput, match=says):
        contents.to_array(pb.InferTensorContents(**given), datatype)
