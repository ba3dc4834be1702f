import numpy as np

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


def test_unknown_fields_do_not_shift_the_elements() -> None:
    sent = pb.InferTensorContents(fp32_contents=[1, 2]).SerializeToString()
    received = pb.InferTensorContents.FromString(sent + b"\xfa\x06\x03abc")
    assert contents.to_array(received, "FP32").tolist() == [1, 2]
