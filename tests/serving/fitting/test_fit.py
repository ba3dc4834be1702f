"""Whether tensors are what a model declares, and whose fault it is where they are not."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from mpserve.errors import InferenceError, InvalidInput
from mpserve.protocol.declaration import Tensor
from mpserve.serving.fitting.fit import fit_inputs, fit_outputs, is_stream
from tests.cases import each

X = Tensor("x", "FP32", (-1, 2))
N = Tensor("n", "INT8", (-1,))


def test_inputs_are_taken_by_name_in_the_declared_order() -> None:
    given = [("n", "INT8", np.int8([7])), ("x", "FP32", np.float32([[1, 2]]))]
    for tensors in (given, given[::-1]):
        x, n = fit_inputs((X, N), tensors)
        assert (x.tolist(), n.tolist()) == ([[1.0, 2.0]], [7])


ROW = np.float32([[1, 2]])


@each("declared, given, says", [
    ((X,), [("y", "FP32", ROW)], "^unexpected input 'y'; expected 'x'$"),
    ((X, N), [("x", "FP32", ROW)], "^missing input 'n'; expected 'x', 'n'$"),
    ((X,), [("x", "FP32", ROW), ("y", "FP32", ROW)], "^unexpected input 'y'; expected 'x'$"),
    ((X,), [("x", "FP64", np.float64(ROW))], "^input 'x': expected datatype FP32, got FP64$"),
    ((X,), [("x", "FP32", ROW[0])], r"^input 'x': expected shape \[-1, 2\], got \[2\]; the first dimension counts the rows$"),
    ((X,), [("x", "FP32", ROW[None])], r"^input 'x': expected shape \[-1, 2\], got \[1, 1, 2\]$"),
    ((X,), [("x", "FP32", ROW[:, :1])], r"^input 'x': expected shape \[-1, 2\], got \[1, 1\]$"),
    ((N, X), [("x", "FP32", ROW[:, :1]), ("n", "INT8", np.int8([7]))], "^input 'x': expected shape"),
])  # fmt: skip
def test_inputs_that_do_not_fit_are_the_clients_fault(declared: Any, given: Any, says: str) -> None:
    with pytest.raises(InvalidInput, match=says):
        fit_inputs(declared, given)


ONE = (Tensor("y", "FP32", (-1,)),)
TWO = (Tensor("y", "FP32", (-1,)), Tensor("label", "BYTES", (-1,)))


def outputs(declared: Sequence[Tensor], result: Any) -> dict[str, tuple[str, list[int], Any]]:
    tensors = fit_outputs(declared, result)
    return {name: (datatype, list(array.shape), array.tolist()) for name, datatype, array in tensors}


Y = ("FP32", [2], [1.0, 2.0])
LABEL = ("BYTES", [2], [b"a", b"b"])


@each("declared, result, expected", [
    (ONE, np.float64([1, 2]), {"y": Y}), (ONE, [1, 2], {"y": Y}), (ONE, (np.float32([1, 2]),), {"y": Y}),
    (ONE, {"y": [1, 2]}, {"y": Y}), (TWO, ([1, 2], ["a", "b"]), {"y": Y, "label": LABEL}),
    (TWO, [[1, 2], ["a", "b"]], {"y": Y, "label": LABEL}),
    (TWO, {"label": ["a", "b"], "y": [1, 2]}, {"y": Y, "label": LABEL}), ((), np.float32([1, 2]), {"output-0": Y}),
    ((), (np.float32([1, 2]), np.array([b"a", b"b"])), {"output-0": Y, "output-1": LABEL}),
    ((), {"y": np.float32([1, 2])}, {"y": Y}),
])  # fmt: skip
def test_a_result_becomes_named_outputs_in_the_order_of_the_declaration(
    declared: tuple[Tensor, ...], result: Any, expected: Any
) -> None:
    assert list(outputs(declared, result).items()) == list(expected.items())


@each("declared, result, says", [
    (TWO, [1], "returned 1 outputs; it declares 2: y, label"), (TWO, 5, "returned one int outputs; it declares 2"),
    (TWO, {"y": [1]}, r"returned outputs \['y'\]; it declares \['y', 'label'\]"),
    (ONE, [[1, 2]], r"'y' is declared with shape \[-1\], the model gave \[1, 2\]"),
    ((N,), [1.5], "output 'n' is declared INT8: .*float64"),
    ((N,), [300], "output 'n' is declared INT8: .*300, out of range"),
    ((), np.complex64([1]), "output 'output-0': numpy dtype complex64 has no V2 datatype"),
])  # fmt: skip
def test_a_result_that_does_not_match_is_the_models_fault(declared: Any, result: Any, says: str) -> None:
    with pytest.raises(InferenceError, match=says):
        fit_outputs(declared, result)


def test_tensors_of_other_frameworks_are_taken_by_what_they_can_do() -> None:
    """A tensor on another device, in a datatype that numpy lacks, with a gradient: as torch has it."""

    class Foreign:
        def __init__(self, *steps: str) -> None:
            self.steps = steps

        def __getattr__(self, step: str) -> Any:
            return lambda: Foreign(*self.steps, step)

        def numpy(self) -> Any:
            if self.steps[-1] != "float":
                raise TypeError("Got unsupported ScalarType BFloat16")
            assert self.steps == ("detach", "cpu", "float")
            return np.float32([1, 2])

    assert outputs(ONE, Foreign()) == {"y": Y}


@each("result, answers", [
    (iter([]), True), ((x for x in [1]), True), (range(2), False), ([1], False), ("ab", False), (np.zeros(2), False),
])  # fmt: skip
def test_an_iterator_is_an_answer_in_parts_and_a_container_is_not(result: Any, answers: bool) -> None:
    assert is_stream(result) is answers
