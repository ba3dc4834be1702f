"""The codec of files that are posted to V2's infer: a body that is one element of BYTES, or a form whose fields are the inputs.

The answer is V2's JSON. Forms are read by python-multipart, which is imported when the first form comes. Knows no HTTP but the
content type.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from mpserve.errors import InvalidInput, UnsupportedMediaType
from mpserve.protocol.binary import decode_raw
from mpserve.protocol.codec import Inputs
from mpserve.protocol.datatypes import NonFinite, array_of_objects
from mpserve.protocol.declaration import Tensor
from mpserve.protocol.generate import fitted
from mpserve.protocol.json.documents import MAX_SHOWN
from mpserve.protocol.json.elements import decode_data, show_shape
from mpserve.protocol.tensors import NamedArray
from mpserve.protocol.v2.codec import OCTETS, V2Codec

FORM = "multipart/form-data"
IMAGE = "image/"
MOST = 256  # parts of a form
HEADERS = 8192  # bytes of the headers of a part


def is_upload(content_type: str) -> bool:
    """Whether a body of this content type may be a file or a form of files."""
    lower = content_type.lower()
    return lower.startswith((IMAGE, OCTETS, FORM))


class UploadCodec(V2Codec):
    """Files and forms, and JSON that calls itself octets."""

    def __init__(self, nonfinite: NonFinite, content_type: str) -> None:
        super().__init__(nonfinite)
        self.is_json = False
        self._content_type = content_type
        self._media_type = content_type.partition(";")[0].strip().lower()

    def read(self, body: bytes, declared: Sequence[Tensor], speaks_arrays: bool) -> Inputs:
        texts = [tensor for tensor in declared if tensor.datatype == "BYTES"]
        if self._media_type == FORM and (texts or not declared):
            return Inputs(list(_inputs(declared, _fields(self._content_type, body))))
        if self._media_type != FORM and len(declared) == len(texts) == 1 and not self.json_in(body):
            return Inputs([decode_raw(body, declared)])
        if self._media_type == OCTETS:
            return super().read(body, declared, speaks_arrays)
        expected = (
            ", ".join(f"{each.name!r} {each.datatype} {show_shape(each.shape)}" for each in declared) or "nothing"
        )
        raise UnsupportedMediaType(
            f"the body is {self._media_type[:MAX_SHOWN]}, which needs a model that declares one input, of BYTES, or a form whose"
            f" fields are its inputs; this model declares {expected}: send V2's JSON"
        )

    def json_in(self, body: bytes) -> bytes:
        return body if self._media_type == OCTETS and body.lstrip()[:1] == b"{" and b'"inputs"' in body else b""


def _inputs(declared: Sequence[Tensor], fields: Mapping[str, list[bytes]]) -> list[NamedArray]:
    """The inputs in the fields of a form. A number is written as in JSON. Undeclared inputs are BYTES."""
    by_name = {tensor.name: tensor for tensor in declared}
    tensors = []
    for name, values in fields.items():
        tensor = by_name.get(name, Tensor(name, "BYTES", (-1,)))
        try:
            tensors.append((name, tensor.datatype, _array(values, tensor.datatype, tensor.shape)))
        except (InvalidInput, ValueError) as error:
            raise InvalidInput(f"input '{name[:MAX_SHOWN]}': {error}") from None
    if not tensors:
        raise InvalidInput("the form has no fields, expected one for each input")
    return tensors


def _array(values: list[bytes], datatype: str, shape: Sequence[int]) -> Any:
    elements: list[Any] = values if datatype == "BYTES" else [orjson.loads(value) for value in values]
    if len(elements) == 1 and isinstance(elements[0], list):
        elements = elements[0]
    sizes = fitted(len(elements), shape)
    if sizes is None:
        raise InvalidInput(f"{len(elements)} elements do not fit shape {show_shape(shape)}")
    if datatype != "BYTES":
        return decode_data(elements, datatype, sizes)
    return array_of_objects(elements).reshape(sizes)


def _fields(content_type: str, body: bytes) -> dict[str, list[bytes]]:
    """The contents of a form by name. Raises InvalidInput if it is no form; UnsupportedMediaType without python-multipart."""
    try:
        from python_multipart.exceptions import FormParserError
        from python_multipart.multipart import MultipartParser, parse_options_header
    except ImportError:
        raise UnsupportedMediaType(f"{FORM} needs a package on the server: pip install 'mpserve[uploads]'") from None
    boundary = parse_options_header(content_type)[1].get(b"boundary")
    if not boundary:
        raise InvalidInput(f"the content type {FORM} has no boundary")
    form = _Form(parse_options_header)
    try:
        parser = MultipartParser(boundary, form.callbacks())  # type: ignore[arg-type]
        parser.write(body)
        parser.finalize()
    except FormParserError as error:
        raise InvalidInput(f"the body is no {FORM}: {error}") from None
    if not form.is_whole:
        raise InvalidInput(f"the body is no {FORM}: it is cut short")
    return form.fields


class _Form:
    """Takes the events of the parser."""

    def __init__(self, parse_options: Any) -> None:
        self.fields: dict[str, list[bytes]] = {}
        self.is_whole = False
        self._parse_options = parse_options
        self._count = 0
        self._begin()

    def callbacks(self) -> dict[str, Any]:
        return {
            "on_part_begin": self._begin, "on_header_field": self._header_field, "on_header_value": self._header_value,
            "on_header_end": self._header_end, "on_part_data": self._data, "on_part_end": self._end, "on_end": self._finish,
        }  # fmt: skip

    def _begin(self) -> None:
        self._name, self._value, self._size = b"", b"", 0
        self._headers: dict[bytes, bytes] = {}
        self._chunks: list[bytes] = []

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._grow(end - start)
        self._name += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._grow(end - start)
        self._value += data[start:end]

    def _grow(self, size: int) -> None:
        self._size += size
        if self._size > HEADERS:
            raise InvalidInput(f"the headers of a part are longer than {HEADERS} bytes")

    def _header_end(self) -> None:
        self._headers[self._name.lower()] = self._value
        self._name, self._value = b"", b""

    def _data(self, data: bytes, start: int, end: int) -> None:
        self._chunks.append(data[start:end])

    def _end(self) -> None:
        self._count += 1
        name = self._parse_options(self._headers.get(b"content-disposition"))[1].get(b"name")
        if name is None or self._count > MOST:
            raise InvalidInput(f"expected at most {MOST} parts, each with a name")
        self.fields.setdefault(name.decode(errors="replace"), []).append(b"".join(self._chunks))

    def _finish(self) -> None:
        self.is_whole = True
