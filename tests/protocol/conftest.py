"""The readers of JSON as they are with simdjson, an extra, and without it."""

from collections.abc import Iterator

import pytest

from mpserve.protocol.json import numbers, plain
from mpserve.protocol.v2 import reader

PARSERS = ["simdjson", pytest.param("orjson", marks=pytest.mark.exhaustive)] if numbers.simdjson else ["orjson"]


@pytest.fixture(scope="module", params=PARSERS)
def parser(request: pytest.FixtureRequest) -> Iterator[str]:
    """The name of the parser of long lists of numbers."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (numbers, plain, reader) if request.param == "orjson" else ():
            patch.setattr(module, "simdjson", None)
        reader._known.clear()
        yield request.param
    reader._known.clear()
