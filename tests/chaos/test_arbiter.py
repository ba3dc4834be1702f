"""The arbiter lives as long as the server, and what each HUP leaves behind in it adds up."""

import signal
from pathlib import Path

import psutil

from tests.running import eventually, serving

HUPS = 30
WARM = 10  # after which the arbiter has what it needs for a HUP
GROWTH = 300_000  # bytes in all further HUPs, which were 59 kB in each one when their garbage was kept


def test_the_arbiter_does_not_grow_with_each_hup(tmp_path: Path) -> None:
    sizes = []
    with serving(tmp_path, "def predict(x):\n    return x\n") as server:
        arbiter = psutil.Process(server.wait_ready(workers=1).pid)
        server.client.close()
        for number in range(HUPS):
            old = server.workers()
            server.signal(signal.SIGHUP)
            eventually(lambda old=old, number=number: server.log.count("worker ready") == number + 2)
            eventually(lambda old=old: len(server.workers()) == 1 and server.workers() != old)
            sizes.append((arbiter.memory_info().rss, arbiter.num_fds(), arbiter.num_threads()))
    (before, *others), (after, *now) = sizes[WARM], sizes[-1]
    assert after - before < GROWTH, sizes
    assert now == others
