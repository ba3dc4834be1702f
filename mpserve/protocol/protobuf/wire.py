"""The rules of protobuf's wire format that keep a tensor's bytes from being copied.

protobuf's own classes copy a ``bytes`` field four times: in parsing, in reading, and twice in writing. A message is a sequence
of fields in any order, so those fields can be taken out before parsing, and appended after writing. Knows fields and lengths,
no messages.

Source: protobuf.dev, "Encoding".
"""

from collections.abc import Iterator

from mpserve.errors import InvalidInput

MAX_FIELDS = 65536  # the most fields of one message: far more than tensors and parameters need, and soon counted
_VARINT, _EIGHT_BYTES, _LENGTH, _FOUR_BYTES = 0, 1, 2, 5


def split(data: bytes, number: int) -> tuple[bytes, list[memoryview]]:
    """``data`` without its ``bytes`` fields of that number, and the contents of these fields, as views on ``data``.
    Raises InvalidInput if ``data`` is no message.
    """
    view = memoryview(data)
    wanted = number << 3 | _LENGTH
    kept: list[memoryview] = []
    taken: list[memoryview] = []
    at = kept_to = 0
    for _ in range(MAX_FIELDS):
        if at >= len(data):
            break
        start = at
        tag, at = _varint(data, at)
        begin, at = _content(data, tag & 7, at)
        if tag == wanted:
            kept.append(view[kept_to:start])
            taken.append(view[begin:at])
            kept_to = at
    if at < len(data):
        raise InvalidInput(f"the message has more than {MAX_FIELDS} fields")
    if at > len(data):
        raise InvalidInput("the message is cut short")
    if not taken:
        return data, []
    return b"".join([*kept, view[kept_to:]]), taken


def fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """The fields of a message from a file, which may be large: the number of each, and its whole number or its bytes.
    Raises InvalidInput if it is no message.
    """
    at, end = 0, len(message)
    while at < end:
        tag, at = _varint(message, at)
        kind = tag & 7
        begin, at = _content(message, kind, at)
        if at > end or not tag >> 3:
            raise InvalidInput("the message is cut short")
        yield tag >> 3, _varint(message, begin)[0] if kind == _VARINT else message[begin:at]


def numbers(field: int | memoryview) -> list[int]:
    """The signed whole numbers in a repeated field, of which each occurrence holds one, or many."""
    found = [field] if isinstance(field, int) else []
    at = 0
    while isinstance(field, memoryview) and at < len(field):
        number, at = _varint(field, at)
        found.append(number)
    return [number - (1 << 64) if number >> 63 else number for number in found]


def prefix(number: int, size: int) -> bytes:
    if size < 128 and number < 16:  # each is one byte then
        return bytes((number << 3 | _LENGTH, size))
    return _encoded(number << 3 | _LENGTH) + _encoded(size)


def _content(data: bytes | memoryview, kind: int, at: int) -> tuple[int, int]:
    """The beginning and the end of the content of a field of this kind after ``at``."""
    if kind == _LENGTH:
        size, at = _varint(data, at)
        return at, at + size
    if kind == _VARINT:
        return at, _varint(data, at)[1]
    if kind in (_EIGHT_BYTES, _FOUR_BYTES):
        return at, at + (8 if kind == _EIGHT_BYTES else 4)
    raise InvalidInput(f"the message has a field of wire type {kind}, which no current protobuf writes")


def _varint(data: bytes | memoryview, at: int) -> tuple[int, int]:
    if at < len(data) and data[at] < 128:  # most are this small
        return data[at], at + 1
    value = 0
    for position, byte in enumerate(data[at : at + 10]):
        value |= (byte & 127) << 7 * position
        if byte < 128:
            return value, at + position + 1
    raise InvalidInput("the message is cut short, or has a number of more than 64 bits")


def _encoded(value: int) -> bytes:
    result = bytearray()
    while value > 127:
        result.append(value & 127 | 128)
        value >>= 7
    result.append(value)
    return bytes(result)
