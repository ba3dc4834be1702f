"""Flat JSON to tensors and back, as Triton's generate extension has it."""

import json
from typing import Any

import numpy as np
import pytest

from mpserve.errors import InvalidInput
from mpserve.protocol.declaration import Tensor
from mpserve.protocol.generate import decode_request, encode_response, text_response
from mpserve.protocol.messages import InferOutput, InferRequest, InferResponse
from tests.cases import each

DECLARED = [
    Tensor("text_input", "BYTES", [1]), Tensor("ids", "INT32", [-1]), Tensor("grid", "FP32", [-1, 2]),
    Tensor("open", "FP32", [-1, -1]), Tensor("flag", "BOOL", []),
]  # fmt: skip


def decoded(document: Any, declared: Any = ()) -> InferRequest:
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    return decode_request(body, declared)


@each("name, value, shape, elements", [
    ("text_input", "hello", [1], [b"hello"]), ("text_input", ["hello"], [1], [b"hello"]), ("ids", 7, [1], [7]),
    ("ids", [1, 2, 3], [3], [1, 2, 3]), ("ids", [], [0], []), ("grid", [1, 2, 3, 4], [2, 2], [1, 2, 3, 4]),
    ("open", [1, 2], [1, 2], [1, 2]), ("flag", True, [], [True]),
])  # fmt: skip
def test_a_declared_input_has_its_datatype_and_fits_its_shape(name: str, value: Any, shape: Any, elements: Any) -> None:
    (given,) = decoded({name: value}, DECLARED).inputs
    assert (given.name, given.shape, given.as_numpy().ravel().tolist()) == (name, shape, elements)
    assert given.datatype == {entry[0]: entry[1] for entry in DECLARED}[name]


@each("value, datatype, elements", [
    ("hello", "BYTES", [b"hello"]), (["a", "b"], "BYTES", [b"a", b"b"]), (7, "INT64", [7]), (7.5, "FP64", [7.5]),
    ([1, 2.5], "FP64", [1, 2.5]), (True, "BOOL", [True]),
])  # fmt: skip
def test_without_a_declaration_the_value_says_the_datatype(value: Any, datatype: str, elements: Any) -> None:
    (given,) = decoded({"x": value}).inputs
    assert (given.datatype, given.shape, given.as_numpy().tolist()) == (datatype, [len(elements)], elements)


@each("document, declared, names, parameters", [
    ({"text_input": "a", "parameters": {"ids": [1, 2]}}, DECLARED, ["text_input", "ids"], None),
    ({"text_input": "a", "top_k": 3, "parameters": {"temperature": 0}}, (), ["text_input", "top_k"], {"temperature": 0}),
])  # fmt: skip
def test_within_parameters_only_a_declared_input_is_one(
    document: Any, declared: Any, names: Any, parameters: Any
) -> None:
    request = decoded(document, declared)
    assert ([given.name for given in request.inputs], request.parameters) == (names, parameters)


@each("given, told", [("7", "7"), ("", None), (None, None)])
def test_the_id(given: Any, told: Any) -> None:
    assert decoded({"id": given, "x": 1}).id == told


@each("document, declared, says", [
    (b"{", (), "Unrecognized request format"), ([], (), "the body is a list, expected a JSON object"),
    ({}, (), "no inputs, expected a field such as 'text_input'"),
    ({"other": 1}, DECLARED, "no inputs, expected 'text_input', 'ids', 'grid'"),
    ({"id": 1, "x": 1}, (), "id is a number, expected a string"),
    ({"x": 1, "parameters": 1}, (), "parameters is a number, expected an object"),
    ({"x": 1, "parameters": {"p": [1]}}, (), "parameter 'p' is a list, expected a string, number or boolean"),
    ({"text_input": "a", "other": [1]}, DECLARED, "parameter 'other' is a list"),
    ({"ids": 1, "parameters": {"ids": 1}}, DECLARED, "input 'ids' is there twice"),
    ({"text_input": ["a", "b"]}, DECLARED, r"input 'text_input': 2 elements do not fit shape \[1\]"),
    ({"grid": [1, 2, 3]}, DECLARED, r"input 'grid': 3 elements do not fit shape \[-1,2\]"),
    ({"text_input": 1}, DECLARED, "input 'text_input': element 0 of data is 1, expected a string"),
    ({"ids": [1.5]}, DECLARED, "input 'ids': element 0 of data is 1.5, expected an integer"),
    ({"ids": None}, DECLARED, "input 'ids': element 0 of data is null"),
    ({"x": None}, (), "'x' is null, expected a string, number or boolean"),
    ({"x": {}}, (), "'x' is an object, expected"), ({"x": []}, (), "'x' is a list, expected"),
    ({"x": [1, "a"]}, (), "'x' is a list, expected .* a list of one kind"),
    ({"x": [[1]]}, (), "'x' is a list, expected"),
    (b'{"x": 9223372036854775808}', (), "input 'x': element 0 of data is 9223372036854775808, out of range"),
])  # fmt: skip
def test_what_cannot_be_is_refused_in_words(document: Any, declared: Any, says: str) -> None:
    with pytest.raises(InvalidInput, match=says):
        decoded(document, declared)


def output(name: str, array: Any) -> InferOutput:
    given = np.asarray(array)
    datatype = {"f": "FP32", "i": "INT64", "b": "BOOL", "O": "BYTES"}[given.dtype.kind]
    return InferOutput(name, list(given.shape), datatype, given)


@each("result, outputs", [
    ("hello", {"text_output": "hello"}),
    ({"text_output": "hello", "details": {"finish_reason": "stop"}},
     {"text_output": "hello", "details": {"finish_reason": "stop"}}),
    ({"logits": np.array([0.5, 1.5], np.float32)}, {"logits": [0.5, 1.5]}),
    (InferResponse(None, "m", [output("y", np.array([b"hi"], dtype=object))]), {"y": "hi"}),
    (InferResponse(None, "m", [output("y", np.array([[0.1]], np.float32))]), {"y": 0.1}),
    (InferResponse(None, "m", [output("y", [[1, 2], [3, 4]])]), {"y": [1, 2, 3, 4]}),
    (InferResponse(None, "m", [output("y", np.array([], np.float32))]), {"y": []}),
    (InferResponse(None, "m", [output("y", True)], parameters={"p": 1}), {"p": 1, "y": True}),
])  # fmt: skip
def test_an_answer_is_each_output_by_name(result: Any, outputs: Any) -> None:
    assert json.loads(encode_response(result, "m", "1", None)) == {"model_name": "m", "model_version": "1", **outputs}


def test_a_nan_is_null_if_wanted() -> None:
    response = InferResponse(None, "m", [output("y", np.array([np.nan], np.float32))])
    assert json.loads(encode_response(response, "m", "1", None, "null"))["y"] is None


def test_text_as_a_response() -> None:
    assert text_response("m", "é").outputs == [InferOutput("text_output", [1], "BYTES", ["é"])]
