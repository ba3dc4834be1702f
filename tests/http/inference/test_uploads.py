"""Files and forms that are posted to V2's infer."""

import re
from typing import Any

import numpy as np

from mpserve import Tensor, TensorModel
from mpserve.serving.models.tensor_model import FunctionModel
from tests.asgi import serving
from tests.cases import each

JPEG = b"\xff\xd8\xff\xe0" + bytes(range(256))
PATH = "/v2/models/m/infer"


class Sizes(TensorModel):
    name = "m"
    inputs = (Tensor("image", "BYTES", (-1,)),)

    def predict(self, image: Any) -> Any:
        return np.array([len(each) for each in image])


class Scaled(TensorModel):
    name = "m"
    inputs = (Tensor("image", "BYTES", (-1, 1)), Tensor("factor", "FP32", (1,)))

    def predict(self, image: Any, factor: Any) -> Any:
        return np.array([[len(each) for each in row] for row in image]) * factor


class Numbers(TensorModel):
    name = "m"
    inputs = (Tensor("x", "FP32", (-1,)),)

    def predict(self, x: Any) -> Any:
        return x


TYPES = ["image/jpeg", "IMAGE/PNG", "application/octet-stream", "image/svg+xml; charset=utf-8"]
V2 = b'{"inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [1.5]}]}'


def form(*parts: tuple[str, bytes], end: bytes = b"--b--\r\n") -> dict[str, Any]:
    written = [
        b'--b\r\ncontent-disposition: form-data; name="%s"\r\n\r\n%s\r\n' % (name.encode(), data)
        for name, data in parts
    ]
    return {"headers": {"content-type": "multipart/form-data; boundary=b"}, "content": b"".join([*written, end])}


@each("content_type", TYPES)
async def test_a_file_is_the_only_input_of_bytes(content_type: str) -> None:
    async with serving(Sizes()) as client:
        answer = await client.post(PATH, headers={"content-type": content_type}, content=JPEG)
    assert answer.json()["outputs"] == [{"name": "output-0", "shape": [1], "datatype": "INT64", "data": [len(JPEG)]}]


@each("model, sent, data", [
    (Sizes, {"files": {"image": ("a.jpg", JPEG, "image/jpeg")}}, [len(JPEG)]),
    (Sizes, {"files": [("image", ("a.jpg", JPEG)), ("image", ("b.jpg", b"\r\n--not"))]}, [len(JPEG), 7]),
    (Scaled, {"files": {"image": ("a.jpg", JPEG)}, "data": {"factor": "0.5"}}, [len(JPEG) / 2]),
    (Scaled, form(("factor", b"[2]"), ("image", b"")), [0.0]),
])  # fmt: skip
async def test_the_fields_of_a_form_are_the_inputs_by_name(model: Any, sent: Any, data: Any) -> None:
    async with serving(model()) as client:
        answer = await client.post(PATH, **sent)
    assert answer.json()["outputs"][0]["data"] == data


def undeclared() -> FunctionModel:
    return FunctionModel("m", lambda image: image, None)


@each("model, sent, status, says", [
    (Numbers, {"headers": {"content-type": "image/jpeg"}, "content": JPEG}, 415, "the body is image/jpeg, .*'x' FP32"),
    (Numbers, form(("x", b"1")), 415, "the body is multipart/form-data"),
    (Scaled, {"headers": {"content-type": "image/png"}, "content": JPEG}, 415, "declares one input, of BYTES"),
    (undeclared, {"headers": {"content-type": "image/png"}, "content": JPEG}, 415, "declares nothing"),
    (Sizes, form(("file", JPEG)), 400, "unexpected input 'file'; expected 'image'"),
    (Sizes, form(("image", JPEG), end=b""), 400, "cut short"), (Sizes, form(), 400, "no fields|cut short|no multipart"),
    (Sizes, form(*[("image", b"")] * 257), 400, "at most 256 parts"),
    (Sizes, form(("a" * 9000, b"")), 400, "longer than 8192|header size"),
    (Sizes, {"headers": {"content-type": "multipart/form-data"}, "content": JPEG}, 400, "no boundary"),
    (Sizes, {"headers": {"content-type": "multipart/form-data; boundary=b"}, "content": JPEG}, 400, "is no multipart/form-data"),
    (Scaled, form(("image", b"a"), ("factor", b"two")), 400, "input 'factor'"),
    (Scaled, form(("image", b"a"), ("factor", b"[1, 2]")), 400, "2 elements do not fit shape"),
])  # fmt: skip
async def test_what_a_model_cannot_take_is_refused_in_words(model: Any, sent: Any, status: int, says: str) -> None:
    async with serving(model()) as client:
        answer = await client.post(PATH, **sent)
    error = answer.json()["error"]
    assert (answer.status_code, bool(re.search(says, error))) == (status, True), error
    assert "accept-encoding" not in answer.headers


async def test_json_that_calls_itself_octets_is_json_still() -> None:
    async with serving(Numbers()) as client:
        answer = await client.post(PATH, headers={"content-type": "application/octet-stream"}, content=V2)
    assert answer.json()["outputs"][0]["data"] == [1.5]


async def test_a_form_is_bounded_by_the_limit_of_bodies() -> None:
    async with serving(Sizes(), max_body_size=1000) as client:
        answer = await client.post(PATH, **form(("image", bytes(2000))))
    assert answer.status_code == 413
