import os

import pytest

from benchmarks.peers.processes import NotServing, Running, family
from benchmarks.peers.servers import MPSERVE, Server
from benchmarks.peers.workloads import SMALL, V1_SMALL
from tests.running import eventually

pytestmark = pytest.mark.e2e


def test_a_server_is_asked_measured_and_ended_with_all_its_processes() -> None:
    running = Running(MPSERVE, os.sched_getaffinity(0), workers=2)
    try:
        running.wait_until_ready(SMALL)
        running.ask(V1_SMALL)
        # The arbiter and two workers, of which one may have answered already.
        eventually(lambda: len(running.pids()) == 3)
        assert running.cpu_seconds() > 0
        assert running.settled_pss() > 1
    finally:
        running.close()
    assert not family(running.process.pid)


def test_a_server_that_ends_is_told_with_its_last_words() -> None:
    broken = Server("broken", "", lambda setup: ["python3", "-c", "import sys; sys.exit('no luck')"], {"v2": "/"})
    running = Running(broken, os.sched_getaffinity(0))
    try:
        with pytest.raises(NotServing, match="no luck"):
            running.wait_until_ready(SMALL)
    finally:
        running.close()
