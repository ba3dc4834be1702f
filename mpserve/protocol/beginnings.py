"""Plain V2 requests that begin as others did: what a beginning says need not be read again.

Clients send the same name, datatype and shape again and again, and to read those of a small request costs more than to read
its numbers. A request that begins and ends like one that was read differs from it in its numbers alone. In case of doubt it is
read as a whole, so what is taken here means what it means there.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import orjson

from mpserve.protocol import plain
from mpserve.protocol.datatypes import Array
from mpserve.protocol.plain import KINDS, NOT_PLAIN, READ, Request, narrowed, packer

try:
    import simdjson
except ImportError:  # there are no wheels for Python 3.14
    simdjson = None

DATA = b'"data":'
END = b"}]}"
"""What stands around the numbers of most requests."""
U, L = b"ul"
"""Letters of which true and false, which are numbers to struct, each have one, and numbers none."""

LONGEST = 512
"""Bytes of a beginning that is remembered."""
KNOWN = 1024
"""Beginnings that are remembered. Those with something new in each (an id, say) push the others out."""

SHORT = 64
"""Numbers up to which Python objects cost less than simdjson."""
MEDIUM = 16384
"""Bytes of a body from which on to know the rest is not worth a copy of the numbers."""


class Beginning(NamedTuple):
    """All of a request but its numbers, and what writes them into an array if they are few."""

    request_id: str | None
    name: str
    datatype: str
    shape: tuple[int, ...]
    size: int
    write: Callable[..., None] | None
    kind: str
    dtype: np.dtype[Any]


_known: dict[bytes, Beginning] = {}


def read_request(body: bytes) -> Request | None:
    """As ``plain.read_request``."""
    at = body.find(DATA, 0, LONGEST) + len(DATA)
    begin = body[:at]
    known = _known.get(begin)
    request = None if known is None else _read_like(known, body, at)
    if request is None:
        request = plain.read_request(body)
        if request is not None and known is None:
            _remember(begin, body, request)
    return request


def _remember(begin: bytes, body: bytes, request: Request) -> None:
    """Remember the beginning of a request, if it has all but the numbers.

    Without an escape in it, what it ends with is a key. Where that one's value, a list, is followed by the ends of an object, a
    list and the document, the object is the last input; and as there is but one, and all keys are known, the beginning has all
    the rest.
    """
    request_id, [(name, datatype, array), *others] = request
    if others or b"\\" in begin or not begin.endswith(DATA) or not body.endswith(b"]" + END):
        return
    if len(_known) >= KNOWN:
        _known.clear()
    kind, dtype, code = KINDS[datatype]
    write = packer(code, array.size) if array.size <= SHORT or simdjson is None else None
    _known[begin] = Beginning(request_id, name, datatype, array.shape, array.size, write, kind, dtype)


def _read_like(known: Beginning, body: bytes, at: int) -> Request | None:
    """A request of which all is known but its numbers, which begin ``at``; None if it is another or not plain."""
    request_id, name, datatype, shape, size, write, kind, dtype = known
    if len(body) > MEDIUM or not body.endswith(END):
        return None
    text = body[at : -len(END)]
    try:
        if write is not None:
            data = orjson.loads(text)
            if len(data) != size or U in text or L in text:
                return None
            array: Array = np.empty(shape, dtype)
            write(array, 0, *data)
        else:
            # simdjson takes a byte order mark, of which JSON has none; and it flattens lists, whose brackets would be more.
            if not text.startswith(b"[") or text.find(b"[", 1) > 0:
                return None
            flat = np.frombuffer(simdjson.Parser().parse(text).as_buffer(of_type=kind), READ[kind])
            array = narrowed(flat, dtype).reshape(shape)
    except NOT_PLAIN:
        return None
    return request_id, [(name, datatype, array)]
