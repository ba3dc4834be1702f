import pytest

from mpserve.errors import InvalidInput
from mpserve.protocol.json.documents import describe, named_objects, parameters_of, parse_object, show
from tests.cases import each


@each("value, words, shown", [
    ({}, "an object", "an object"), ([1], "a list", "a list"), ("a", "a string", '"a"'), (True, "a boolean", "true"),
    (1, "a number", "1"), (1.5, "a number", "1.5"), (None, "null", "null"), ("x" * 100, "a string", '"' + "x" * 59),
])  # fmt: skip
def test_json_values_are_told_in_words_and_shown_in_few_characters(value, words, shown):
    assert (describe(value), show(value)) == (words, shown)


@each("body", [b'{"a":1}', memoryview(b'{"a":1}')])
def test_an_object_is_parsed_from_bytes_or_a_view_on_them(body):
    assert parse_object(body) == {"a": 1}


def test_objects_that_are_absent_or_null_are_none():
    assert named_objects({}, "inputs") == named_objects({"inputs": None}, "inputs") == []
    assert parameters_of({}) is parameters_of({"parameters": None}) is None


@each("value", [1, 0, "true", 1.0])
def test_a_parameter_that_is_a_switch_is_true_or_false(value):
    assert parameters_of({"parameters": {"switch": True}}, "switch") == {"switch": True}
    assert parameters_of({"parameters": {"switch": value}}) == {"switch": value}
    with pytest.raises(InvalidInput, match=r"parameter 'switch' is .*, expected true or false"):
        parameters_of({"parameters": {"switch": value}}, "switch")
