"""The routes of the trace and logging extensions."""

import logging
from typing import Any

from mpserve.serving.models.model import Model
from tests.asgi import ask, serving
from tests.cases import each

TRACE = {
    "trace_file": "", "trace_level": ["OFF"], "trace_rate": "1000", "trace_count": "-1", "log_frequency": "0",
    "trace_mode": "triton",
}  # fmt: skip


@each("path", ["/v2/trace/setting", "/v2/models/m/trace/setting"])
@each("method, body", [("GET", b""), ("POST", b""), ("POST", b'{"trace_level": null}')])
def test_trace_settings_are_tritons_defaults(method: str, path: str, body: bytes) -> None:
    assert ask(Model("m"), method, path, content=body).json() == TRACE


@each("method, path, body, status", [
    ("GET", "/v2/models/other/trace/setting", None, 404), ("POST", "/v2/models/other/trace/setting", {}, 404),
    ("POST", "/v2/trace/setting", {"trace_level": ["TIMESTAMPS"]}, 501),
    ("POST", "/v2/trace/setting", [], 400), ("POST", "/v2/logging", {"log_file": "/tmp/x"}, 501),
    ("POST", "/v2/logging", [], 400),
])  # fmt: skip
def test_what_cannot_be_is_said(method: str, path: str, body: Any, status: int) -> None:
    answer = ask(Model("m"), method, path, json=body)
    assert answer.status_code == status
    assert answer.json()["error"]


async def test_log_settings_are_told_and_changed() -> None:
    root = logging.getLogger()
    before = root.level
    try:
        async with serving(Model("m")) as client:
            changed = (await client.post("/v2/logging", json={"log_verbose_level": 1})).json()
            assert (changed["log_verbose_level"], changed["log_info"], root.level) == (1, True, logging.DEBUG)
            assert (await client.get("/v2/logging")).json() == changed
    finally:
        root.setLevel(before)


@each("path", ["/v2/logging", "/v2/trace/setting", "/v2/models/m/trace/setting"])
def test_another_method_is_told_both_that_there_are(path: str) -> None:
    answer = ask(Model("m"), "DELETE", path)
    assert answer.status_code == 405
    assert set(answer.headers["allow"].split(", ")) == {"GET", "HEAD", "POST"}
