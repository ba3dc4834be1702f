"""2 x + 1 of two declared inputs, in numpy."""

from typing import Any

from mpserve import Tensor, TensorModel


class Affine(TensorModel):
    name = "affine"
    inputs = (Tensor("x", "FP32", (-1, 2)), Tensor("offset", "INT64", (-1,)))
    outputs = (Tensor("y", "FP32", (-1, 2)), Tensor("total", "FP32", (-1,)))

    def predict(self, x: Any, offset: Any) -> Any:
        y = 2 * x + offset[:, None]
        return {"y": y, "total": y.sum(axis=1)}
