"""``/openapi.json``: it describes what is served, and what it says of a model is true of the model."""

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jsonschema import Draft202012Validator
from starlette.routing import Route

from mpserve.http.app import build_app
from mpserve.http.management.openapi import described
from mpserve.http.management.operations import OPERATIONS
from mpserve.serving.models.model import Model
from mpserve.serving.models.tensor_model import Tensor, TensorModel
from tests.asgi import ask, core_of, serving
from tests.cases import each


class Concatenated(TensorModel):
    """Takes whatever it declares, and gives it as one row of text."""

    outputs = (Tensor("text", "BYTES", (-1,)),)

    def __init__(self, name: str, *inputs: Tensor) -> None:
        super().__init__(name)
        self.inputs = inputs

    def predict(self, *arrays: Any) -> Any:
        return ["".join(str(array.tolist()) for array in arrays)]


MODELS = [
    Concatenated("vector", Tensor("x", "FP32", (-1, 4))),
    Concatenated("pair", Tensor("ids", "INT64", (-1, -1)), Tensor("mask", "BOOL", (-1, 1))),
    Concatenated("text", Tensor("text", "BYTES", (-1,))),
    Concatenated("image", Tensor("image", "UINT8", (-1, 2, 2, 3)), Tensor("scale", "FP64", (1,))),
    Concatenated("gaps", Tensor("x", "FP32", (-1, 2), nullable=True), Tensor("y", "FP32", (-1,))),
    Concatenated("scalar", Tensor("x", "FP16", ())), Concatenated("a {b}%", Tensor("x", "INT8", (-1,))),
]  # fmt: skip


def document_of(*models: Model) -> dict[str, Any]:
    async def main() -> Any:
        async with serving(*models) as client:
            return (await client.get("/openapi.json")).json()

    document: dict[str, Any] = asyncio.run(main())
    return document


DOCUMENT = document_of(*MODELS)


def body_of(path: str, document: dict[str, Any] = DOCUMENT) -> dict[str, Any]:
    """The schema of a JSON request to that path, by itself."""
    schema = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
    return {"allOf": [schema], "components": document["components"]}


def answer_of(path: str) -> dict[str, Any]:
    """The schema of the JSON with which that path answers, by itself."""
    schema = DOCUMENT["paths"][path]["post"]["responses"]["200"]["content"]["application/json"]["schema"]
    return {"allOf": [schema], "components": DOCUMENT["components"]}


def found(value: Any, key: str) -> Iterator[Any]:
    """Everything that stands under ``key``, at any depth."""
    for name, inner in (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    ):
        if name == key:
            yield inner
        yield from found(inner, key)


def test_every_route_is_described_and_nothing_else_is() -> None:
    """A new route needs one row in OPERATIONS of mpserve/http/management/operations.py."""
    routes = [route for route in build_app(core_of(enable_docs_url=True)).routes if isinstance(route, Route)]
    served = {f"{method} {route.path_format}" for route in routes for method in (route.methods or set()) - {"HEAD"}}
    assert served - OPERATIONS.keys() == set(), "add a row to OPERATIONS for each"
    assert OPERATIONS.keys() - served == set(), "these rows of OPERATIONS have no route"


def test_a_users_own_route_is_left_out() -> None:
    assert list(described(["GET /hello", "POST /", "GET /"])["paths"]) == ["/"]


def test_every_reference_leads_somewhere_and_nothing_is_left_unused() -> None:
    there = {f"#/components/{kind}/{name}" for kind, all_of in DOCUMENT["components"].items() for name in all_of}
    assert set(found(DOCUMENT, "$ref")) == there


def test_every_schema_is_one() -> None:
    for schema in (*DOCUMENT["components"]["schemas"].values(), *found(DOCUMENT, "schema")):
        Draft202012Validator.check_schema(schema)


def test_every_place_in_a_path_is_a_parameter() -> None:
    for path, item in DOCUMENT["paths"].items():
        for operation in item.values():
            references = list(found(operation["parameters"], "$ref"))
            inside = re.findall(r"{(\w+)}", path)
            assert references[: len(inside)] == [f"#/components/parameters/{name}" for name in inside]


OF_MODELS = [path for path, item in DOCUMENT["paths"].items() if item.get("post", {}).get("tags") == ["Models"]]


def test_each_model_has_paths_of_its_own() -> None:
    assert OF_MODELS == [
        "/v2/models/vector/infer", "/v1/models/vector:predict",
        "/v2/models/pair/infer", "/v1/models/pair:predict",
        "/v2/models/text/infer", "/v1/models/text:predict",
        "/v2/models/image/infer", "/v1/models/image:predict",
        "/v2/models/gaps/infer", "/v1/models/gaps:predict",
        "/v2/models/scalar/infer",
        "/v2/models/a%20%7Bb%7D%25/infer", "/v1/models/a%20%7Bb%7D%25:predict",
    ]  # fmt: skip


def test_each_version_of_a_model_has_a_path_of_its_own_where_there_are_several() -> None:
    older, newer = (Concatenated("m", Tensor(name, "FP32", (-1,))) for name in ("a", "b"))
    older.version, newer.version = "9", "10"
    document = document_of(older, newer)
    examples = {
        path.removeprefix("/v2/models/m"): body_of(path, document)["allOf"][0]["examples"][0]
        for path in document["paths"]
        if path.startswith("/v2/models/m/")
    }
    inputs = {path: example["inputs"][0]["name"] for path, example in examples.items()}
    assert inputs == {"/infer": "b", "/versions/9/infer": "a", "/versions/10/infer": "b"}


@each("path", OF_MODELS)
async def test_the_example_fits_its_schema_and_the_answer_fits_its_own(path: str) -> None:
    schema = body_of(path)
    (example,) = schema["allOf"][0]["examples"]
    Draft202012Validator(schema).validate(example)

    async with serving(*MODELS) as client:
        answer = await client.post(path, json=example)
    assert answer.status_code == 200, answer.text
    Draft202012Validator(answer_of(path)).validate(answer.json())


def test_the_page_is_there_when_it_is_asked_for() -> None:
    off = ask(MODELS[0], "GET", "/docs")
    assert (off.status_code, off.json()["error"]) == (404, "there is no GET /docs; --enable_docs_url turns it on")
    answer = ask(MODELS[0], "GET", "/docs", options={"enable_docs_url": True})
    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/html; charset=utf-8")


def v2(**changes: Any) -> dict[str, Any]:
    return {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]} | changes]}


@each("path, body, fits", [
    *(("/v2/models/vector/infer", body, True) for body in (
        v2(), v2(data=[[1, 2, 3, 4]]), v2(shape=[2, 4], data=[0.5] * 8),
        v2() | {"id": "7", "parameters": {"a": 1}, "outputs": [{"name": "text"}]},
    )),
    *(("/v2/models/vector/infer", body, False) for body in (
        v2(name="y"), v2(datatype="FP31"), v2(datatype="INT8"), v2(shape=[4]), v2(shape=[1, 5]), v2(shape=[-1, 4]),
        v2(data="1"), {"inputs": []}, {},
    )),
    ("/v1/models/vector:predict", {"instances": [[1, 2, 3, 4.5]]}, True),
    *(("/v1/models/vector:predict", {"instances": rows}, False) for rows in ([[1, 2, 3]], [1], {"x": [1, 2, 3, 4]})),
    ("/v1/models/pair:predict", {"instances": [{"ids": [1, 2], "mask": [True]}]}, True),
    ("/v1/models/pair:predict", {"instances": [{"ids": [1, 2]}]}, False),
    ("/v1/models/pair:predict", {"instances": [{"ids": ["a"], "mask": [True]}]}, False),
    ("/v1/models/gaps:predict", {"instances": [{"x": [None, 1], "y": 1}]}, True),
    ("/v1/models/gaps:predict", {"instances": [{"x": [1, 1], "y": None}]}, False),
    ("/v1/models/vector:predict", {"instances": [[1, 2, 3, None]]}, False),
    ("/v1/models/text:predict", {"instances": ["a", {"b64": "YQ=="}]}, True),
    ("/v1/models/text:predict", {"instances": [1]}, False),
])  # fmt: skip
def test_a_models_schema_tells_its_requests_from_others(path: str, body: Any, fits: bool) -> None:
    assert Draft202012Validator(body_of(path)).is_valid(body) == fits


@each("path", ["/v2/models/m/infer", "/v1/models/m:predict"])
def test_an_input_that_is_large_has_no_example(path: str) -> None:
    document = document_of(Concatenated("m", Tensor("image", "FP32", (-1, 3, 224, 224))))
    assert "examples" not in body_of(path, document)["allOf"][0]


async def test_models_come_and_go() -> None:
    async with serving(MODELS[0]) as client:
        there = []
        for verb in (None, "unload", "load"):
            if verb:
                assert (await client.post(f"/v2/repository/models/vector/{verb}")).status_code == 200
            there.append("/v2/models/vector/infer" in (await client.get("/openapi.json")).json()["paths"])
    assert there == [True, False, True]


@each("declaration", [
    RuntimeError("not today"), [{"name": "x"}], [{"name": "x", "datatype": "FP32", "shape": "any"}], [1], None,
])  # fmt: skip
def test_a_model_that_does_not_say_what_it_takes_costs_the_others_nothing(declaration: Any) -> None:
    class Odd(Model):
        name = "odd"

        def get_input_types(self) -> Any:
            if isinstance(declaration, Exception):
                raise declaration
            return declaration

    document = document_of(Odd(), MODELS[0])
    general = ["/v2/models/odd/infer", "/v1/models/odd:predict"]
    assert [path for path in document["paths"] if "odd" in path or "vector" in path] == general + OF_MODELS[:2]
    assert [body_of(path, document)["allOf"] for path in general] == [
        [{"$ref": "#/components/schemas/InferRequest"}], [{"$ref": "#/components/schemas/PredictRequest"}],
    ]  # fmt: skip


class Payload(Model):
    """A model of the kserve SDK."""

    name = "m"
    sample: Any = {"instances": [{"text": "a"}]}  # noqa: RUF012

    def predict(self, payload: Any, headers: Any = None) -> Any:
        return {"predictions": payload["instances"]}


def with_sample(sample: Any, *inputs: Tensor) -> Model:
    model = Concatenated("m", *inputs)
    model.sample = sample
    return model


@each("model, rows, names", [
    (with_sample(np.array([[1, 2.5]]), Tensor("x", "FP32", (-1, 2))), [[1.0, 2.5]], ["x"]),
    (with_sample(np.array([[5.1, 1.4]], np.float32), Tensor("x", "FP32", (-1, 2))), [[5.1, 1.4]], ["x"]),
    (with_sample({"a": np.array([1, 2]), "b": np.array(["x", "y"])}), [{"a": 1, "b": "x"}, {"a": 2, "b": "y"}], ["a", "b"]),
    (with_sample([np.zeros((1, 2)), np.array(["x", "y"])]), None, ["0", "1"]),
    (Payload(), [{"text": "a"}], ["input-0"]),
])  # fmt: skip
async def test_the_sample_of_a_model_is_its_example(model: Model, rows: Any, names: list[str]) -> None:
    async with serving(model) as client:
        document = (await client.get("/openapi.json")).json()
        bodies = {path: body_of(path, document)["allOf"][0] for path in ("/v1/models/m:predict", "/v2/models/m/infer")}
        examples = {path: body["examples"][0] for path, body in bodies.items() if "examples" in body}
        if rows is not None:
            assert examples["/v1/models/m:predict"] == {"instances": rows}
        if "/v2/models/m/infer" in examples:
            assert [given["name"] for given in examples["/v2/models/m/infer"]["inputs"]] == names
        for path, example in examples.items():
            answer = await client.post(path, json=example)
            assert answer.status_code == 200, answer.text


def test_the_document_tells_that_callers_must_be_known(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("alice alice-0123456789abcdef\n")
    options = {"api_keys_file": str(tmp_path / "keys"), "public": "health,docs"}
    document = ask(MODELS[0], "GET", "/openapi.json", options=options).json()
    assert document["components"]["securitySchemes"].keys() == {name for each in document["security"] for name in each}
    open_to_all = {
        path for path, item in document["paths"].items() for each in item.values() if each.get("security") == []
    }
    assert open_to_all == {"/", "/ping", "/health", "/v2/health/live", "/v2/health/ready", "/openapi.json"}
    assert all(("401" in each["responses"]) != (path in open_to_all)
               for path, item in document["paths"].items() for each in item.values())  # fmt: skip
    assert "security" not in ask(MODELS[0], "GET", "/openapi.json").json()
