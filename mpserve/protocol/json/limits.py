"""The limits of the JSON in a request. JSON takes many times its size in memory, and to parse it stops every other thread."""

import sys

from mpserve.errors import PayloadTooLarge


class JsonLimits:
    """Limits of one JSON text.

    Args:
        size: maximum bytes.
        elements: maximum lists, objects and strings. Numbers do not count: they take a tenth of the time of a list.
    """

    __slots__ = ("_elements", "_size", "unchecked")

    def __init__(self, size: int, elements: int) -> None:
        self._size = size
        self._elements = elements
        self.unchecked = min(size, elements)
        """Bytes of a text up to which it is within the limits, whatever it holds."""

    def check(self, text: bytes) -> None:
        """Raises PayloadTooLarge, which names the option. Brackets within strings count too: to tell them apart is to parse."""
        if len(text) > self._size:
            raise PayloadTooLarge(
                f"the JSON of the request is larger than the {self._size} bytes that --max_json_size allows"
            )
        if len(text) <= self._elements:
            return
        if text.count(b"[") + text.count(b"{") + text.count(b'"') // 2 > self._elements:
            raise PayloadTooLarge(
                f"the JSON of the request has more than the {self._elements} lists, objects and strings that"
                " --max_json_elements allows"
            )


UNLIMITED = JsonLimits(sys.maxsize, sys.maxsize)
