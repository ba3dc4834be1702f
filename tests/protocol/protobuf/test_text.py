"""protobuf's text format, read as protobuf reads it."""

from typing import Any

import pytest

from mpserve.errors import InvalidInput
from mpserve.protocol.protobuf.text import parse
from tests.cases import each


@each("text, expected", [
    ("", {}),
    ('name: "a" # of it\nmax_batch_size: 8', {"name": ["a"], "max_batch_size": [8]}),
    ("dims: [ -1, 3 ] dims: 4", {"dims": [-1, 3, 4]}),
    ("dims: []", {"dims": []}),
    ('input [ { name: "x" }, { name: \'y\' } ]', {"input": [{"name": ["x"]}, {"name": ["y"]}]}),
    ('input { name: "x" }\ninput: < name: "y", >;', {"input": [{"name": ["x"]}, {"name": ["y"]}]}),
    ("a: true b: false c: KIND_CPU d: 1e-3 e: 0x1F f: .5 g: -2", {
        "a": [True], "b": [False], "c": ["KIND_CPU"], "d": [0.001], "e": [31], "f": [0.5], "g": [-2]}),
    (r'''a: "one " 'two' "\t\"\101\x41ä"''', {"a": ['one two\t"AAä']}),
    ("version_policy: { specific { versions: [1, 3] } }", {"version_policy": [{"specific": [{"versions": [1, 3]}]}]}),
    ('a { b: "}#" } ', {"a": [{"b": ["}#"]}]}),
])  # fmt: skip
def test_a_text_is_its_fields(text: str, expected: dict[str, Any]) -> None:
    assert parse(text) == expected


@each("text, words", [
    ("a: 1\nb {", "line 2: expected the name of a field, got 'the end'"),
    ("a 1", "line 1: expected a value of a, got '1'"),
    ("a:\n: 1", "line 2: expected a value of a, got ':'"),
    ("a: [1 2]", "line 1: expected ',' or ']' in a, got '2'"),
    ("\n\na: 1.2.3", "line 3: a is '1.2.3', expected a number"),
    ('a: "x', "line 1: unexpected '\"'"),
    ("a { } }", "line 1: expected the name of a field, got '}'"),
    ("a {" * 60, "line 1: messages are nested more than 50 deep"),
])  # fmt: skip
def test_a_text_that_is_no_message_is_refused_with_its_line(text: str, words: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        parse(text)
    assert str(refused.value) == words
