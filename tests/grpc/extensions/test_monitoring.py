"""TraceSetting and LogSettings, as tritonclient asks for them."""

import logging
from collections.abc import Iterator
from typing import Any

import grpc
import pytest

from tests.cases import each
from tests.grpc.models import Double
from tests.grpc.serving import ask, refusal, serving


@pytest.fixture(autouse=True)
def level_as_before() -> Iterator[None]:
    before = logging.getLogger().level
    yield
    logging.getLogger().setLevel(before)


@each("settings", [{}, {"trace_level": {"value": ["OFF"]}}, {"trace_level": {}}])
def test_trace_settings_are_tritons_defaults(settings: Any) -> None:
    told = ask(Double(), "TraceSetting", settings=settings, model_name="double").settings
    assert {name: list(setting.value) for name, setting in told.items()} == {
        "trace_file": [""],
        "trace_level": ["OFF"],
        "trace_rate": ["1000"],
        "trace_count": ["-1"],
        "log_frequency": ["0"],
        "trace_mode": ["triton"],
    }


async def test_log_settings_are_told_and_changed() -> None:
    async with serving(Double()) as client:
        change = {"log_verbose_level": {"uint32_param": 1}, "log_info": {"bool_param": True}, "log_file": {}}
        changed = (await client("LogSettings", settings=change)).settings
        assert logging.getLogger().level == logging.DEBUG
        told = (await client("LogSettings")).settings
        assert told == changed
        assert (told["log_info"].bool_param, told["log_verbose_level"].uint32_param) == (True, 1)
        assert (told["log_file"].string_param, told["log_format"].string_param) == ("", "default")


@each("method, fields, code", [
    ("TraceSetting", {"model_name": "nope"}, grpc.StatusCode.NOT_FOUND),
    ("TraceSetting", {"settings": {"trace_level": {"value": ["TIMESTAMPS"]}}}, grpc.StatusCode.UNIMPLEMENTED),
    ("TraceSetting", {"settings": {"level": {}}}, grpc.StatusCode.INVALID_ARGUMENT),
    ("LogSettings", {"settings": {"log_file": {"string_param": "x"}}}, grpc.StatusCode.UNIMPLEMENTED),
    ("LogSettings", {"settings": {"log_info": {"string_param": "x"}}}, grpc.StatusCode.INVALID_ARGUMENT),
])  # fmt: skip
async def test_what_cannot_be_is_refused(method: str, fields: Any, code: grpc.StatusCode) -> None:
    async with serving(Double()) as client:
        got, words = await refusal(client(method, **fields))
        assert got is code
        assert words
