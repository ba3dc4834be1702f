"""Plain V2 requests that begin as others did: what a beginning says need not be read again.

Clients send the same name, datatype and shape again and again, and to read those of a small request costs more than to read
its numbers. A request that begins and ends like one that was read differs from it in its numbers alone. In case of doubt it is
read as a whole, so what is taken here means what it means there.
"""

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from orjson import loads

from mpserve.protocol import plain
from mpserve.protocol.datatypes import Array
from mpserve.protocol.plain import KINDS, NOT_PLAIN, READ, Request, narrowed

try:
    import simdjson
except ImportError:  # there are no wheels for Python 3.14
    simdjson = None

DATA = b'"data":'
END = b"}]}"
"""What stands around the numbers of most requests."""
E, U, L = b"eul"
"""True and false are numbers to struct. Both have an ``e``, as few numbers have, and one of the other letters, as none has."""

LONGEST = 512
"""Bytes of a beginning that is remembered."""
KNOWN = 1024
"""Beginnings that are remembered. Those with something new in each (an id, say) push the others out."""

SHORT = 64
"""Numbers up to which Python objects cost less than simdjson."""
MEDIUM = 16384
"""Bytes of a body from which on to know the rest is not worth a copy of the numbers."""

Numbers: TypeAlias = Callable[[bytes], Array]
"""Reads what stands between a beginning and its end; raises one of ``NOT_PLAIN`` if that is not as many numbers as before."""

_known: dict[bytes, tuple[str | None, str, str, Numbers]] = {}
"""By beginning: the id of the request, its input's name and datatype, and what reads its numbers."""


def read_request(body: bytes) -> Request | None:
    """As ``plain.read_request``."""
    if len(body) > MEDIUM:
        return plain.read_request(body)
    begin, _, rest = body.partition(DATA)
    text = rest.removesuffix(END)
    known = _known.get(begin)
    if known is not None and len(text) < len(rest):
        request_id, name, datatype, numbers = known
        try:
            return request_id, [(name, datatype, numbers(text))]
        except NOT_PLAIN:
            return plain.read_request(body)
    request = plain.read_request(body)
    if request is not None and known is None and len(text) < len(rest):
        _remember(begin, text, request)
    return request


def _remember(begin: bytes, text: bytes, request: Request) -> None:
    """Remember the beginning of a request, if it has all but the numbers.

    Without an escape in it, what it ends with is a key. Where that one's value, a list, is followed by the ends of an object, a
    list and the document, the object is the last input; and as there is but one, and all keys are known, the beginning has all
    the rest.
    """
    request_id, [(name, datatype, array), *others] = request
    if others or b"\\" in begin or len(begin) > LONGEST or not text.endswith(b"]"):
        return
    if len(_known) >= KNOWN:
        _known.clear()
    numbers = (_few if array.size <= SHORT or simdjson is None else _many)(datatype, array)
    _known[begin] = request_id, name, datatype, numbers


def _few(datatype: str, like: Array) -> Numbers:
    """For as many numbers as an array has, through Python objects."""
    shape, size, dtype = like.shape, like.size, like.dtype
    _, _, packers = KINDS[datatype]
    write = packers[size]

    def read(text: bytes) -> Array:
        data = loads(text)
        if len(data) != size or (E in text and (U in text or L in text)):
            raise ValueError
        array: Array = np.empty(shape, dtype)
        write(array, 0, *data)
        return array

    return read


def _many(datatype: str, like: Array) -> Numbers:
    """As ``_few``, without Python objects."""
    kind, dtype, _ = KINDS[datatype]
    shape = like.shape

    def read(text: bytes) -> Array:
        # simdjson takes a byte order mark, of which JSON has none; and it flattens lists, whose brackets would be more.
        if not text.startswith(b"[") or text.find(b"[", 1) > 0:
            raise ValueError
        flat = np.frombuffer(simdjson.Parser().parse(text).as_buffer(of_type=kind), READ[kind])
        return narrowed(flat, dtype).reshape(shape)

    return read
