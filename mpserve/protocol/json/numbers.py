"""Long lists of numbers in a JSON text, read into arrays without a Python object for each number.

pysimdjson reads them; where it is not installed, or refuses, orjson reads the text as a whole. What is taken and what is
refused is orjson's to say either way: of numbers, simdjson takes a part of what orjson takes, and takes it exactly.
Knows neither tensors nor messages.
"""

import re
import secrets
from collections.abc import Sequence
from functools import cached_property
from math import prod
from typing import Any, Literal

import numpy as np
import orjson

from mpserve.protocol.datatypes import MAX_RANK, Array

try:
    import simdjson
except ImportError:  # there are no wheels for Python 3.14
    simdjson = None

# Bytes of a list. At 690 (64 numbers) simdjson gained a fifth on orjson, too little to look for the list; at 2800, half.
LONG = 2048

# Lists that are looked at. A request has no more inputs, and a body made of nothing but their beginnings cost 0.1 s for each MB.
MOST = 1024
UNSIGNED = 2.0**63  # from here on an integer is none of 64 bits with a sign
Kind = Literal["d", "i", "u", "any"]
"""What numbers are to be: float64, int64, uint64, or whatever numpy would make of them."""

_DTYPES = {"d": np.float64, "i": np.int64, "u": np.uint64}
_NO_STRUCTURE = bytes(set(range(256)) - set(b"[,]"))
# What stands for a list set aside. No client can write it, since no answer ever holds it.
_PLACEHOLDER = secrets.token_hex(16)


class Numbers:
    """A JSON list, flat or nested, that was parsed but not made Python objects."""

    def __init__(self, text: bytes) -> None:
        """Raises ValueError, RuntimeError or UnicodeDecodeError where simdjson does not take the text."""
        self._text = text
        self._parsed = simdjson.Parser().parse(text)

    def flat(self, kind: Kind, shape: Sequence[int]) -> Array | None:
        """The numbers as what they are to be; None if one cannot be that, or they are neither flat nor as `shape`."""
        array = flattened(self._parsed, self._text, kind)
        if array is None:
            return None
        return array if self._is_flat() or self._is_nested(shape, array.size) else None

    def array(self, kind: Kind) -> Array | None:
        """The numbers as what they are to be, in the shape that they are nested in; None if there is no such array."""
        shape = self.shape
        flat = None if shape is None else flattened(self._parsed, self._text, kind)
        return None if shape is None or flat is None or flat.size != prod(shape) else flat.reshape(shape)

    @cached_property
    def shape(self) -> list[int] | None:
        """How it is nested, an empty list as one of one element; None if unevenly, or deeper than a tensor."""
        if self._is_flat():
            return [self._text.count(b",") + 1]
        return nesting(self._parsed, self._text)

    def to_list(self) -> list[Any]:
        numbers: list[Any] = orjson.loads(self._text)
        return numbers

    def _is_flat(self) -> bool:
        return self._text.find(b"[", 1) < 0

    def _is_nested(self, shape: Sequence[int], size: int) -> bool:
        """Whether brackets and commas are those of a list of that shape: simdjson flattens whatever it is given."""
        if not size or prod(shape) != size:  # without elements a shape may be of any length
            return False
        structure = b""
        for length in reversed(shape):
            structure = b"[" + b",".join([structure] * length) + b"]"
        return self._text.translate(None, _NO_STRUCTURE) == structure


def flattened(parsed: Any, text: bytes, kind: Kind) -> Array | None:
    """The numbers of a list, however nested, that simdjson has parsed in this text; None if one cannot be what it is to be."""
    try:
        if kind != "any":
            return np.frombuffer(parsed.as_buffer(of_type=kind), _DTYPES[kind])
        if b"." in text:  # nearly always where not all are integers
            return np.frombuffer(parsed.as_buffer(of_type="d"), np.float64)
    except (TypeError, ValueError):
        return None
    integers = flattened(parsed, text, "i")
    if integers is not None:  # lest one of more than 53 bits be rounded on the way
        return integers
    floats = flattened(parsed, text, "d")
    return None if floats is None or floats.max() >= UNSIGNED else floats  # numpy has more to say of those


def nesting(parsed: Any, text: bytes) -> list[int] | None:
    """How a list of lists is nested that simdjson has parsed in a text of no other brackets; None as of ``Numbers.shape``."""
    return _of_rows(parsed, text) or _of_brackets(text)


def _of_rows(parsed: Any, text: bytes) -> list[int] | None:
    """Of a list of lists of one length, and nothing deeper: a fifth of what it takes to look at all brackets."""
    try:
        lengths = set(map(len, parsed))
    except TypeError:  # a number among them
        return None
    size = len(parsed)
    if len(lengths) > 1 or 0 in lengths:
        return None
    # To leave them out is the quickest way to count them: of 33 in 45 kB it takes 4 µs, where Python's count takes 18.
    brackets = len(text) - len(text.replace(b"[", b""))
    return [size, lengths.pop()] if brackets == 1 + size else None


def _of_brackets(text: bytes) -> list[int] | None:
    structure = text.translate(None, _NO_STRUCTURE)
    rank = len(structure) - len(structure.lstrip(b"["))
    if rank > MAX_RANK:
        return None
    shape: list[int] = []
    unit = b""
    for depth in range(1, rank + 1):
        # The first list of this depth begins among the leading brackets, and ends where so many lists end.
        first = structure[rank - depth : structure.find(b"]" * depth) + depth]
        shape.insert(0, (len(first) - 1) // (len(unit) + 1))
        unit = b"[" + b",".join([unit] * shape[0]) + b"]"
        if unit != first:
            return None
    return shape if unit == structure else None


def has_more(text: bytes, byte: bytes, number: int) -> bool:
    """Whether a byte is more than so many times in a text. To find it takes a tenth of what it takes to count it."""
    at = -1
    for _ in range(number + 1):
        at = text.find(byte, at + 1)
        if at < 0:
            return False
    return True


def parse_with_numbers(body: bytes, key: str) -> Any:
    """The document, in which long lists under `key`, in it or in the objects of its lists, are ``Numbers``; None without any.

    Nothing is said about errors: also None if the document is in any way not a plain one.
    """
    if simdjson is None or len(body) < LONG:
        return None
    found: dict[str, Numbers] = {}
    pieces, end = [], 0
    for start, stop in _long_lists(body, key):
        name = f"{_PLACEHOLDER}{len(found)}"
        try:
            found[name] = Numbers(body[start:stop])
        except (ValueError, RuntimeError):  # UnicodeDecodeError is a ValueError
            return None
        pieces += [body[end:start], f'"{name}"'.encode()]
        end = stop
    if not found:
        return None
    try:
        document = orjson.loads(b"".join([*pieces, body[end:]]))
    except orjson.JSONDecodeError:
        return None
    _put_back(document, key, found)
    return None if found else document  # one that is left stood elsewhere


def _long_lists(body: bytes, key: str) -> list[tuple[int, int]]:
    """Where in the body there are lists under `key`, without a string or object in them.

    Text inside a string may look like it; the list is then cut out of there, and not found again by ``_put_back``.
    """
    begin = re.compile(rb'"%s"[ \t\n\r]*:[ \t\n\r]*\[' % key.encode())
    lists: list[tuple[int, int]] = []
    position = looked_at = 0
    while match := begin.search(body, position):
        looked_at += 1
        if looked_at > MOST:
            return []
        start = match.end() - 1
        # A list of numbers ends before the next key, or the end of its object.
        quote = body.find(b'"', start)
        limit = quote if quote >= 0 else len(body)
        brace = body.find(b"}", start, limit)  # no further, lest many lists are looked at to the body's end each
        stop = body.rfind(b"]", start, brace if brace >= 0 else limit) + 1
        if stop - start >= LONG:
            lists.append((start, stop))
        position = max(stop, match.end())
    return lists


def _put_back(document: Any, key: str, found: dict[str, Numbers]) -> None:
    if not isinstance(document, dict):
        return
    listed = [entry for entries in document.values() if isinstance(entries, list) for entry in entries]
    for holder in (document, *listed):
        name = holder.get(key) if isinstance(holder, dict) else None
        if isinstance(name, str) and name in found:
            holder[key] = found.pop(name)
