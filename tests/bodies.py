"""Bodies of V2 requests in JSON, plain and odd, picked by hand and at random: what every reader of them must agree on."""

import json
from copy import deepcopy
from typing import Any

import numpy as np
from hypothesis import strategies as st

from mpserve.protocol.datatypes import DATATYPES
from mpserve.protocol.json.numbers import LONG
from tests.arrays import arrays

PAD = b" " * LONG
"""Makes a list of numbers long enough to be read without Python objects."""

PLAIN = b'{"id":"1","inputs":[{"name":"x","shape":[1,2],"datatype":"FP32","data":[1,2.5]}]}'


def body(data: str, datatype: str = "FP32", shape: str = "[4]", before: str = "", after: str = "") -> bytes:
    """A request with one input, and what else is to stand before and after its data. A ``~`` stands for ``PAD``."""
    entry = f'"name":"x","shape":{shape},"datatype":"{datatype}"{before},"data":{data}{after}'
    return f'{{"inputs":[{{{entry}}}]}}'.encode().replace(b"~", PAD)


def like(begin: str, count: int, datatype: str = "FP32") -> bytes:
    """A request that begins like others, with so many numbers."""
    numbers = ",".join(map(str, range(count)))
    return f'{begin}"inputs":[{{"name":"x","shape":[{count}],"datatype":"{datatype}","data":[{numbers}]}}]}}'.encode()


ELEMENTS = [
    "0", "1", "-1", "-0", "-0.0", "1.5", "0.1e1", "1e5", "1E+5", "1e22", "127", "128", "-128", "-129", "255", "256", "300",
    "65504", "65520", "16777217", "2147483648", "9007199254740993", "1152921573326323713", "9223372036854775807",
    "9223372036854775808", "-9223372036854775808", "-9223372036854775809", "18446744073709551615", "18446744073709551616",
    "123456789012345678901234567890", "1e-50", "7e-46", "1.401298464324817e-45", "5e-324", "2.2250738585072011e-308", "1e-400",
    "3.4028234e38", "3.4028235e38", "3.4028236e38", "3.4028235677973365e38", "3.4028235677973366e38", "1e38", "3.5e38", "1e39",
    "-1e39", "1e300", "1e308", "1e400", "NaN", "Infinity", "01", "1.", ".5", "+1", "0x1", "1_0", "-", "", "1 2", "1,1", "1]",
    "[1", "[1]", "[]", "{}", '{"data":[1]}', "true", "false", "null", '"1"', '"a,b"', "\x00", "\x0c",
]  # fmt: skip
"""What may be found, or be wrong, in the place of a number."""

NESTED = [
    ("[[1,2],[3,4]]", "[2,2]"), ("[1,2,3,4]", "[2,2]"), ("[[1,2],[3]]", "[2,2]"), ("[[1,2,3],[4]]", "[2,2]"),
    ("[[1],[2],[3],[4]]", "[2,2]"), ("[[[1,2],[3,4]]]", "[2,2]"), ("[[1,2],[3,4]]", "[4]"), ("[[1,2],3,4]", "[4]"),
    ("[[],1,2,3,4]", "[4]"), ("[1,2,3,[],4]", "[4]"), ("[[],[1,2,3,4]]", "[2,2]"), ("[[1,2],[3,4]]", "[]"), ("[1]", "[]"),
    ("[[1]]", "[]"), ("[[],[]]", "[2,0]"), ("[]", "[0]"), ("[[1,2],[3,4]]", "[1099511627776]"), ("[1,2]", "[-1]"), ("[1,2]", "2"),
    ("[" * 2000 + "]" * 2000, "[4]"), ("[" * 2000 + "~" + "]" * 2000, "[4]"), ("[[],[],[]]", "[549755813888,0]"),
]  # fmt: skip

_CHANGES = [
    (b'"1"', b'"2","id":"1"'), (b'"1"', b"null"), (b'"1"', b"1"), (b'"1"', b'"\xff"'), (b'"1"', b'"\\ud800"'),
    (b'"1"', b'"\\udc00"'), (b'"1"', b'"\\ud83d\\ude00"'), (b'"1"', b'"\\u0000"'), (b'"1"', b'"\x01"'), (b'"1"', b'"["'),
    (b'"x"', b'"]["'), (b'"id"', b'"inputs"'), (b'"id":"1",', b""), (b"inputs", b"\\u0069nputs"),
    (b'"name":"x"', b'"name":"x","name":"y"'), (b'"data":', b'"data":[3,4],"data":'), (b'"name":"x"', b'"data":[1,2]'),
    (b'"FP32"', b'["FP32"]'), (b'"FP32"', b'{"a":1}'), (b"[1,2]", b"[[1,2]]"), (b"[1,2]", b"[[1],2]"), (b"[1,2]", b"2"),
    (b"[1,2]", b"{}"), (b"[1,2]", b"[2.0]"), (b"[1,2]", b"[2e0]"), (b"[1,2]", b"[-0,2]"), (b"[1,2]", b"[02]"),
    (b"[1,2.5]", b"[[1,2.5]]"), (b"[1,2.5]", b"[[1],[2.5]]"), (b"[1,2.5]", b"[1,{}]"), (b"[1,2.5]", b"[1,2.5,]"),
    (b"[1,2.5]", b"{}"), (b"x", b"\xff"), (b"x", b"\\ud800"),
]  # fmt: skip

ODD = [
    b"", b"{", b"{}", b"[]", PLAIN[:-1], PLAIN + b" \n", PLAIN + b"\x00", PLAIN + b"x", PLAIN + PLAIN, b" " + PLAIN,
    b"\xef\xbb\xbf" + PLAIN, *(PLAIN.replace(*change) for change in _CHANGES),
    *(body(data, shape=shape) for data, shape in NESTED),
    body("[1,2,3,4~]", after=',"data":[5,6,7,8]'),  # the last of two fields counts
    body("[1,2,3,4]", after=',"data":[5,6,7,8~]'), body("[1,2,3,4~]", after=',"data":null'),
    body("[1,2,3,4]", before=',"parameters":{"data":[1~]}'), body("[1,2,3,4]", before=',"x\\"data":[1~]'),
    body("[1,2,3,4]", before=',"x":"\\"data\\":[1~]"'), body("[1,2,3,4]", before=',"x":"\\"data":[1~]'),
    body("[1,2,3,4~]]"), body("[1,2,3,4~],5"), body("[1,2,3,4~]")[:-1], body("[1,2,3,4~]") + b"\xff",
    body("[1,2,3,4~]", before=',"x":"\\ud800"'), b'{"data":[1%b],"inputs":[]}' % PAD, b'[{"data":[1%b]}]' % PAD,
]  # fmt: skip

SIZES = [0, 1, 2, 3, 4, -1, True, False, None, "1", 1.0, [1], 2**31, 2**62]
# A copy for each request: a list that one request grows would be longer in the next one, which hypothesis cannot repeat.
ANYTHING = st.sampled_from([None, True, 5, 1.5, "", "x", [], [1], {}, {"a": 1}]).map(deepcopy)
_LEAVES = st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**70), 2**70) | st.booleans() | st.none()
_DATA = (
    st.lists(_LEAVES | st.lists(_LEAVES, max_size=3), max_size=6)
    | st.lists(st.integers(-200, 300), min_size=4, max_size=4)
    | st.lists(st.lists(st.floats(-1e39, 1e39), min_size=2, max_size=2), min_size=2, max_size=2)
)
_PIECES = [b"[", b"]", b"{", b"}", b",", b'"', b"1", b"-", b".", b"e", b"0", b" ", b"\\", b"\x00", b"\xff", b"null"]


@st.composite
def entries(draw: st.DrawFn) -> dict[str, Any]:
    """An input as a client may write it, of any datatype and shape."""
    datatype = draw(st.sampled_from(DATATYPES))
    array = draw(arrays(datatype, json=True))
    values = array.astype(np.float64) if datatype in ("FP16", "BF16") else array
    data = (values.ravel() if draw(st.booleans()) or not array.ndim else values).tolist()
    data = _text(data) if datatype == "BYTES" else data
    return {"name": draw(st.sampled_from("xyz")), "shape": list(array.shape), "datatype": datatype, "data": data}


def _text(value: Any) -> Any:
    return [_text(item) for item in value] if isinstance(value, list) else value.decode()


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    """A request, in which up to three things are changed; and then perhaps a few of its bytes."""
    inputs = st.lists(entries(), min_size=1, max_size=3)
    document = draw(st.fixed_dictionaries({"inputs": inputs}, optional={"id": st.text(max_size=3)}))
    for _ in range(draw(st.integers(0, 3))):
        _spoil(draw, document)
    text = bytearray(json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode())
    for _ in range(max(0, draw(st.integers(-3, 3)))):
        start = draw(st.integers(0, len(text)))
        text[start : start + draw(st.integers(0, 2))] = draw(st.sampled_from(_PIECES))
    return bytes(text)


def _spoil(draw: st.DrawFn, document: dict[str, Any]) -> None:
    inputs = document.get("inputs")
    entry = draw(st.sampled_from(inputs)) if isinstance(inputs, list) and inputs else document
    what = draw(st.sampled_from(["element", "data", "size", "rank", "field", "top", "gone", "extra", "datatype"]))
    if not isinstance(entry, dict):
        return
    if what == "element" and isinstance(entry.get("data"), list) and entry["data"]:
        entry["data"][draw(st.integers(0, len(entry["data"]) - 1))] = draw(_LEAVES | ANYTHING)
    elif what == "data":
        entry["data"] = draw(_DATA)
    elif what == "size" and isinstance(entry.get("shape"), list):
        entry["shape"].insert(0, draw(st.sampled_from(SIZES)))
    elif what == "rank" and isinstance(entry.get("shape"), list):
        entry["shape"] += [1] * draw(st.sampled_from([1, 31, 32, 33]))
    elif what == "field":
        entry[draw(st.sampled_from(["name", "shape", "datatype", "data", "parameters"]))] = draw(ANYTHING)
    elif what == "top":
        document[draw(st.sampled_from(["id", "inputs", "outputs", "parameters", "other"]))] = draw(ANYTHING)
    elif what == "gone" and entry:
        del entry[draw(st.sampled_from(sorted(entry)))]
    elif what == "extra":
        entry["extra"] = draw(ANYTHING)
    else:
        entry["datatype"] = draw(st.sampled_from([*DATATYPES, "fp32", "Int8", "FLOAT", ""]))
