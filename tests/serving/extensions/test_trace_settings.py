"""The trace settings of a server that does not trace: as Triton's defaults, and not to be changed."""

from typing import Any

import pytest

from mpserve.errors import InvalidInput, MPServeError, NotSupported
from mpserve.serving.extensions.trace_settings import SETTINGS, TraceSettings
from tests.asgi import core_of
from tests.cases import each


@each("changes", [
    {}, dict(SETTINGS), dict.fromkeys(SETTINGS),
    {"trace_level": "OFF", "trace_rate": 1000, "trace_count": -1, "log_frequency": "0", "trace_file": ""},
    {"trace_level": [], "trace_file": []},
])  # fmt: skip
async def test_what_is_so_already_may_be_set(changes: dict[str, Any]) -> None:
    settings = TraceSettings(core_of())
    await settings.change(changes)
    assert settings.told() == SETTINGS


@each("changes, error, words", [
    ({"trace_level": ["TIMESTAMPS"]}, NotSupported, "'trace_level' cannot be set to a list: requests are not traced"),
    ({"trace_level": "TIMESTAMPS"}, NotSupported, 'cannot be set to "TIMESTAMPS"'),
    ({"trace_rate": "5"}, NotSupported, "'trace_rate' cannot be set"),
    ({"trace_file": "/tmp/x"}, NotSupported, "'trace_file' cannot be set"),
    ({"trace_levels": ["OFF"]}, InvalidInput, "unknown trace setting 'trace_levels', expected one of trace_file"),
])  # fmt: skip
async def test_anything_else_is_refused(changes: dict[str, Any], error: type[MPServeError], words: str) -> None:
    with pytest.raises(error) as refused:
        await TraceSettings(core_of()).change(changes)
    assert words in str(refused.value)
