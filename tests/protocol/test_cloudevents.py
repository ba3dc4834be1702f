import base64
import contextlib
import uuid
from datetime import datetime, timedelta, timezone

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpserve.errors import InvalidInput, NotSupported
from mpserve.protocol.cloudevents import Event, is_event, unwrap, wrap
from tests.cases import each

ATTRIBUTES = {
    "specversion": "1.0", "id": "36077800", "source": "https://example.com/producer", "type": "com.example.sample",
}  # fmt: skip
PAYLOAD = {"instances": [[1, 2]]}
DATA = orjson.dumps(PAYLOAD)
ANSWER = b'{"predictions":[[1,2]]}'
STRUCTURED = {"content-type": "application/cloudevents+json"}


def binary(content_type="application/json", without=(), **attributes):
    headers = {f"ce-{name}": value for name, value in (ATTRIBUTES | attributes).items() if name not in without}
    return headers if content_type is None else headers | {"content-type": content_type}


def envelope(without=(), **members):
    return orjson.dumps({name: value for name, value in (ATTRIBUTES | members).items() if name not in without})


@each("headers, expected", [
    ({}, False), ({"content-type": "application/json"}, False), ({"content-type": "application/ld+json"}, False),
    ({"content-type": "application/cloud"}, False), ({"ce-id": "1", "ce-type": "t", "ce-source": "s"}, False),
    ({"ce-specversion": "1.0"}, True), (STRUCTURED, True),
    ({"content-type": "Application/CloudEvents+JSON ;charset=UTF-8"}, True),
    ({"content-type": "application/cloudevents-batch+json"}, True),
    ({"content-type": "application/cloudevents+avro"}, True),
])  # fmt: skip
def test_an_event_is_told_by_its_headers(headers, expected):
    assert is_event(headers) is expected


BASE64 = base64.b64encode(DATA).decode()


@each("content_type", ["application/cloudevents+json", "APPLICATION/cloudevents+json; charset=UTF-8"])
@each("members", [
    {"data": PAYLOAD}, {"data": PAYLOAD, "time": "2021-01-28T21:04:43.144141+00:00"},
    *({"data": PAYLOAD, "datacontenttype": media_type}
      for media_type in ("application/json; charset=utf-8", "text/json", "application/ld+json", "application/avro")),
    {"data": PAYLOAD, "datacontenttype": None, "subject": None, "data_base64": None}, {"data_base64": BASE64},
    {"data_base64": BASE64, "datacontenttype": "application/json"}, {"data_base64": BASE64, "data": None},
])  # fmt: skip
def test_a_structured_events_json_is_the_payload(content_type, members):
    event = unwrap({"content-type": content_type}, envelope(**members))
    assert (event.data, event.structured) == (PAYLOAD, True)
    assert ATTRIBUTES.items() <= event.attributes.items()
    assert not {"data", "data_base64"} & event.attributes.keys()
    assert None not in event.attributes.values()


@each("content_type", [
    None, "", "application/json", "application/json; charset=utf-8", "text/json", "a/b+json",
    "application/x-www-form-urlencoded",
])  # fmt: skip
def test_a_binary_events_json_is_the_payload(content_type):
    event = unwrap(binary(content_type), DATA)
    assert (event.data, event.structured) == (PAYLOAD, False)
    assert ATTRIBUTES.items() <= event.attributes.items()


@each("members, data", [
    ({"data": "<a/>", "datacontenttype": "application/xml"}, b"<a/>"),
    ({"data": "gr\u00fcn", "datacontenttype": "text/plain"}, "gr\u00fcn".encode()),
    ({"data_base64": "AP8K", "datacontenttype": "application/octet-stream"}, b"\x00\xff\n"),
    ({"data_base64": "", "datacontenttype": "application/octet-stream"}, b""),
    ({"data_base64": "AP8K", "content-type": "application/avro"}, b"\x00\xff\n"),
])  # fmt: skip
def test_a_structured_events_other_data_is_bytes(members, data):
    assert unwrap(STRUCTURED, envelope(**members)).data == data


@each("headers", [
    binary("application/avro"), binary("application/octet-stream"), binary("text/plain"),
    binary(None, **{"content-type": "application/avro"}), binary(None, contenttype="application/avro"),
    binary(None, datacontenttype="application/avro"),
])  # fmt: skip
def test_a_binary_events_other_data_is_bytes(headers):
    assert unwrap(headers, b"\x00\xff") == Event(unwrap(headers, b"").attributes, b"\x00\xff", False)
    assert unwrap(headers, DATA).data == DATA


def test_the_content_type_header_is_the_datas_media_type_whatever_an_attribute_says():
    event = unwrap(binary("application/json", datacontenttype="application/avro"), DATA)
    assert event.data == PAYLOAD
    assert event.attributes["datacontenttype"] == "application/json"


@each("header, value", [
    ("Euro%20%E2%82%AC%20%F0%9F%98%80", "Euro \u20ac \U0001f600"), ("%e2%82%ac", "\u20ac"), ("%41%42c", "ABc"),
    ("100%", "100%"), ("a%2", "a%2"), ('"Euro \\"x\\" \\\\ %20"', 'Euro "x" \\  '), ('"', '"'), ('a"b"', 'a"b"'),
    ('""', ""),
])  # fmt: skip
def test_attributes_in_headers_are_decoded_as_the_http_binding_says(header, value):
    assert unwrap(binary(subject=header), DATA).attributes["subject"] == value


@each("name", ATTRIBUTES)
def test_a_required_attribute_that_is_missing_null_or_empty_is_named(name):
    without, empty = {"without": (name,)}, {name: ""}
    events = [(STRUCTURED, envelope(data=PAYLOAD, **absent)) for absent in (without, empty, {name: None})]
    for headers, body in [*events, (binary(**without), DATA), (binary(**empty), DATA)]:
        with pytest.raises(InvalidInput, match=f"^the event has no {name}, which CloudEvents 1.0 requires$"):
            unwrap(headers, body)


NO_BASE64 = "the event's data_base64 is not a string in base64"
NO_JSON = "Failed to decode or parse binary json cloudevent: "


@each("members, message", [
    ({"id": 5}, "the event's id is a number, expected a string"),
    ({"source": ["a"]}, "the event's source is a list, expected a string"),
    ({"specversion": 1.0}, "the event's specversion is a number, expected a string"),
    ({"specversion": "0.3"}, "the event's specversion is '0.3', expected '1.0'"), ({}, "the event has no data"),
    ({"data_base64": None}, "the event has no data"),
    ({"data": PAYLOAD, "data_base64": "AA=="}, "the event has both data and data_base64"),
    *(({"data_base64": text}, NO_BASE64) for text in ("A", "AA==\n", "\u00fc", 5)), ({"data_base64": "AP8K"}, NO_JSON),
    ({"data_base64": "WzFd"}, "the event's data is a list, expected a JSON object"),
    ({"data": None}, "the event's data is null, expected a JSON object"),
    ({"data": DATA.decode()}, "the event's data is a string, expected a JSON object"),
    ({"data": [1]}, "the event's data is a list, expected a JSON object"),
    ({"data": 5, "datacontenttype": "text/plain"}, "the event's data is a number, expected a JSON object"),
    ({"data": {"instances": 5}}, 'Expected "instances" to be a list'),
])  # fmt: skip
def test_a_structured_event_that_is_wrong_is_refused_in_words(members, message):
    with pytest.raises(InvalidInput, match=f"^{message}"):
        unwrap(STRUCTURED, envelope(**members))


@each("headers, body, message", [
    (binary(), b"", f"{NO_JSON}.*empty"), (binary(), b"{", NO_JSON), (binary(None), b"\x00\x01", NO_JSON),
    (binary(), b"[1]", "the event's data is a list, expected a JSON object"),
    (binary(), b'{"instances": {}}', 'Expected "instances" to be a list'),
    (binary(specversion="0.3"), DATA, "the event's specversion is '0.3', expected '1.0'"),
    *((binary(subject=text), DATA, f"the header ce-subject is '{text}', expected percent-encoded UTF-8")
      for text in ("%C0%A0", "%FF")),
])  # fmt: skip
def test_a_binary_event_that_is_wrong_is_refused_in_words(headers, body, message):
    with pytest.raises(InvalidInput, match=f"^{message}"):
        unwrap(headers, body)


@each("media_type", ["application/cloudevents-batch+json", "application/cloudevents+avro"])
def test_batches_and_other_formats_are_refused_in_words(media_type):
    words = f"^{media_type.replace('+', '.')} is not supported, expected application/cloud"
    with pytest.raises(NotSupported, match=words):
        unwrap({"content-type": f"{media_type}; charset=UTF-8"}, b"[]")


def answer(event, body=ANSWER, content_type="application/json", **options):
    """The answer's attributes and its data, in either mode."""
    headers, encoded = wrap(event, body, content_type, "TestModel", **options)
    if event.structured:
        assert headers == STRUCTURED
        attributes = orjson.loads(encoded)
        data = attributes.pop("data", None)
        return attributes, base64.b64decode(attributes.pop("data_base64")) if "data_base64" in attributes else data
    attributes = {name[3:]: value for name, value in headers.items() if name.startswith("ce-")}
    assert headers.keys() == {f"ce-{name}" for name in attributes} | {"content-type"}
    return attributes | {"datacontenttype": headers["content-type"]}, encoded


def event_of(mode, **attributes):
    if mode == "structured":
        return unwrap(STRUCTURED, envelope(data=PAYLOAD, **attributes))
    return unwrap(binary(**attributes), DATA)


MODES = each("mode", ["structured", "binary"])


OF_THE_EVENT = {"specversion", "id", "source", "type", "time", "datacontenttype"}
CARRIED = {"subject": "s", "custom-extension": "custom-value", "traceparent": "00-1-2-00"}
LEFT = {"time": "2021-01-28T21:04:43Z", "dataschema": "http://x/y", "content-type": "application/json"}


@MODES
@each("merge, carried", [(False, {}), (True, CARRIED)])
def test_the_answer_is_an_event_of_its_own_with_the_others_attributes_if_they_are_merged(mode, merge, carried):
    event = event_of(mode, **CARRIED, **LEFT)
    attributes, data = answer(event, merge=merge)
    assert data == (orjson.loads(ANSWER) if event.structured else ANSWER)
    assert attributes.keys() == OF_THE_EVENT | carried.keys()
    expected = {"specversion": "1.0", "source": "io.kserve.inference.TestModel", "type": "io.kserve.inference.response"}
    assert (expected | {"datacontenttype": "application/json"} | carried).items() <= attributes.items()
    assert uuid.UUID(attributes["id"]).version == 4
    assert attributes["id"] != answer(event, merge=merge)[0]["id"]
    time = datetime.fromisoformat(attributes["time"])
    assert timedelta(0) <= datetime.now(timezone.utc) - time < timedelta(minutes=1)
    assert event.attributes.items() >= ATTRIBUTES.items(), "the request's event is not changed"


@MODES
@each("body, content_type, shown", [
    (b'{"a":null}', "application/json", {"a": None}), (b"[1]", "application/json; charset=utf-8", [1]),
    ('gr\u00fcn "\n'.encode(), "text/plain; charset=utf-8", 'gr\u00fcn "\n'),
    (b"\x00\xff", "application/octet-stream", b"\x00\xff"), (b"", "application/octet-stream", b""),
    (b"\x00\xff", None, b"\x00\xff"), (b"gr\xfcn", "text/plain; charset=latin-1", b"gr\xfcn"),
    (b"a=1", "application/x-www-form-urlencoded", b"a=1"),
])  # fmt: skip
def test_the_answers_data_is_what_its_content_type_says(mode, body, content_type, shown):
    attributes, data = answer(event_of(mode), body, content_type)
    assert data == (shown if mode == "structured" else body)
    assert attributes["datacontenttype"] == (content_type or "application/octet-stream")


def test_a_json_answer_is_put_into_the_envelope_as_it_is():
    _, body = wrap(event_of("structured"), b'{"predictions":[0.1,  1e3]}', "application/json", "m")
    assert body.endswith(b'"datacontenttype":"application/json","data":{"predictions":[0.1,  1e3]}}')


def test_headers_of_an_answer_are_printable_ascii():
    event = event_of("binary", subject="a%0D%0Ab")
    headers, _ = wrap(event, ANSWER, "application/json", 'gr\u00fcn "%\r\n', merge=True)
    assert headers["ce-source"] == "io.kserve.inference.gr%C3%BCn%20%22%25%0D%0A"
    assert headers["ce-subject"] == "a%0D%0Ab"


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
def test_any_text_survives_the_headers(text):
    headers, body = wrap(event_of("binary"), DATA, "application/json", "m", source=text)
    assert all(0x21 <= ord(character) <= 0x7E for character in headers["ce-source"])
    assert unwrap(headers, body).attributes["source"] == text


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text(st.characters(exclude_categories=["Cs"])),
    st.lists,
)


@given(
    st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), JSON), st.sampled_from(["structured", "binary"])
)
def test_our_own_events_can_be_read_by_ourselves(document, mode):
    document.pop("instances", None)
    headers, body = wrap(event_of(mode), orjson.dumps(document), "application/json", "m")
    assert is_event(headers)
    assert unwrap(headers, body).data == document


NAMES = ["specversion", "id", "source", "type", "time", "datacontenttype", "data", "data_base64", "instances", "x"]
VALUES = (
    JSON | st.sampled_from(["1.0", "application/json", "text/plain", "e30=", "/", ";"]) | st.just({"instances": [1]})
)
LATIN = st.text(st.characters(max_codepoint=255))
STRUCTURED_EVENTS = st.tuples(
    st.just(STRUCTURED),
    st.binary(max_size=200)
    | st.builds(orjson.dumps, st.dictionaries(st.sampled_from(NAMES), VALUES))
    | st.builds(
        lambda members, missing: envelope(missing, **members),
        st.dictionaries(st.sampled_from(NAMES), VALUES),
        st.lists(st.sampled_from([*ATTRIBUTES]), max_size=1),
    ),
)
BINARY_EVENTS = st.tuples(
    st.builds(
        lambda given, others, content_type: given | others | {"content-type": content_type},
        st.sampled_from([{}, binary()]),
        st.dictionaries(st.sampled_from([f"ce-{name}" for name in NAMES]), LATIN),
        LATIN | st.sampled_from(["application/json", "text/plain", ";", "+json"]),
    ),
    st.binary(max_size=200) | st.sampled_from([DATA, b"", b"[1]", b"\xff"]),
)


@given(STRUCTURED_EVENTS | BINARY_EVENTS)
def test_whatever_an_event_holds_is_read_or_refused(event):
    with contextlib.suppress(InvalidInput, NotSupported):
        assert isinstance(unwrap(*event).data, dict | bytes)


@pytest.fixture
def sdk():
    """The official library's HTTP binding: another's reading of the specification."""
    return pytest.importorskip("cloudevents.core.bindings.http")


@MODES
@each("merge", [False, True])
@each("body, content_type, data", [
    (ANSWER, "application/json", orjson.loads(ANSWER)), (b"text", "text/plain; charset=utf-8", "text"),
    (b"\x00\xff", "application/octet-stream", b"\x00\xff"),
])  # fmt: skip
def test_the_sdk_reads_our_answers(sdk, mode, merge, body, content_type, data):
    event = event_of(mode, subject="Euro%20%E2%82%AC" if mode == "binary" else "Euro \u20ac", extension="e")
    headers, encoded = wrap(event, body, content_type, "M", merge=merge)
    read = sdk.from_http_event(sdk.HTTPMessage(headers, encoded))
    assert (read.get_specversion(), read.get_source()) == ("1.0", "io.kserve.inference.M")
    assert (read.get_type(), read.get_datacontenttype()) == ("io.kserve.inference.response", content_type)
    assert read.get_time().tzinfo is not None
    assert read.get_subject() == ("Euro \u20ac" if merge else None)
    assert read.get_extension("extension") == ("e" if merge else None)
    assert read.get_data() == data


@MODES
@each("data, content_type, expected", [
    (PAYLOAD, "application/json", PAYLOAD), (PAYLOAD, None, PAYLOAD), (DATA, None, PAYLOAD),
    (b"\x00\xff", "application/avro", b"\x00\xff"), ("text", "text/plain", b"text"),
])  # fmt: skip
def test_we_read_the_sdks_requests(sdk, mode, data, content_type, expected):
    event_class = pytest.importorskip("cloudevents.core.v1.event").CloudEvent
    expected_attributes = {"source": "https://example.com/a b%20c", "type": "t", "subject": 'Euro \u20ac "x"'}
    sent = event_class(expected_attributes | ({"datacontenttype": content_type} if content_type else {}), data)
    message = sdk.to_structured_event(sent) if mode == "structured" else sdk.to_binary_event(sent)
    event = unwrap(message.headers, message.body)
    assert event.data == expected
    assert event.structured is (mode == "structured")
    assert event.attributes.items() >= expected_attributes.items()
