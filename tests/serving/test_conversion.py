"""From payloads to arrays and from arrays to responses, and whose fault it is when that cannot be."""

import asyncio
from typing import Any

import hypothesis
import ml_dtypes
import numpy as np
import orjson
import pytest
from hypothesis import strategies as st
from mpserve.serving.conversion import of_plain_rows, tensor_stage, to_arrays, to_response
from mpserve.serving.tally import Stopwatch

from mpserve.errors import ConfigurationError, InferenceError, InvalidInput, NotSupported
from mpserve.protocol import v1
from mpserve.protocol.datatypes import Array
from mpserve.protocol.messages import InferInput, InferRequest, InferResponse
from mpserve.protocol.numbers import LONG, Numbers
from mpserve.serving.tensors import Tensor, TensorModel

X = Tensor("x", "FP32", (-1, 2))
N = Tensor("n", "INT8", (-1,))
TEXT = Tensor("text", "BYTES", (-1,))


def model_of(*inputs: Tensor, outputs: tuple[Tensor, ...] = ()) -> TensorModel:
    model = TensorModel("m")
    model.inputs, model.outputs = inputs, outputs
    return model


def v2(*inputs: InferInput) -> InferRequest:
    return InferRequest("m", list(inputs), "id-1")


@pytest.mark.parametrize(
    ("inputs", "payload", "arrays"),
    [
        pytest.param((X,), {"instances": [[1, 2], [3, 4]]}, [np.float32([[1, 2], [3, 4]])], id="rows"),
        pytest.param((X,), {"inputs": [[1, 2]]}, [np.float32([[1, 2]])], id="the alias"),
        pytest.param((X,), {"instances": [{"x": [1, 2]}]}, [np.float32([[1, 2]])], id="rows with names"),
        pytest.param(
            (X, N), {"instances": [{"n": 1, "x": [1, 2]}, {"x": [3, 4], "n": 2}]},
            [np.float32([[1, 2], [3, 4]]), np.int8([1, 2])], id="two inputs",
        ),
        pytest.param((N,), {"instances": []}, [np.int8([])], id="no rows"),
        pytest.param((N,), {"instances": [True, False]}, [np.int8([1, 0])], id="booleans as numbers"),
        pytest.param((TEXT,), {"instances": ["é", "a\0"]}, [np.array(["é".encode(), b"a\0"], object)], id="text"),
        pytest.param((TEXT,), {"instances": [{"b64": "/wA="}]}, [np.array([b"\xff\0"], object)], id="base64"),
        pytest.param(
            (Tensor("x", "BF16", (-1,)),), {"instances": [1.5]}, [np.array([1.5], ml_dtypes.bfloat16)], id="bf16",
        ),
        pytest.param((), {"instances": [[1, 2]]}, [np.int64([[1, 2]])], id="undeclared"),
        pytest.param((), {"instances": [{"a": 1.5, "b": True}]}, [np.float64([1.5]), np.bool_([True])],
                     id="undeclared with names"),
    ],
)  # fmt: skip
def test_v1_instances_become_arrays(inputs: tuple[Tensor, ...], payload: Any, arrays: list[Any]) -> None:
    got = to_arrays(model_of(*inputs), payload)
    for given, expected in zip(got, arrays, strict=True):
        assert given.dtype == expected.dtype
        np.testing.assert_array_equal(given, expected)


@pytest.mark.parametrize(
    ("inputs", "payload", "says"),
    [
        pytest.param((X,), {}, 'expected a JSON object with a list of "instances"', id="no instances"),
        pytest.param((X,), {"inputs": {"x": [1, 2]}}, 'expected a JSON object with a list of "instances"', id="columns"),
        pytest.param((X,), {"inputs": 5}, 'expected a JSON object with a list of "instances"', id="a number"),
        pytest.param((X,), {"inputs": "ab"}, 'expected a JSON object with a list of "instances"', id="a string"),
        pytest.param((X,), b"raw", 'expected a JSON object with a list of "instances"', id="raw bytes"),
        pytest.param((X,), {"instances": [[1, 2, 3]]}, r"input 'x': expected shape \[-1, 2\], got \[1, 3\]", id="shape"),
        pytest.param((X,), {"instances": [[1, 2], [3]]}, "input 'x': expected instances of one shape", id="ragged"),
        pytest.param((X,), {"instances": [["a", "b"]]}, "input 'x': expected numbers for FP32, got a string", id="text"),
        pytest.param((X,), {"instances": [[1, "b"]]}, "input 'x': expected numbers for FP32, got a string", id="mixed"),
        pytest.param((X,), {"instances": [[1, None]]},
                     "input 'x': expected numbers, booleans or strings, got int and null", id="null"),
        pytest.param((X,), {"instances": [[{}, {}]]},
                     "input 'x': expected numbers, booleans or strings, got an object", id="objects within"),
        pytest.param((X,), {"instances": [[1e39, 0]]}, "input 'x': a value is out of range for FP32", id="float range"),
        pytest.param((Tensor("x", "BF16", (-1,)),), {"instances": [1e39]}, "out of range for BF16", id="bf16 range"),
        pytest.param((N,), {"instances": [300]}, r"input 'n': .*300, out of range for INT8 \(-128 to 127\)", id="range"),
        pytest.param((N,), {"instances": [1.5]}, "input 'n': .*float64 cannot be taken as INT8", id="fraction"),
        pytest.param((N,), {"instances": [2**64]}, "input 'n': ", id="beyond 64 bits"),
        pytest.param((TEXT,), {"instances": ["a", 1]}, "input 'text': .*int cannot be taken as BYTES", id="no text"),
        pytest.param((TEXT,), {"instances": [{"b64": "?"}]}, '"b64" holds no valid base64', id="base64"),
        pytest.param((TEXT,), {"instances": [{"b64": 5}]}, '"b64" holds no valid base64', id="base64 of a number"),
        pytest.param((X, N), {"instances": [[1, 2]]}, "each of the instances to be an object with 'x', 'n'", id="bare"),
        pytest.param((X, N), {"instances": [{"x": [1, 2]}]}, "an object with 'x', 'n'", id="one is missing"),
        pytest.param((X,), {"instances": [{"x": [1, 2]}, 5]}, "an object with 'x'", id="not all are objects"),
        pytest.param((), {"instances": [{}]}, "an object with one entry per input, got {}", id="nothing in it"),
        pytest.param((X,), v2(InferInput("y", [1, 2], "FP32", [1, 2])), "unexpected input 'y'; expected 'x'", id="name"),
        pytest.param((X, N), v2(InferInput("x", [1, 2], "FP32", [1, 2])), "missing input 'n'; expected 'x', 'n'",
                     id="v2 one is missing"),
        pytest.param((X,), v2(InferInput("x", [1, 2], "FP64", [1, 2])), "expected datatype FP32, got FP64", id="datatype"),
        pytest.param((X,), v2(InferInput("x", [2], "FP32", [1, 2])), r"expected shape \[-1, 2\], got \[2\]", id="v2 shape"),
    ],
)  # fmt: skip
def test_a_request_that_does_not_match_is_the_clients_fault(inputs: Any, payload: Any, says: str) -> None:
    with pytest.raises(InvalidInput, match=says):
        to_arrays(model_of(*inputs), payload)


def test_v2_inputs_are_taken_by_name_in_the_declared_order() -> None:
    request = v2(InferInput("n", [1], "INT8", [7]), InferInput("x", [1, 2], "FP32", [1, 2]))
    x, n = to_arrays(model_of(X, N), request)
    assert (x.tolist(), n.tolist()) == ([[1.0, 2.0]], [7])


def test_undeclared_v2_inputs_are_taken_as_they_come() -> None:
    [array] = to_arrays(model_of(), v2(InferInput("any", [1], "INT8", [7])))
    assert (array.dtype, array.tolist()) == (np.int8, [7])


ONE = (Tensor("y", "FP32", (-1,)),)
TWO = (Tensor("y", "FP32", (-1,)), Tensor("label", "BYTES", (-1,)))


def outputs_of(response: InferResponse) -> dict[str, tuple[str, list[int], Any]]:
    return {output.name: (output.datatype, output.shape, output.as_numpy().tolist()) for output in response.outputs}


Y = ("FP32", [2], [1.0, 2.0])
LABEL = ("BYTES", [2], [b"a", b"b"])


@pytest.mark.parametrize(
    ("declared", "result", "outputs"),
    [
        pytest.param(ONE, np.float64([1, 2]), {"y": Y}, id="cast to the declared"),
        pytest.param(ONE, [1, 2], {"y": Y}, id="list"),
        pytest.param(ONE, (np.float32([1, 2]),), {"y": Y}, id="tuple of one"),
        pytest.param(ONE, {"y": [1, 2]}, {"y": Y}, id="dict"),
        pytest.param(TWO, ([1, 2], ["a", "b"]), {"y": Y, "label": LABEL}, id="tuple"),
        pytest.param(TWO, [[1, 2], ["a", "b"]], {"y": Y, "label": LABEL}, id="list of outputs"),
        pytest.param(TWO, {"label": ["a", "b"], "y": [1, 2]}, {"y": Y, "label": LABEL}, id="dict in any order"),
        pytest.param((), np.float32([1, 2]), {"output-0": Y}, id="undeclared"),
        pytest.param((), (np.float32([1, 2]), np.array(["a", "b"])), {"output-0": Y, "output-1": LABEL},
                     id="undeclared tuple"),
        pytest.param((), {"y": np.float32([1, 2])}, {"y": Y}, id="undeclared dict"),
    ],
)  # fmt: skip
def test_what_predict_returns_becomes_named_outputs(declared: tuple[Tensor, ...], result: Any, outputs: Any) -> None:
    response = to_response(model_of(outputs=declared), {}, result)
    assert outputs_of(response) == outputs
    assert list(outputs_of(response)) == list(outputs)


@pytest.mark.parametrize(
    ("declared", "result", "says"),
    [
        pytest.param(TWO, [1], "returned 1 outputs; it declares 2: y, label", id="too few"),
        pytest.param(TWO, 5, "returned one int outputs; it declares 2", id="a number"),
        pytest.param(
            TWO, {"y": [1]}, r"returned outputs \['y'\]; it declares \['y', 'label'\]", id="a name is missing"
        ),
        pytest.param(ONE, [[1, 2]], r"'y' is declared with shape \[-1\], the model gave \[1, 2\]", id="shape"),
        pytest.param((N,), [1.5], "output 'n' is declared INT8: .*float64", id="kind"),
        pytest.param((N,), [300], "output 'n' is declared INT8: .*300, out of range", id="range"),
        pytest.param(
            (), np.complex64([1]), "output 'output-0': numpy dtype complex64 has no V2 datatype", id="complex"
        ),
    ],
)
def test_a_result_that_does_not_match_is_the_models_fault(declared: Any, result: Any, says: str) -> None:
    with pytest.raises(InferenceError, match=says):
        to_response(model_of(outputs=declared), {}, result)


def test_a_response_has_the_id_of_its_request() -> None:
    assert to_response(model_of(), v2(), [1]).id == "id-1"


def test_tensors_of_other_frameworks_are_taken_by_what_they_can_do() -> None:
    """A tensor on another device, in a datatype that numpy lacks, with a gradient: as torch has it."""

    class Foreign:
        def __init__(self, steps: str = "", floats: bool = False) -> None:
            self.steps, self.floats = steps, floats

        def detach(self) -> "Foreign":
            return Foreign("detached", self.floats)

        def cpu(self) -> "Foreign":
            return Foreign(f"{self.steps} cpu", self.floats)

        def float(self) -> "Foreign":
            return Foreign(self.steps, floats=True)

        def numpy(self) -> Any:
            if not self.floats:
                raise TypeError("Got unsupported ScalarType BFloat16")
            assert self.steps == "detached cpu"
            return np.float32([1, 2])

    assert outputs_of(to_response(model_of(outputs=ONE), {}, Foreign())) == {"y": Y}


class Double(TensorModel):
    name = "double"
    inputs = (X,)
    outputs = (Tensor("y", "FP32", (-1, 2)),)

    def predict(self, x: Any) -> Any:
        self.seen = x
        return x * 2


class AsyncDouble(Double):
    async def predict(self, x: Any) -> Any:
        return super().predict(x)


@pytest.mark.parametrize("model", [Double(), AsyncDouble()])
def test_the_stage_goes_from_payload_to_response_sync_or_async(model: TensorModel) -> None:
    stage, is_async = tensor_stage(model)
    result = stage({"instances": [[1, 2]]}, {}, {}, Stopwatch())
    response = asyncio.run(result) if is_async else result
    assert is_async == isinstance(model, AsyncDouble)
    assert outputs_of(response) == {"y": ("FP32", [1, 2], [[2.0, 4.0]])}


@pytest.mark.parametrize("declared", ["inputs", "outputs"])
def test_a_datatype_that_does_not_exist_is_found_before_serving(declared: str) -> None:
    model = TensorModel("m")
    setattr(model, declared, [Tensor("t", "float32", (-1,))])
    with pytest.raises(ConfigurationError, match="model m declares 't': unknown datatype 'float32', expected one of"):
        tensor_stage(model)


def test_a_tensor_model_without_predict_is_not_supported() -> None:
    stage, _ = tensor_stage(TensorModel("m"))
    with pytest.raises(NotSupported, match="Model m does not implement predict"):
        stage({"instances": [1]}, {}, {}, Stopwatch())


DATATYPES = [
    "FP16",
    "FP32",
    "FP64",
    "BF16",
    "BOOL",
    "BYTES",
    *(f"{u}INT{n}" for u in ("", "U") for n in (8, 16, 32, 64)),
]
LEAVES = [
    "0", "-0", "-0.0", "1", "-1", "1.5", "1e5", "127", "128", "255", "256", "65504", "65520", "3.4028235e38", "3.5e38", "1e-50",
    "16777217", "9007199254740993", str(2**60 + 2**36 + 1), str(2**63 - 1), str(2**63), str(2**64 - 1), str(2**64), str(-(2**63)),
    "true", "null", '"a"', '{"b64":"YQ=="}', '{"x":1}', "{}", "[]", "[1]",
]  # fmt: skip
NUMBERS = LEAVES[:24]


def arrays_of(body: bytes, declared: tuple[Tensor, ...], numbers: bool) -> Any:
    try:
        given = to_arrays(model_of(*declared), v1.decode_request(body, None, numbers))
    except InvalidInput as error:
        return str(error)
    return [bits(array) for array in given]


def bits(array: Array) -> Any:
    contents = array.tolist() if array.dtype.kind == "O" else array.tobytes()
    return array.dtype, array.shape, contents, array.flags.writeable


def all_ways(rows: str, declared: tuple[Tensor, ...]) -> Any:
    """What comes of rows that are read as ``Numbers``, of the same read as a list, and of a body of nothing but these."""
    body = f'{{"instances":[{" " * LONG}{rows[1:]}}}'.encode()
    told = body_ways(body, declared)
    assert told == arrays_of(f'{{"instances":{rows}}}'.encode(), declared, numbers=True)
    return told


def body_ways(body: bytes, declared: tuple[Tensor, ...]) -> Any:
    told = arrays_of(body, declared, numbers=True)
    assert told == arrays_of(body, declared, numbers=False)
    plain = of_plain_rows(declared, body)
    assert plain is None or [bits(plain)] == told
    return told


@st.composite
def rows(draw: st.DrawFn) -> tuple[str, list[int]]:
    """Rows as JSON text, mostly even and mostly numbers, and their shape."""
    shape = draw(st.lists(st.integers(1, 3), min_size=1, max_size=3))
    leaf = st.sampled_from(draw(st.sampled_from([NUMBERS, NUMBERS[:9], LEAVES])))
    ragged = draw(st.integers(0, 5)) == 0

    def nested(sizes: list[int]) -> str:
        if not sizes:
            return draw(leaf)
        size = draw(st.integers(0, 3)) if ragged else sizes[0]
        return f"[{','.join(nested(sizes[1:]) for _ in range(size))}]"

    return nested(shape), shape


@hypothesis.settings(deadline=None, max_examples=300)
@hypothesis.given(rows(), st.sampled_from(DATATYPES), st.sampled_from(["none", "any", "fits", "other", "two"]))
def test_rows_are_taken_or_refused_alike_as_numbers_and_as_a_list(
    given_rows: tuple[str, list[int]], datatype: str, declaration: str
) -> None:
    text, shape = given_rows
    declared = {
        "none": (),
        "any": (Tensor("x", datatype, [-1] * len(shape)),),
        "fits": (Tensor("x", datatype, shape),),
        "other": (Tensor("x", datatype, [-1, *shape]),),
        "two": (Tensor("x", datatype, [-1]), N),
    }[declaration]
    all_ways(text, declared)


@pytest.mark.parametrize("datatype", [None, *DATATYPES])
@pytest.mark.parametrize("element", LEAVES)
def test_an_element_of_a_row_is_taken_or_refused_alike(datatype: str | None, element: str) -> None:
    declared = () if datatype is None else (Tensor("x", datatype, (-1, 2)),)
    all_ways(f"[[{element},1]]", declared)
    all_ways(f"[[{element},{element}]]", declared)
    all_ways(f"[[-1,{element}]]", declared)


@pytest.mark.parametrize("depth", [1, 2, 32, 33, 64, 65, 100, 900])
def test_deep_rows_are_taken_or_refused_alike(depth: int) -> None:
    for declared in ((), (Tensor("x", "FP32", [-1] * depth),), (X,)):
        all_ways("[" * depth + "1" + "]" * depth, declared)


def test_a_large_integer_is_rounded_once() -> None:
    between = 2**60 + 2**36 + 1  # to FP64 first it would become the middle of two of FP32, and be rounded down
    [(_, _, contents, _)] = all_ways(f"[{between}]", (Tensor("x", "FP32", (-1,)),))
    assert np.frombuffer(contents, np.float32)[0] == 2**60 + 2**37


def test_integers_of_64_bits_unsigned_are_kept_among_smaller_ones() -> None:
    for declared in ((), (Tensor("x", "UINT64", (-1,)),)):
        [(dtype, _, contents, _)] = all_ways(f"[{2**64 - 1},1]", declared)
        assert np.frombuffer(contents, dtype).tolist() == [2**64 - 1, 1]


PLAIN = b'{"instances":[[1,2],[3,4.5]]}' + b" " * LONG


@pytest.mark.parametrize(
    ("body", "is_plain"),
    [
        (PLAIN, True),
        (b" \n\t\r" + PLAIN.replace(b":", b" : "), True),
        (PLAIN.replace(b"[[1,2],[3,4.5]]", b"[1,2.5]"), True),
        (PLAIN.replace(b"[1,2],[3,4.5]", b"[[1],[2]],[[3],[4]]"), True),
        (PLAIN.replace(b"[1,2],[3,4.5]", b"[\t1 ,2]\n,[ 3,4]"), True),
        (PLAIN.replace(b"[1,2]", b"[1]"), False),
        (PLAIN.replace(b"[1,2]", b"[[1,2],[]]"), False),  # two in a list of two
        (PLAIN.replace(b"[1,2],[3,4.5]", b"[],[]"), False),
        (PLAIN.replace(b"[[1,2],[3,4.5]]", b"[]"), False),
        (PLAIN.replace(b"[1,2]", b"1,2"), False),
        (PLAIN.replace(b"4.5", b"true"), False),
        (PLAIN.replace(b"4.5", b"null"), False),
        (PLAIN.replace(b"4.5", b"{}"), False),
        (PLAIN.replace(b"4.5", b'"4.5"'), False),
        (PLAIN.replace(b"4.5", b"1e400"), False),
        (PLAIN.replace(b"4.5", b"04"), False),
        (PLAIN.replace(b"4.5]]", b"4.5]],"), False),
        (PLAIN.replace(b"4.5]]", b"4.5]"), False),
        (PLAIN.replace(b"4.5]]}", b"4.5]]]}"), False),
        (PLAIN.replace(b"}", b"}}"), False),
        (PLAIN + b"\x00", False),
        (PLAIN + PLAIN, False),
        (b"\xef\xbb\xbf" + PLAIN, False),
        (b"[" + PLAIN + b"]", False),
        (PLAIN.replace(b"}", b',"instances":[5]}'), False),
        (PLAIN.replace(b"}", b',"signature_name":"a"}'), False),
        (PLAIN.replace(b"{", b'{"signature_name":"a",'), False),
        (PLAIN.replace(b"instances", b"inputs"), False),
        (PLAIN.replace(b"instances", b"\\u0069nstances"), False),
    ],
)
def test_a_body_of_nothing_but_rows_of_numbers_is_read_in_one_go(body: bytes, is_plain: bool) -> None:
    pytest.importorskip("simdjson")
    assert (of_plain_rows((), body) is not None) == is_plain
    for declared in ((), (X,), (Tensor("x", "FP32", (-1,)),), (Tensor("x", "INT8", (-1, 2)),)):
        body_ways(body, declared)


def test_long_rows_are_not_made_python_objects() -> None:
    pytest.importorskip("simdjson")
    table = np.random.default_rng(3).standard_normal((40, 20)).astype(np.float32)
    payload = v1.decode_request(orjson.dumps({"instances": table.tolist()}), None, numbers=True)
    assert isinstance(payload, dict)
    assert isinstance(payload["instances"], Numbers)
    [array] = to_arrays(model_of(Tensor("x", "FP32", (-1, 20))), payload)
    np.testing.assert_array_equal(array, table)


@pytest.mark.parametrize("count", [1, 16, 17, 1000])
@pytest.mark.parametrize("value", [1e155, -1e308, 1.7976931348623157e308])
def test_numbers_whose_squares_are_beyond_any_float_are_taken_or_refused_without_a_warning(
    value: float, count: int
) -> None:
    """Of which numpy makes one, that would be an error here."""
    rows = [*[1.0] * (count - 1), value]
    [array] = to_arrays(model_of(Tensor("x", "FP64", (-1,))), {"instances": rows})
    assert array.tolist() == rows
    for datatype in ("FP32", "FP16"):
        with pytest.raises(InvalidInput, match=f"out of range for {datatype}"):
            to_arrays(model_of(Tensor("x", datatype, (-1,))), {"instances": rows})
