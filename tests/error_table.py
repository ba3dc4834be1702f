"""What a client is told for each of its own faults and the model's: the kserve SDK's error table, with the answers due.

Asked of ``tests/models/faulty.py``: in this process by tests/http/inference, and of a real server over one
connection by tests/e2e/test_error_table.py.
"""

import json
from typing import Any, NamedTuple

MAX_BODY_SIZE = 4096

JSON_HEADERS = {"content-type": "application/json"}


class Case(NamedTuple):
    """A request and its answer: the status, and a regular expression that is found in the message."""

    name: str
    status: int
    says: str
    path: str
    body: bytes = b""
    method: str = "POST"
    headers: dict[str, str] = JSON_HEADERS
    allow: str | None = None


def v1(body: object, model: str = "echo", verb: str = "predict") -> tuple[str, bytes]:
    return f"/v1/models/{model}:{verb}", body if isinstance(body, bytes) else json.dumps(body).encode()


def v2(body: object, model: str = "echo", version: str = "") -> tuple[str, bytes]:
    path = f"/v2/models/{model}{version and f'/versions/{version}'}/infer"
    return path, body if isinstance(body, bytes) else json.dumps(body).encode()


def tensor(**changes: Any) -> dict[str, Any]:
    """A V2 request with one input, changed; a field changed to ``...`` is left out."""
    given = {"name": "x", "shape": [2], "datatype": "FP32", "data": [1.0, 2.0]} | changes
    return {"inputs": [{name: value for name, value in given.items() if value is not ...}]}


def told(what: str) -> dict[str, Any]:
    return tensor(shape=[1], datatype="BYTES", data=[what])


INSTANCES = {"instances": [1]}

# Answered with 200: what the table's requests are compared with, and what is sent after each of them.
GOOD = v1(INSTANCES)
PREPARATION = v1(INSTANCES, "resting")
"""Takes the model out of service that is asked for as not ready."""

CASES = [
    # V1
    Case("v1 unknown model", 404, r"Model with name nope does not exist\.", *v1(INSTANCES, "nope")),
    Case("v1 unknown model, bad JSON", 404, r"Model with name nope does not exist\.", *v1(b"{", "nope")),
    Case("v2 unknown model, bad JSON", 404, r"Model with name nope does not exist\.", *v2(b"{", "nope")),
    Case("v1 not ready", 503, r"Model with name resting is not ready\.", *PREPARATION),
    Case("v1 bad JSON", 400, r"Unrecognized request format: .*line 1 column 2", *v1(b"{instances")),
    Case("v1 not UTF-8", 400, "Unrecognized request format", *v1(b'{"instances": ["\xff"]}')),
    Case("v1 NaN", 400, "Unrecognized request format", *v1(b'{"instances": [NaN]}')),
    Case("v1 empty body", 400, r"Unrecognized request format: .*empty", *v1(b"")),
    Case("v1 body is an array", 400, "a list, expected a JSON object", *v1([1, 2])),
    Case("v1 body is a scalar", 400, "a number, expected a JSON object", *v1(5)),
    Case("v1 instances is no list", 400, 'Expected "instances" to be a list', *v1({"instances": 5})),
    Case("v1 nested too deeply", 400, "Unrecognized request format", *v1(b'{"instances": ' + b"[" * 2000)),
    Case("v1 predict raises", 500, "^RuntimeError : boom$", *v1({"instances": ["error"]}, "raising")),
    Case("v1 predict raises InferenceError", 500, "^bad infer$", *v1({"instances": ["inference"]}, "raising")),
    Case("v1 predict raises InvalidInput", 400, "expected a cat", *v1({"instances": ["invalid"]}, "raising")),
    Case("v1 predict exits", 500, "SystemExit: 3", *v1({"instances": ["exit"]}, "raising")),
    Case("v1 predict raises StopIteration", 500, "at once", *v1({"instances": ["stop"]}, "raising")),
    Case("v1 async predict raises", 500, "^RuntimeError : boom$", *v1({"instances": ["error"]}, "async_raising")),
    Case("v1 async predict exits", 500, "SystemExit: 3", *v1({"instances": ["exit"]}, "async_raising")),
    Case("v1 async StopIteration", 500, "StopIteration", *v1({"instances": ["stop"]}, "async_raising")),
    Case("v1 predict lacks a field", 500, "^KeyError : 'instances'$", *v1({}, "echo")),
    Case("v1 predict not implemented", 501, "Model bare does not implement predict", *v1(INSTANCES, "bare")),
    Case("v1 explain not implemented", 501, "Model echo does not implement explain", *v1(INSTANCES, verb="explain")),
    Case("v1 generator", 500, "is of type int, expected str or bytes", *v1(INSTANCES, "streaming")),
    Case("v1 async generator", 500, "is of type int, expected str or bytes", *v1(INSTANCES, "async_streaming")),
    Case("v1 generator raises at first", 500, "KeyError : 'instances'", *v1({}, "streaming")),
    Case("v1 answer is no JSON", 500, "NaN or infinity, which JSON cannot carry", *v1(INSTANCES, "unwritable")),
    Case("v1 body too large", 413, r"larger than the 4096 bytes that --max_body_size", *v1(b" " * 5000)),
    # V2
    Case("v2 unknown model", 404, r"Model with name nope does not exist\.", *v2(tensor(), "nope")),
    Case("v2 unknown version", 404, r"echo@7 does not exist\. There are: echo@1\.", *v2(tensor(), version="7")),
    Case("v2 not ready", 503, r"Model with name resting is not ready\.", *v2(tensor(), "resting")),
    Case("v2 bad JSON", 400, r"Unrecognized request format: .*line 1 column 2", *v2(b"{inputs")),
    Case("v2 empty body", 400, r"Unrecognized request format: .*empty", *v2(b"")),
    Case("v2 body is an array", 400, "a list, expected a JSON object", *v2([])),
    Case("v2 id is no string", 400, "id is a number, expected a string", *v2({"id": 1, **tensor()})),
    Case("v2 missing inputs", 400, "no inputs, expected `inputs` to be a non-empty list", *v2({})),
    Case("v2 empty inputs", 400, "no inputs, expected `inputs` to be a non-empty list", *v2({"inputs": []})),
    Case("v2 missing data", 400, "input 'x': data is missing, expected a list of 2", *v2(tensor(data=...))),
    Case("v2 missing shape", 400, "input 'x': shape is null, expected a list of integers", *v2(tensor(shape=...))),
    Case("v2 shape mismatch", 400, r"expected 3 elements for shape \[1,3\], got 2", *v2(tensor(shape=[1, 3]))),
    Case("v2 shape is no list", 400, "shape is a number, expected a list", *v2(tensor(shape=2))),
    Case("v2 shape of text", 400, "shape holds \"2\", expected integers of 0 or more", *v2(tensor(shape=["2"]))),
    Case("v2 negative shape", 400, "shape holds -1, expected integers of 0 or more", *v2(tensor(shape=[-1]))),
    Case("v2 unknown datatype", 400, "unknown datatype 'FP31', expected one of BOOL", *v2(tensor(datatype="FP31"))),
    Case("v2 not castable", 400, "element 0 of data is \"a\", expected a number", *v2(tensor(data=["a", "b"]))),
    Case("v2 fraction", 400, "is 1.5, expected an integer", *v2(tensor(datatype="INT8", data=[1.5, 2]))),
    Case("v2 int8 overflow", 400, "is 300, out of range for INT8", *v2(tensor(datatype="INT8", data=[1, 300]))),
    Case("v2 unknown requested output", 400, "Unexpected inference output 'zzz' for model 'echo'; expected 'x'",
         *v2(tensor() | {"outputs": [{"name": "zzz"}]})),
    Case("v2 predict raises", 500, "^RuntimeError : boom$", *v2(told("error"), "raising")),
    Case("v2 predict raises InferenceError", 500, "^bad infer$", *v2(told("inference"), "raising")),
    Case("v2 predict raises InvalidInput", 400, "expected a cat", *v2(told("invalid"), "raising")),
    Case("v2 predict not implemented", 501, "Model bare does not implement predict", *v2(tensor(), "bare")),
    Case("v2 generator", 501, "answers in parts, .* ask for /generate_stream", *v2(tensor(), "streaming")),
    Case("v2 body too large", 413, r"larger than the 4096 bytes that --max_body_size", *v2(b" " * 5000)),
    # Neither
    Case("unknown path", 404, "there is no GET /nowhere", "/nowhere", method="GET"),
    Case("unknown path below a model", 404, "there is no POST /v2/models/echo/nope", "/v2/models/echo/nope"),
    Case("explain on v2", 404, "there is no POST", "/v2/models/echo/explain"),
    Case("GET of predict", 405, "GET is not allowed on /v1/models/echo:predict; it takes POST",
         "/v1/models/echo:predict", method="GET", allow="POST"),
    Case("DELETE of infer", 405, "DELETE is not allowed on /v2/models/echo/infer; it takes POST",
         "/v2/models/echo/infer", method="DELETE", allow="POST"),
    Case("POST of metadata", 405, "POST is not allowed on /v2/models/echo; it takes GET, HEAD",
         "/v2/models/echo", allow="GET, HEAD"),
    Case("metadata of an unknown model", 404, "Model with name nope", "/v2/models/nope", method="GET"),
    Case("metadata of an unknown version", 404, "echo@7", "/v2/models/echo/versions/7", method="GET"),
    Case("status of an unknown model", 404, "Model with name nope", "/v1/models/nope", method="GET"),
    Case("readiness of an unknown model", 404, "Model with name nope", "/v2/models/nope/ready", method="GET"),
]  # fmt: skip
