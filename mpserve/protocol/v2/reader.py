"""Reads V2 requests in JSON, and remembers how plain requests begin and end.

Clients repeat the name, datatype and shape, and to read them costs more than to read the numbers of a small request. A request
that begins and ends like an earlier request differs only in its numbers. Any other request is read as a whole; a request that
is not plain is read strictly, from the document that was parsed already.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import orjson
from orjson import loads

from mpserve.protocol.codec import Inputs
from mpserve.protocol.datatypes import Array
from mpserve.protocol.declaration import Tensor
from mpserve.protocol.json import plain
from mpserve.protocol.json.documents import as_object, parse_object
from mpserve.protocol.json.numbers import has_more
from mpserve.protocol.json.plain import KINDS, NOT_PLAIN, READ, Plain, narrowed
from mpserve.protocol.messages import InferRequest
from mpserve.protocol.tensors import RequestedOutput
from mpserve.protocol.v2.wire import read_request

try:
    import simdjson
except ImportError:  # an extra
    simdjson = None

DATA = b'"data":'
KEY = re.compile(rb'"data"[ \t\n\r]*:')
LIST = (b"[", b" [")  # how a list begins behind a key, as most clients write it
E, U, L = b"eul"
"""struct takes true and false for numbers. Both have an ``e``, like few numbers, and a ``u`` or an ``l``, like no number."""

LONGEST = 512  # bytes of a beginning, and of an end, that are remembered
KNOWN = 1024  # beginnings that are remembered; beginnings that never repeat (with an id, say) push the others out
SHORT = 64  # numbers up to which Python objects cost less than simdjson
MEDIUM = 16384  # bytes of a body up to which a known beginning is worth a copy of the numbers
Numbers: TypeAlias = Callable[[bytes], Array]
"""Reads the numbers between a beginning and its end. Raises one of ``NOT_PLAIN`` for another number of numbers."""

ModelSpec = tuple[str, bool | None]  # a requested output, and whether as bytes; None: the request does not say so
_known: dict[tuple[bytes, bytes], tuple[str | None, str, str, Numbers, tuple[ModelSpec, ...]]] = {}
"""By beginning and end: the request's id, the input's name and datatype, the reader of the numbers, and the outputs."""


def read(body: bytes, declared: Sequence[Tensor] = ()) -> Inputs:
    """The V2 request in a body of nothing but JSON, to a model with these declared inputs.
    Raises InvalidInput as ``wire.read_request``.
    """
    if len(body) > MEDIUM:
        return _read_whole(body, declared)
    begin, _, rest = body.partition(DATA)
    stop = rest.find(b"]") + 1
    text, end = rest[:stop], rest[stop:]
    known = _known.get((begin, end))
    if known is None:
        return _read_whole(body, declared, begin, text, end)
    request_id, name, datatype, numbers, wanted = known
    try:
        array = numbers(text)
    except NOT_PLAIN:
        return _read_whole(body, declared)
    return Inputs([(name, datatype, array)], request_id, _requested(wanted) if wanted else None)


def _requested(wanted: tuple[ModelSpec, ...]) -> list[RequestedOutput]:
    requested = []
    for name, binary in wanted:
        requested.append(RequestedOutput(name, None if binary is None else {plain.BINARY_DATA: binary}))
    return requested


def _read_whole(
    body: bytes, declared: Sequence[Tensor], begin: bytes = b"", text: bytes = b"", end: bytes = b""
) -> Inputs:
    """As ``read``. Remembers the beginning and the end of a plain body, around the text of its first list."""
    document: Any = None
    if len(body) < plain.FEW_BYTES or simdjson is None:
        try:
            document = loads(body)
        except orjson.JSONDecodeError:
            document = parse_object(body)  # names the fault
        found = plain.in_document(document, body)
    else:
        found = plain.in_text(body)
    if found is None:
        document = parse_object(body, "data") if document is None else as_object(document)
        return Inputs.of(InferRequest("", **read_request(document, None, declared)))
    if text.startswith(LIST):
        _remember(begin, end, found)
    return Inputs(*found)


def _remember(begin: bytes, end: bytes, request: Plain) -> None:
    """Remember the beginning and the end of a request with one input.
    The key of the data is neither in the beginning nor in the end, nor hidden by an escape. So the key between them is the
    input's, and the list behind it is the data. Of a repeated field, the field that does not count may hold the key too.
    """
    [(name, datatype, array), *others], request_id, requested = request
    if others or b"\\" in begin or b"\\" in end or KEY.search(begin) or KEY.search(end):
        return
    if len(begin) > LONGEST or len(end) > LONGEST:
        return
    if len(_known) >= KNOWN:
        _known.clear()
    numbers = (_few if array.size <= SHORT or simdjson is None else _many)(datatype, array)
    wanted = tuple((output.name, output.binary_data) for output in requested)
    _known[begin, end] = request_id, name, datatype, numbers, wanted


def _few(datatype: str, like: Array) -> Numbers:
    """A reader of as many numbers as ``like`` has, through Python objects."""
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
        if not text.startswith(LIST) or has_more(text, b"[", 1):
            raise ValueError
        flat = np.frombuffer(simdjson.Parser().parse(text).as_buffer(of_type=kind), READ[kind])
        return narrowed(flat, dtype).reshape(shape)

    return read
