"""Reads long lists of numbers in a JSON text into arrays, without a Python object for each number.

pysimdjson reads them. If it is not installed, or refuses a text, orjson reads the whole text. Both accept the same texts here:
of numbers, simdjson takes a part of what orjson takes, and takes it exactly. Knows neither tensors nor messages.
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
except ImportError:  # an extra
    simdjson = None

LONG = 2048  # bytes of a list; shorter lists gain less from simdjson than the search for them costs

MOST = 1024  # lists that are looked at: more than a request has, and few enough to bound the search
UNSIGNED = 2.0**63  # from here on an integer is none of 64 bits with a sign
Kind = Literal["d", "i", "u", "any"]
"""The dtype of numbers: float64, int64, uint64, or the dtype that numpy would choose."""

_DTYPES = {"d": np.float64, "i": np.int64, "u": np.uint64}
_NO_STRUCTURE = bytes(set(range(256)) - set(b"[,]"))
_PLACEHOLDER = secrets.token_hex(16)  # replaces a list; no client can know it, since no answer holds it


class Numbers:
    """A JSON list, flat or nested, that was parsed without Python objects."""

    def __init__(self, text: bytes) -> None:
        """Raises ValueError, RuntimeError or UnicodeDecodeError if simdjson does not take the text."""
        self._text = text
        self._parsed = simdjson.Parser().parse(text)

    def flat(self, kind: Kind, shape: Sequence[int]) -> Array | None:
        """The numbers as a flat array; None if they do not fit `kind`, or are neither flat nor nested as `shape`."""
        array = flattened(self._parsed, self._text, kind)
        if array is None:
            return None
        return array if self._is_flat() or self._is_nested(shape, array.size) else None

    def array(self, kind: Kind) -> Array | None:
        """The numbers as an array of their own shape; None if there is no such array."""
        shape = self.shape
        flat = None if shape is None else flattened(self._parsed, self._text, kind)
        return None if shape is None or flat is None or flat.size != prod(shape) else flat.reshape(shape)

    @cached_property
    def shape(self) -> list[int] | None:
        """The shape of the list, [1] for an empty list; None if it is uneven, or deeper than a tensor."""
        if self._is_flat():
            return [self._text.count(b",") + 1]
        return nesting(self._parsed, self._text)

    def to_list(self) -> list[Any]:
        numbers: list[Any] = orjson.loads(self._text)
        return numbers

    def _is_flat(self) -> bool:
        return self._text.find(b"[", 1) < 0

    def _is_nested(self, shape: Sequence[int], size: int) -> bool:
        """Whether the brackets and commas are those of the shape: simdjson flattens every list."""
        if not size or prod(shape) != size:  # without elements a shape may be of any length
            return False
        structure = b""
        for length in reversed(shape):
            structure = _list_of(structure, length)
        return self._text.translate(None, _NO_STRUCTURE) == structure


def flattened(parsed: Any, text: bytes, kind: Kind) -> Array | None:
    """The numbers of a list of any nesting that simdjson has parsed in this text; None if they do not fit `kind`."""
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
    """The shape of a list of lists that simdjson has parsed in a text without other brackets; None as ``Numbers.shape``."""
    return _of_rows(parsed, text) or _of_brackets(text)


def _of_rows(parsed: Any, text: bytes) -> list[int] | None:
    """The shape of a list of lists of one length, and nothing deeper; takes a fifth of ``_of_brackets``."""
    try:
        lengths = set(map(len, parsed))
    except TypeError:  # a number among them
        return None
    size = len(parsed)
    if len(lengths) > 1 or 0 in lengths:
        return None
    # To remove the brackets is the fastest way to count them.
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
        unit = _list_of(unit, shape[0])
        if unit != first:
            return None
    return shape if unit == structure else None


def _list_of(item: bytes, length: int) -> bytes:
    """The brackets and commas of a list of equal items. To repeat bytes takes a hundredth of joining a list of them."""
    return b"[%b]" % ((item + b",") * length)[:-1]


def has_more(text: bytes, byte: bytes, number: int) -> bool:
    """Whether a byte occurs more than so many times in a text. Finding a byte costs a tenth of counting it."""
    at = -1
    for _ in range(number + 1):
        at = text.find(byte, at + 1)
        if at < 0:
            return False
    return True


def parse_with_numbers(body: bytes, key: str) -> Any:
    """The document, in which long lists under `key`, at the top or in the objects of its lists, are ``Numbers``.
    None if there are no long lists, or the document is not a plain one: another reader names the faults.
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
    """The positions of lists under `key` in the body, without a string or object in them.
    A string may hold such a text: it is cut out like a list, and not found again by ``_put_back``.
    """
    begin = re.compile(rb'"%s"[ \t\n\r]*:[ \t\n\r]*\[' % key.encode())
    lists: list[tuple[int, int]] = []
    position = looked_at = 0
    while match := begin.search(body, position):
        looked_at += 1
        if looked_at > MOST:
            return []
        start = match.end() - 1
        # A list of numbers ends before the next key, or before the end of its object.
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
