"""From a path and headers to the head of an inference request; and what is left to Starlette's routes."""

from typing import Any

import pytest

from mpserve.config.settings import Settings
from mpserve.http.inference import routes
from mpserve.http.inference.routes import Codecs, Format, InferenceRoutes
from mpserve.http.request_log import RequestLog
from mpserve.protocol.generate import GenerateCodec, GenerateStreamCodec
from mpserve.protocol.v1.codec import CloudEventCodec, V1Codec
from mpserve.protocol.v2.codec import V2Codec
from tests.cases import each


def of_server(access_log: bool = False) -> InferenceRoutes:
    return InferenceRoutes(Settings(), RequestLog(access_log))


@each("path, model, version, verb, codec", [
    ("/v1/models/m:predict", "m", None, "predict", V1Codec),
    ("/v1/models/a.b-c_9:explain", "a.b-c_9", None, "explain", V1Codec),
    ("/v2/models/m/infer", "m", None, "predict", V2Codec),
    ("/v2/models/m/versions/3/infer", "m", "3", "predict", V2Codec),
    ("/v2/models/m/generate", "m", None, "predict", GenerateCodec),
    ("/v2/models/m/versions/3/generate", "m", "3", "predict", GenerateCodec),
    ("/v2/models/m/generate_stream", "m", None, "predict", GenerateStreamCodec),
    ("/v2/models/m/versions/3/generate_stream", "m", "3", "predict", GenerateStreamCodec),
])  # fmt: skip
def test_a_path_names_the_model_its_version_the_verb_and_the_format(
    path: str, model: str, version: str | None, verb: str, codec: type
) -> None:
    known = of_server()
    for _ in range(2):  # the second time it is known
        found = known.match(path.encode(), [(b"x-request-id", b"mine"), (b"accept-encoding", b"gzip")])
        assert found is not None
        head = found.head
        assert (head.model, head.version, head.verb, type(head.codec)) == (model, version, verb, codec)
        assert (head.identity, head.accept_encoding, head.content_encoding) == ("mine", "gzip", None)
        assert (found.match.path, found.match.route.template in routes.ROUTES) == (path, True)


@each("target", [
    b"/", b"/v1/models/m", b"/v1/models/m:predict?a=b", b"/v1/models/m%3Apredict", b"/v1/models/%6D:predict",
    b"/v1/models/m:predict/", b"/v1/models//m:predict", b"/v1/models/:predict", b"/v1/models/a/b:predict",
    b"/v1/models/m:predict\n", b"//v1/models/m:predict", b"/V1/models/m:predict", b"/v1/models/m:predicted",
    b"/v1/models/\xc3\xa9:predict", b"/v2/models/m/versions//infer", b"/v2/models/m/versions/1/2/infer",
    b"http://h/v1/models/m:predict", b"/v2/models/m/explain", b"*", b"",
])  # fmt: skip
def test_any_other_path_is_left_to_starlette(target: bytes) -> None:
    assert of_server().match(target, []) is None


def test_the_client_behind_a_proxy_is_found_out_by_the_application_where_it_is_logged() -> None:
    headers = [(b"x-forwarded-for", b"10.0.0.1")]
    assert of_server(access_log=True).match(b"/v1/models/m:predict", headers) is None
    assert of_server().match(b"/v1/models/m:predict", headers) is not None


def test_no_more_paths_are_remembered_than_a_server_has_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routes, "MAX_CACHED", 3)
    known = of_server()
    for number in range(9):
        assert known.match(b"/v1/models/m%d:predict" % number, []) is not None
    assert len(known._cache) == 3


EVENT = {"ce-specversion": "1.0", "ce-id": "1", "ce-source": "s", "ce-type": "t"}


@each("format, headers, codec", [
    (Format.V1, {}, V1Codec), (Format.V1, EVENT, CloudEventCodec),
    (Format.V1, {"content-type": "application/cloudevents+json"}, CloudEventCodec), (Format.V2, EVENT, V2Codec),
    (Format.GENERATE, {"inference-header-content-length": "1", "content-type": "text/plain"}, GenerateCodec),
])  # fmt: skip
def test_the_headers_say_which_codec_of_the_format(format: Format, headers: dict[str, str], codec: type) -> None:
    assert type(Codecs(Settings()).choose(format, headers)) is codec


@each("nonfinite", ["error", "null"])
def test_a_codec_has_the_options_of_the_server_and_of_the_request(nonfinite: Any) -> None:
    choose: Any = Codecs(Settings(nonfinite=nonfinite)).choose
    raw, json = (choose(Format.V1, {"content-type": of}) for of in ("image/png", "a/b+json"))
    binary, v2 = (choose(Format.V2, of) for of in ({"inference-header-content-length": "7"}, {}))
    assert (raw.is_json, json.is_json, binary.json_length, v2.json_length) == (False, True, "7", None)
    assert {codec.nonfinite for codec in (raw, json, binary, v2)} == {nonfinite}
