"""No answer is another's: every kind of request over every front end, of models that write all answers into one array."""

import asyncio
from pathlib import Path

import pytest

from tests.chaos import mixed
from tests.e2e.calls import speaking
from tests.running import eventually

ANSWERS = 50_000
CLIENTS = 12


@pytest.mark.parametrize("way", ["yes", "no"], ids=["direct", "ASGI"])
def test_no_answer_of_many_is_wrong(tmp_path: Path, way: str) -> None:
    flags = ("--workers=2", f"--fast_lane={way}", f"--max_body_size={mixed.MAX_BODY_SIZE}")
    counts = mixed.Counts()
    with speaking(tmp_path, *flags, source=mixed.SOURCE, target=mixed.TARGET) as (server, address):
        server.wait_ready(workers=2)
        asyncio.run(mixed.traffic(server, address, counts, CLIENTS, lambda: counts.right.total() < ANSWERS))
        print(f"\n{len(counts.right)} kinds: {counts}")
        assert set(counts.right) == set(mixed.kinds())
        assert not counts.wrong + counts.lost, counts
        eventually(lambda: server.metric("mpserve_requests_in_flight") == 0)
        assert "never retrieved" not in server.log
