"""Content codings of whole bodies: gzip and deflate, undone within a limit, and applied where they save bytes.

Knows header values and bytes, no requests. Everything runs in the caller's thread: zlib lets other threads run meanwhile.
"""

import io
import re
import zlib
from collections.abc import Sequence
from typing import Any, Literal, get_args

from mpserve.errors import InvalidInput, PayloadTooLarge, UnsupportedEncoding

Coding = Literal["gzip", "deflate"]
CODINGS: tuple[Coding, ...] = get_args(Coding)
"""The codings of answers, the preferred first. deflate is the zlib format (RFC 9110 8.4.1.2), as in tritonclient."""

MINIMUM_SIZE = 1024
"""Bytes from which a body is compressed: a smaller body fits into one Ethernet frame, so compression saves no packet."""

LEVEL = 1  # zlib's level: higher levels save a tenth of the bytes for several times the processor

_SAMPLE_SIZE = 4096
_WORTHWHILE_RATIO = 0.9
_SAMPLED_FROM = 65536
_RATIO_FROM = (
    4 * 1024**2
)  # Bytes from which the ratio counts: constant data of this size compresses well, and costs little.
_MAX_CODINGS = 4  # Each may multiply the work by as much as the limit allows, and nobody needs even two.
_MAX_MEMBERS = 10_000  # 640 MB as bgzip cuts them; without an end, 20 bytes would buy a microsecond and more.
_PIECE = 65536  # Bytes fed to zlib at once, and taken from it; any size from 16 KiB on was equally fast.
_WINDOW_BITS: dict[Coding, int] = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}
_ALIASES = {"x-gzip": "gzip"}  # RFC 9110 8.4.1.3
_WEIGHT = re.compile(r"q=(0(?:\.[0-9]{0,3})?|1(?:\.0{0,3})?)", re.IGNORECASE)  # RFC 9110 12.4.2


OFFERED = ", ".join(CODINGS)
"""A value for the ``Accept-Encoding`` header of the answer that refuses another coding (RFC 9110 15.5.16)."""


def decompress(content_encoding: str, body: bytes, limit: int, ratio: int = 0) -> bytes:
    """Undo the content codings of a request body, from the last to the first.

    ``content_encoding`` is the header's value: names in any case, separated by commas. No coding's output is held beyond
    ``limit`` bytes and a piece of 64 KiB. Several gzip members in a row are one body (RFC 1952 2.2). A deflate body without
    the zlib header, as .NET's DeflateStream sends it, is accepted too. Beyond 4 MiB no coding's output may be more than
    ``ratio`` times the body; 0: any number of times.

    Raises:
        UnsupportedEncoding: an unknown coding, or too many codings.
        PayloadTooLarge: the result has more than ``limit`` bytes, or more than ``ratio`` allows.
        InvalidInput: the body is damaged, ends early, or goes on after its end.
    """
    names = [name.strip().lower() for name in content_encoding.split(",")]
    codings = [_known(_ALIASES.get(name, name)) for name in names if name not in ("", "identity")]
    if len(codings) > _MAX_CODINGS:
        raise UnsupportedEncoding(f"got {len(codings)} content codings for one body, expected at most {_MAX_CODINGS}")
    excess = f"the request body is larger than {limit} bytes when decompressed"
    if ratio and max(_RATIO_FROM, ratio * len(body)) < limit:
        limit = max(_RATIO_FROM, ratio * len(body))
        excess = f"the request body expands to more than the {ratio} times its size that --max_compression_ratio allows"
    for coding in reversed(codings):
        body = _undo(coding, body, limit, excess)
    return body


def _known(name: str) -> Coding:
    for coding in CODINGS:
        if coding == name:
            return coding
    raise UnsupportedEncoding(f"the content coding {name!r} is not supported, expected {OFFERED} or identity")


def _undo(coding: Coding, body: bytes, limit: int, excess: str) -> bytes:
    """Undo one coding. ``excess``: the message for more than ``limit`` bytes."""
    window_bits = _WINDOW_BITS[coding]
    if coding == "deflate" and not _has_zlib_header(body):
        window_bits = -zlib.MAX_WBITS
    # Not a list of pieces: BytesIO grows in place and hands its buffer out as bytes, so nothing is held twice.
    output = io.BytesIO()
    position = members = 0
    try:
        while members == 0 or (coding == "gzip" and position < len(body)):
            members += 1
            if members > _MAX_MEMBERS:
                raise InvalidInput(f"the gzip body has more than {_MAX_MEMBERS} members")
            stream = zlib.decompressobj(window_bits)
            while not stream.eof:
                if position == len(body):
                    raise InvalidInput(f"the {coding} body ends early")
                # Piece by piece, since zlib copies the rest of its input whenever it stops at max_length.
                piece = memoryview(body)[position : position + _PIECE]
                position += len(piece)
                _feed(stream, piece, output, limit, excess)
            position -= len(stream.unused_data)
    except zlib.error as error:
        raise InvalidInput(f"the body is not valid {coding}: {str(error).rpartition(': ')[2]}") from None
    if position < len(body):
        raise InvalidInput(f"the {coding} body is followed by {len(body) - position} bytes that do not belong to it")
    return output.getvalue()


def _feed(stream: Any, piece: bytes | memoryview, output: io.BytesIO, limit: int, excess: str) -> None:
    """Expand ``piece`` into ``output``. Raises zlib.error and PayloadTooLarge."""
    more = True
    while more and not stream.eof:
        allowed = min(_PIECE, limit - output.tell() + 1)
        written = output.write(stream.decompress(piece, allowed))
        if output.tell() > limit:
            raise PayloadTooLarge(excess)
        piece = stream.unconsumed_tail
        more = len(piece) > 0 or written == allowed


def _has_zlib_header(body: bytes) -> bool:
    """Whether the body begins as RFC 1950 2.2 says.
    No encoder writes a stream without a header that looks like this: a stored block whose padding is not zero.
    """
    return len(body) >= 2 and body[0] & 0x0F == zlib.DEFLATED and int.from_bytes(body[:2], "big") % 31 == 0


def choose(accept_encoding: str | None) -> Coding | None:
    """The coding that an ``Accept-Encoding`` header asks for; None: identity (RFC 9110 12.5.3).
    The greatest weight wins; among equal weights gzip, then deflate, then identity. A malformed element is skipped. A client
    that forbids identity and takes no known coding gets identity.
    """
    if not accept_encoding:
        return None
    weights: dict[str, float] = {}
    for element in accept_encoding.lower().split(","):
        name, _, parameter = (part.strip() for part in element.partition(";"))
        match = _WEIGHT.fullmatch(parameter or "q=1")
        if match is not None:
            weights[_ALIASES.get(name, name)] = float(match[1])
    others = weights.get("*", 0.0)
    best = max(CODINGS, key=lambda coding: weights.get(coding, others))
    weight = weights.get(best, others)
    return best if weight > 0 and weight >= weights.get("identity", 0.0) else None


def worthwhile(chunks: Sequence[bytes | memoryview]) -> bool:
    """Whether to compress a body of these chunks: not a small body, nor a body that hardly shrinks.
    A sample of 4 KiB from the middle of a large chunk decides; random FP32 goes out as it is.
    """
    sizes = [memoryview(chunk).nbytes for chunk in chunks]
    if sum(sizes) < MINIMUM_SIZE:
        return False
    largest = max(sizes)
    if largest < _SAMPLED_FROM:
        return True
    middle = largest // 2
    sample = memoryview(chunks[sizes.index(largest)]).cast("B")[middle : middle + _SAMPLE_SIZE]
    return len(zlib.compress(sample, LEVEL)) < _WORTHWHILE_RATIO * _SAMPLE_SIZE


def compress(coding: Coding, chunks: Sequence[bytes | memoryview]) -> bytes:
    """One body of all chunks (contiguous buffers), compressed; the same every time, as gzip's time stamp is left 0."""
    stream = zlib.compressobj(LEVEL, zlib.DEFLATED, _WINDOW_BITS[coding])
    output = io.BytesIO()
    for chunk in chunks:
        output.write(stream.compress(chunk))
    output.write(stream.flush())
    return output.getvalue()
