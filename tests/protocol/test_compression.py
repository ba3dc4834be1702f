import contextlib
import gzip
import tracemalloc
import zlib
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpserve.errors import InvalidInput, PayloadTooLarge
from mpserve.protocol import compression
from mpserve.protocol.compression import CODINGS, MINIMUM_SIZE, UnsupportedEncoding, compress, decompress
from tests.cases import each

MIB = 1024**2
TEXT = b'{"instances": [[6.8, 2.8, 4.8, 1.4]]}'


def raw_deflate(data, level=6):
    stream = zlib.compressobj(level, zlib.DEFLATED, -zlib.MAX_WBITS)
    return stream.compress(data) + stream.flush()


def noise(size, seed=0):
    return np.random.default_rng(seed).bytes(size)


zipped = partial(gzip.compress, mtime=0)

ENCODERS = {"gzip": zipped, "deflate": zlib.compress}


@each("level", range(10))
@each("data", [b"", b"a", TEXT, noise(100_000), bytes(100_000)])
def test_deflate_without_the_zlib_header_is_accepted(data, level):
    assert decompress("deflate", raw_deflate(data, level), 100_000) == data


def test_a_body_that_needs_no_decoding_is_handed_back_itself():
    assert decompress("identity", TEXT, 1) is TEXT


@each("content_encoding, says", [
    *((coding, "is not supported, expected gzip, deflate or identity$")
      for coding in ("br", "zstd", "compress", "gzip, br", "br, gzip", "*", "gzip;q=1", "none")),
    (", ".join(["gzip"] * 5), "got 5 content codings for one body, expected at most 4"),
])  # fmt: skip
def test_a_coding_that_is_unknown_or_the_fifth_is_refused(content_encoding, says):
    with pytest.raises(UnsupportedEncoding, match=says):
        decompress(content_encoding, zipped(TEXT), 1000)


@each("coding, body, message", [
    ("gzip", b"", "the gzip body ends early"), ("deflate", b"", "the deflate body ends early"),
    ("gzip", TEXT, "the body is not valid gzip: incorrect header check"),
    ("gzip", zlib.compress(TEXT), "the body is not valid gzip: incorrect header check"),
    ("deflate", zipped(TEXT), "the body is not valid deflate: "),
    ("gzip", zipped(TEXT)[:-8] + bytes(8), "the body is not valid gzip: incorrect data check"),
    ("gzip", zipped(TEXT)[:-4] + bytes(4), "the body is not valid gzip: incorrect length check"),
    ("deflate", zlib.compress(TEXT)[:-4] + bytes(4), "the body is not valid deflate: incorrect data check"),
    ("gzip", zipped(TEXT) + b"x", "the gzip body ends early"),
    ("gzip", zipped(TEXT) + b"xyz", "the body is not valid gzip: incorrect header check"),
    ("gzip", zipped(TEXT) + bytes(512), "the body is not valid gzip: incorrect header check"),
    ("gzip", zipped(TEXT) + zipped(TEXT)[:-1], "the gzip body ends early"),
    ("deflate", zlib.compress(TEXT) + b"xyz", "the deflate body is followed by 3 bytes"),
    ("deflate", raw_deflate(TEXT) + b"x", "the deflate body is followed by 1 bytes"),
    ("deflate", zlib.compress(TEXT) * 2, "the deflate body is followed by "),
    ("deflate, gzip", zipped(TEXT), "the body is not valid deflate: "),
    ("gzip", zipped(b"") * 10_001, "the gzip body has more than 10000 members"),
])  # fmt: skip
def test_a_damaged_body_is_refused(coding, body, message):
    with pytest.raises(InvalidInput, match=message):
        decompress(coding, body, 1000)


@each("coding", CODINGS)
def test_a_body_that_ends_early_is_refused_wherever_it_ends(coding):
    body = ENCODERS[coding](TEXT)
    for size in range(len(body)):
        with pytest.raises(InvalidInput, match="ends early"):
            decompress(coding, body[:size], 1000)


@each("coding", CODINGS)
@each("data", [bytes(300_000), noise(300_000), noise(65536), bytes(65536)])
def test_the_limit_is_the_size_that_still_fits(coding, data):
    body = ENCODERS[coding](data)
    assert decompress(coding, body, len(data)) == data
    with pytest.raises(PayloadTooLarge, match=f"larger than {len(data) - 1} bytes when decompressed"):
        decompress(coding, body, len(data) - 1)


@contextlib.contextmanager
def using_at_most(size):
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < size
    finally:
        tracemalloc.stop()


@each("content_encoding, body", [
    ("gzip", zipped(bytes(10 * MIB))), ("deflate", zlib.compress(bytes(10 * MIB))),
    ("deflate", raw_deflate(bytes(10 * MIB))), ("gzip", zipped(bytes(MIB // 8)) * 80),
    ("gzip, gzip", zipped(zipped(bytes(10 * MIB)))), ("deflate, gzip", zipped(zlib.compress(bytes(50 * MIB)))),
])  # fmt: skip
def test_a_bomb_is_stopped_at_the_limit_and_never_held(content_encoding, body):
    with using_at_most(1.5 * MIB + 4 * 65536), pytest.raises(PayloadTooLarge):
        decompress(content_encoding, body, MIB)


@each("codings", [["gzip"], ["deflate"], ["gzip", "gzip"], ["gzip"] * 4])
def test_beyond_four_mebibytes_a_body_expands_only_so_many_times(codings):
    def coded(size):
        body = bytes(size)
        for coding in codings:
            body = ENCODERS[coding](body)
        return body

    content_encoding = ", ".join(codings)
    assert len(decompress(content_encoding, coded(4 * MIB), 64 * MIB, 100)) == 4 * MIB
    with pytest.raises(PayloadTooLarge, match="more than the 100 times its size that --max_compression_ratio allows"):
        decompress(content_encoding, coded(8 * MIB), 64 * MIB, 100)
    assert len(decompress(content_encoding, coded(8 * MIB), 64 * MIB)) == 8 * MIB  # without a limit of the ratio
    with pytest.raises(PayloadTooLarge, match=f"larger than {MIB} bytes"):
        decompress(content_encoding, coded(8 * MIB), MIB, 100)


def test_a_body_is_held_only_once_while_it_grows():
    data = noise(16 * MIB)
    body = zipped(data, 1)
    with using_at_most(1.25 * len(data) + MIB):
        assert len(decompress("gzip", body, 64 * MIB)) == len(data)


@given(st.binary(max_size=300), st.sampled_from(["gzip", "deflate", "gzip, deflate", "deflate, gzip"]))
def test_no_bytes_whatever_raise_anything_but_invalid_input(body, content_encoding):
    for candidate in (body, b"\x1f\x8b\x08\x00" + body, b"\x78\x9c" + body):
        with contextlib.suppress(InvalidInput):
            assert len(decompress(content_encoding, candidate, 1000)) <= 1000


@given(st.lists(st.binary(max_size=3000), max_size=5), st.sampled_from(CODINGS))
def test_what_is_compressed_comes_back(chunks, coding):
    body = compress(coding, chunks)
    assert decompress(coding, body, 100_000) == b"".join(chunks)
    assert (gzip.decompress if coding == "gzip" else zlib.decompress)(body) == b"".join(chunks)


@given(st.binary(max_size=5000), st.integers(0, 5000), st.lists(st.sampled_from(CODINGS), min_size=1, max_size=4))
def test_towers_within_the_limit_come_back(data, cut, codings):
    body = data * 20
    for coding in codings:
        encode = ENCODERS[coding]
        body = encode(body[:cut]) + encode(body[cut:]) if coding == "gzip" else encode(body)
    assert decompress(", ".join(codings), body, 200_000) == data * 20


def test_the_same_answer_is_compressed_to_the_same_bytes():
    body = compress("gzip", [TEXT])
    assert body[4:8] == bytes(4)
    assert body == compress("gzip", [TEXT[:7], memoryview(TEXT)[7:]])


@each("accept_encoding, coding", [
    (None, None), ("", None), ("gzip", "gzip"), ("GZIP", "gzip"), ("x-gzip", "gzip"), ("deflate", "deflate"),
    ("gzip, deflate", "gzip"), ("deflate, gzip", "gzip"), ("gzip, deflate, br, zstd", "gzip"), ("br", None),
    ("br;q=1, deflate;q=0.1", "deflate"), ("gzip;q=0.5, deflate;q=0.8", "deflate"),
    ("gzip ; q=0.5 , deflate ; Q=0.8", "deflate"), ("gzip;q=0.500, deflate;q=0.5", "gzip"), ("gzip;q=0", None),
    ("gzip;q=0.000, deflate;q=0", None), ("gzip;q=0, deflate", "deflate"), ("identity", None),
    ("gzip, identity", "gzip"), ("identity, gzip;q=0.5", None), ("identity;q=0.5, gzip;q=0.5", "gzip"),
    ("identity;q=0.5, gzip;q=0.4, deflate;q=0.6", "deflate"), ("identity;q=0", None),
    ("identity;q=0, deflate;q=0.1", "deflate"), ("*", "gzip"), ("*;q=0", None), ("gzip;q=0, *", "deflate"),
    ("gzip;q=0.2, *;q=0.7", "deflate"), ("deflate, *;q=0", "deflate"), ("identity;q=0.5, *;q=0.1", None),
    ("gzip;q=2", None), ("gzip;q=-1", None), ("gzip;q=nan", None), ("gzip;q=", None), ("gzip;level=1", None),
    ("gzip;q=0.1234, deflate", "deflate"), (",, ;q=1,\x00, deflate", "deflate"),
])  # fmt: skip
def test_the_answers_coding_is_the_one_that_the_client_weighs_most(accept_encoding, coding):
    assert compression.choose(accept_encoding) == coding


FLOATS = np.random.default_rng(0).standard_normal(MIB).astype(np.float32)


@each("chunks, expected", [
    ([], False), ([b"", b""], False), ([bytes(MINIMUM_SIZE - 1)], False), ([bytes(MINIMUM_SIZE)], True),
    ([bytes(MINIMUM_SIZE // 2), memoryview(np.zeros(MINIMUM_SIZE // 8, np.float32))], True), ([bytes(MIB)], True),
    ([noise(MIB)], False), ([TEXT, memoryview(FLOATS)], False), ([TEXT, memoryview(FLOATS.reshape(2, 8, -1))], False),
    ([memoryview(np.maximum(FLOATS, 0.5))], True), ([memoryview(np.arange(MIB))], True),
    ([b",".join(b"%.6f" % value for value in FLOATS[:20_000].tolist())], True),
])  # fmt: skip
def test_small_bodies_and_noise_are_not_worth_compressing(chunks, expected):
    assert compression.worthwhile(chunks) is expected
