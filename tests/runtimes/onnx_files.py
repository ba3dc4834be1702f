"""ONNX files, made by skl2onnx and by onnx itself."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pandas
import torch
from onnx import TensorProto, helper, numpy_helper
from skl2onnx import to_onnx
from skl2onnx.common.data_types import FloatTensorType, StringTensorType
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import RandomForestClassifier
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from tests.runtimes.model_files import SPECIES, X, Y

FLOAT, INT64, FLOAT16 = TensorProto.FLOAT, TensorProto.INT64, TensorProto.FLOAT16
CITIES = ["Paris", "Rome", "Oslo"]
Values = list[tuple[str, int, list[Any]]]


def net(nodes: list[Any], inputs: Values, outputs: Values, weights: dict[str, Any] | None = None) -> Any:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(*value) for value in inputs],
        [helper.make_tensor_value_info(*value) for value in outputs],
        [numpy_helper.from_array(array, name) for name, array in (weights or {}).items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def scores(folder: Path) -> None:
    """A classifier with ZipMap, whose labels are text."""
    model = LogisticRegression(max_iter=500).fit(X, SPECIES)
    onnx.save(to_onnx(model, X[:1].astype(np.float32)), folder / "scores.onnx")


def forest(folder: Path) -> None:
    model = RandomForestClassifier(10, random_state=0).fit(X, Y)
    made = to_onnx(model, X[:1].astype(np.float32), options={"zipmap": False})
    onnx.save(made, folder / "forest.onnx")


def table(folder: Path) -> None:
    """A pipeline on text and numbers with gaps, with an input [n, 1] for each column."""
    rng = np.random.default_rng(0)
    frame = pandas.DataFrame(
        {"city": rng.choice(CITIES, 300), "age": rng.normal(50, 9, 300), "income": rng.normal(9, 2, 300)}
    )
    target = (frame.age > 50) ^ (frame.city == "Paris")
    prepared = ColumnTransformer([
        ("text", OneHotEncoder(handle_unknown="ignore"), ["city"]),
        ("numbers", make_pipeline(SimpleImputer(), StandardScaler()), ["age", "income"]),
    ])  # fmt: skip
    model = make_pipeline(prepared, RandomForestClassifier(10, random_state=0)).fit(frame, target.astype(int))
    columns = [
        ("city", StringTensorType([None, 1])),
        ("age", FloatTensorType([None, 1])),
        ("income", FloatTensorType([None, 1])),
    ]
    onnx.save(to_onnx(model, initial_types=columns, options={"zipmap": False}), folder / "table.onnx")


def outside(folder: Path) -> None:
    """A network whose weights lie in a file of their own."""
    weights = np.random.default_rng(0).normal(size=(4, 256)).astype(np.float32)
    made = net(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        [("x", FLOAT, ["batch", 4])],
        [("y", FLOAT, ["batch", 256])],
        {"w": weights},
    )
    (folder / "outside" / "3").mkdir(parents=True)
    onnx.save(
        made,
        folder / "outside" / "3" / "model.onnx",
        save_as_external_data=True,
        location="weights.bin",
        size_threshold=0,
    )


def pair(folder: Path) -> None:
    """Two inputs of one batch, of which one is looked up in a table."""
    nodes = [helper.make_node("Gather", ["w", "ids"], ["h"]), helper.make_node("Add", ["h", "bias"], ["y"])]
    inputs: Values = [("ids", INT64, ["batch", "length"]), ("bias", FLOAT, ["batch", "length"])]
    made = net(nodes, inputs, [("y", FLOAT, ["batch", "length"])], {"w": np.arange(10, dtype=np.float32)})
    onnx.save(made, folder / "pair.onnx")


def one(folder: Path) -> None:
    """One row at a time, in half precision; and an output that is a sequence, which V2 cannot carry."""
    made = net(
        [helper.make_node("Neg", ["x"], ["y"]), helper.make_node("SequenceConstruct", ["x", "x"], ["s"])],
        [("x", FLOAT16, [1, 4])],
        [("y", FLOAT16, [1, 4])],
    )
    made.graph.output.append(helper.make_tensor_sequence_value_info("s", FLOAT16, [1, 4]))
    onnx.save(made, folder / "one.onnx")


def traced(folder: Path) -> None:
    """A network of torch, exported by the exporter that needs no further package."""
    module = torch.nn.Linear(4, 2).eval()
    names = {"input_names": ["x"], "output_names": ["y"], "dynamic_axes": {"x": {0: "batch"}, "y": {0: "batch"}}}
    torch.onnx.export(module, (torch.zeros(2, 4),), folder / "traced.onnx", dynamo=False, **names)


MAKERS = {make.__name__: make for make in (scores, forest, table, outside, pair, one, traced)}
