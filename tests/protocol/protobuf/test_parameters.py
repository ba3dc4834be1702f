import numpy as np
import pytest

from mpserve.errors import InferenceError
from mpserve.protocol.protobuf import inference_pb2 as pb
from mpserve.protocol.protobuf.parameters import read_parameters, write_parameters
from tests.cases import each


@each("value, field", [
    (True, "bool_param"), (-(2**63), "int64_param"), (2**63 - 1, "int64_param"), (2**63, "uint64_param"),
    (2**64 - 1, "uint64_param"), (0.1, "double_param"), (float("inf"), "double_param"), ("", "string_param"),
])  # fmt: skip
def test_a_value_comes_back_as_it_was_sent(value: object, field: str) -> None:
    message = pb.ModelInferResponse()
    write_parameters(message.parameters, {"p": value})
    assert message.parameters["p"].WhichOneof("parameter_choice") == field
    read = read_parameters(message.parameters)
    assert read == {"p": value}
    assert type(read["p"]) is type(value)


def test_numpy_scalars_are_their_values() -> None:
    message = pb.ModelInferResponse()
    write_parameters(message.parameters, {"i": np.int32(3), "f": np.float32(0.5), "b": np.bool_(True)})
    assert read_parameters(message.parameters) == {"i": 3, "f": 0.5, "b": True}


def test_no_parameters_are_none_and_none_is_no_parameter() -> None:
    message = pb.ModelInferResponse()
    write_parameters(message.parameters, None)
    write_parameters(message.parameters, {"p": None})
    assert read_parameters(message.parameters) is None


@each("value", [2**64, -(2**63) - 1, b"x", [1], {"a": 1}])
def test_a_value_that_no_parameter_holds_is_the_models_fault(value: object) -> None:
    with pytest.raises(InferenceError, match=r"parameter 'p' is .*, expected a boolean"):
        write_parameters(pb.ModelInferResponse().parameters, {"p": value})
