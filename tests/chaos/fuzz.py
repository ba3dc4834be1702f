"""Feeds atheris' bytes to every codec: each body is read, or is refused in words. ``make fuzz`` installs atheris and runs it.

Whatever else a codec raises ends the run with 77, and the bytes are written to ``.venv/crash-…``. The readers of V2 JSON must
also agree. Arguments are those of libFuzzer.
"""

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import atheris
import numpy as np

with atheris.instrument_imports(include=["mpserve.protocol"]):
    from mpserve.errors import MPServeError
    from mpserve.protocol.cloudevents import unwrap
    from mpserve.protocol.codec import Codec
    from mpserve.protocol.compression import decompress
    from mpserve.protocol.declaration import Tensor
    from tests.bodies import ODD
    from tests.formats import BINARY, PLAIN
    from tests.protocol.v2.test_reader import agree

LIMIT = 1_000_000  # bytes of a body that is decompressed
DECLARED = [(), (Tensor("x", "FP64", (-1, -1)),), (Tensor("x", "BYTES", (-1,)), Tensor("y", "INT8", (2,)))]
JSON_LENGTH = 2  # bytes in front of a body, which say how many of its bytes are JSON


def reading(codec: Callable[[int], Codec]) -> Callable[[bytes], object]:
    def read(data: bytes) -> None:
        body = data[JSON_LENGTH:]
        told = int.from_bytes(data[:JSON_LENGTH], "little")
        for declared in DECLARED:
            for speaks_arrays in (True, False):
                inputs = codec(told).read(body, declared, speaks_arrays)
                inputs.arrays(declared)

    return read


def codec_of(number: int) -> Callable[[int], Codec]:
    format = PLAIN[number]
    return lambda length: format.head({BINARY: str(length)} if "binary" in format.name else {}, "m").codec


READERS: list[Callable[[bytes], object]] = [
    *(reading(codec_of(number)) for number in range(len(PLAIN))),
    agree,
    lambda data: unwrap({"ce-id": "1", "ce-source": "s", "ce-type": "t", "ce-specversion": "1.0"}, data),
    lambda data: unwrap({"content-type": "application/cloudevents+json"}, data),
    lambda data: decompress("gzip", data, LIMIT),
    lambda data: decompress("deflate", data, LIMIT),
]


def one(data: bytes) -> None:
    """The first byte chooses the reader."""
    if data:
        try:
            READERS[data[0] % len(READERS)](data[1:])
        except MPServeError as error:
            if not str(error):
                raise AssertionError("a refusal without words") from error


def write_seeds(folder: Path) -> None:
    x = np.array([[1.5, 2.5], [3.5, 4.5]])
    seeds = [bytes([number]) + body for number in range(len(PLAIN), len(READERS)) for body in ODD]
    for number, format in enumerate(PLAIN):
        headers, body = format.write(x, {})
        seeds.append(bytes([number]) + int(headers.get(BINARY, 0)).to_bytes(JSON_LENGTH, "little") + body)
    for number, seed in enumerate(seeds):
        (folder / f"{number}").write_bytes(seed)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        write_seeds(Path(folder))
        atheris.Setup([*sys.argv, folder], one)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
