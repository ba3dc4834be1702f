"""The trace settings of Triton (``extension_trace.md``): nothing is traced, and no setting can be changed. Knows no front end."""

from collections.abc import Mapping
from typing import Any

from mpserve.errors import InvalidInput, NotSupported
from mpserve.protocol.json.documents import MAX_SHOWN, show

SETTINGS: Mapping[str, list[str]] = {
    "trace_file": [""],
    "trace_level": ["OFF"],
    "trace_rate": ["1000"],
    "trace_count": ["-1"],
    "log_frequency": ["0"],
    "trace_mode": ["triton"],
}
"""Triton's settings and defaults, each as a list of words."""


def refuse_changes(changes: Mapping[str, Any]) -> None:
    """Accept present values and None; a value is a word, a number or a list of words.
    Raises InvalidInput for an unknown setting; NotSupported for any other value.
    """
    for name, value in changes.items():
        if name not in SETTINGS:
            raise InvalidInput(f"unknown trace setting '{name[:MAX_SHOWN]}', expected one of {', '.join(SETTINGS)}")
        words = value if isinstance(value, list) else [value]
        if value is not None and [str(word) for word in words] not in ([], SETTINGS[name]):
            raise NotSupported(
                f"trace setting '{name}' cannot be set to {show(value)}: requests are not traced; how long their parts"
                " take is told by the statistics extension and by /metrics"
            )
