"""The CloudEvents SDK's HTTP converters, of its present interface and of the one before, which most users have."""

import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from cloudevents.core.bindings import http as present
from cloudevents.core.v1.event import CloudEvent
from cloudevents.v1 import conversion as former
from cloudevents.v1 import http as former_http

from mpserve import Model
from tests.asgi import ask
from tests.clients.environments import run_documented

ATTRIBUTES = {"type": "com.example.sample", "source": "https://example.com/ü", "subject": "rows 1%", "kind": "Größe"}
PAYLOAD = {"instances": [[1, "ü"], [2, "b"]]}
ANSWERED = {"predictions": [[1, "ü"], [2, "b"]]}


class Rows(Model):
    name = "rows"

    def predict(self, payload: dict[str, Any], headers: dict[str, str]) -> dict[str, Any]:
        return {"predictions": payload["instances"]}


def post(headers: dict[str, str], body: bytes) -> httpx.Response:
    answer = ask(Rows(), "POST", "/v1/models/rows:predict", headers=headers, content=body, options={"ce_merge": True})
    assert answer.status_code == 200, answer.text
    return answer


def check(sent_id: str, attributes: dict[str, Any], data: Any) -> None:
    assert data == ANSWERED
    assert attributes["id"] != sent_id
    assert attributes["time"]
    given = {name: attributes[name] for name in ("specversion", "source", "type", "subject", "kind")}
    assert given == {
        "specversion": "1.0",
        "source": "io.kserve.inference.rows",
        "type": "io.kserve.inference.response",
        "subject": ATTRIBUTES["subject"],
        "kind": ATTRIBUTES["kind"],
    }


@pytest.mark.parametrize("convert", [present.to_binary_event, present.to_structured_event])
@pytest.mark.parametrize("data", [PAYLOAD, b'{"instances": [[1, "\xc3\xbc"], [2, "b"]]}'], ids=["json", "bytes"])
def test_an_event_of_the_sdk_is_answered_by_one(convert: Any, data: Any) -> None:
    event = CloudEvent({**ATTRIBUTES, "datacontenttype": "application/json"}, data)
    sent = convert(event)
    answer = post(sent.headers, sent.body)
    received = present.from_http_event(present.HTTPMessage(dict(answer.headers), answer.content))
    assert any(name.startswith("ce-") for name in answer.headers) == (convert is present.to_binary_event)
    check(event.get_id(), received.get_attributes(), received.get_data())


@pytest.mark.parametrize("convert", [former.to_binary, former.to_structured])
def test_an_event_of_the_sdks_former_interface_is_answered_by_one(convert: Any) -> None:
    # It writes headers as they are, which HTTP takes in ASCII alone.
    ascii_only = ATTRIBUTES | {"source": "https://example.com", "kind": "size", "subject": "rows"}
    event = former_http.CloudEvent({**ascii_only, "datacontenttype": "application/json"}, PAYLOAD)
    headers, body = convert(event)
    answer = post(dict(headers), body)
    received = former_http.from_http(dict(answer.headers), answer.content)
    assert any(name.startswith("ce-") for name in answer.headers) == (convert is former.to_binary)
    assert received.data == ANSWERED
    assert (received["source"], received["subject"], received["kind"]) == ("io.kserve.inference.rows", "rows", "size")
    assert received["id"] != event["id"]


def test_the_documented_event_is_answered_as_shown(tmp_path: Path) -> None:
    run_documented(tmp_path, Path(sys.executable), "cloudevents")
