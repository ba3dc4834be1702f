"""Serves every kind of request for minutes, on a server that is left alone and on one that is disturbed. Nothing may grow.

``python -m tests.chaos.soak --minutes 30``. After each round of traffic the clients leave, and the processes of both servers are
measured. Ends with 1 if an answer is wrong, a request is lost that no SIGKILL has taken, or memory, descriptors or threads grow.
"""

import argparse
import asyncio
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import psutil

from tests.chaos import mixed
from tests.chaos.harness import WORKERS, Target, settled
from tests.chaos.test_attacks import change, hup, kill, ttin_ttou
from tests.e2e.calls import speaking
from tests.running import Server, eventually

CLIENTS = 6  # of each server
ROUNDS = 40  # of traffic, at most; a round is no shorter than SHORTEST seconds
SHORTEST = 10.0
WARM = 60_000  # requests until the memory that a process keeps has its size
GROWTH = 8_000_000  # bytes by which the memory of a process may grow since then
SHARE = 0.06  # or this share of it, if that is more


class Sample(NamedTuple):
    """Of the arbiter and its workers, each the largest."""

    arbiter_rss: int
    arbiter_descriptors: int
    arbiter_threads: int
    worker_rss: int
    worker_descriptors: int
    worker_threads: int
    requests: int

    def __str__(self) -> str:
        return (
            f"arbiter {self.arbiter_rss / 1e6:.1f} MB, {self.arbiter_descriptors} descriptors, {self.arbiter_threads} threads; "
            f"worker {self.worker_rss / 1e6:.1f} MB, {self.worker_descriptors} descriptors, {self.worker_threads} threads; "
            f"{self.requests:,} requests"
        )


def measured(pids: Sequence[int]) -> tuple[int, int, int]:
    processes = [psutil.Process(pid) for pid in pids]
    return (
        max(process.memory_info().rss for process in processes),
        max(process.num_fds() for process in processes),
        max(process.num_threads() for process in processes),
    )


class Soaked:
    """A server, what its clients saw, and how large its processes were after each round."""

    def __init__(self, name: str, server: Server, address: str, strikes: Sequence[Callable[[Target], object]]) -> None:
        self.name = name
        self.target = Target(server, address, Path(server.log_file).parent)
        self.counts = mixed.Counts()
        self.samples: list[Sample] = []
        self.strikes = strikes
        self.kills = 0
        self.taken = 0  # requests that were lost while a killed worker was replaced
        self.struck = 0

    async def round(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        is_over = False

        async def disturb() -> None:
            nonlocal is_over
            while time.monotonic() < end:
                await asyncio.sleep(0.5)
                strike = random.choice(self.strikes)
                lost = self.counts.lost.total()
                await asyncio.to_thread(strike, self.target)
                self.struck += 1
                if strike is kill:
                    await asyncio.sleep(1)  # a busy client may hear later than others that its worker is gone
                    self.kills += 1
                    self.taken += self.counts.lost.total() - lost
            is_over = True

        asked = mixed.traffic(self.target.server, self.target.grpc_address, self.counts, CLIENTS, lambda: not is_over)
        await asyncio.gather(asked, disturb())

    def measure(self) -> None:
        server = self.target.server
        settled(self.target)
        eventually(lambda: server.metric("mpserve_requests_in_flight") == 0)
        # The connection that asks is the last one.
        eventually(lambda: server.metric("mpserve_connections") <= 1)
        sample = Sample(*measured([server.pid]), *measured(server.workers()), self.counts.right.total())
        self.samples.append(sample)
        print(f"{time.strftime('%X')} {self.name}: {sample}, {self.struck} disturbances", flush=True)

    def complaints(self) -> list[str]:
        """What is not as it should be, in words."""
        found = [f"wrong answers: {dict(self.counts.wrong)}"] if self.counts.wrong else []
        if self.counts.lost.total() > self.taken or self.taken > self.kills * CLIENTS:
            found.append(
                f"{self.counts.lost.total()} requests lost, {self.taken} while {self.kills} killed workers were replaced"
            )
        if missing := set(mixed.kinds()) - set(self.counts.right):
            found.append(f"never answered rightly: {sorted(missing)}")
        return found + [told for field in Sample._fields[:-1] if (told := self.growth(field))]

    def growth(self, field: str) -> str:
        """How a number has grown since the server was warm, if it has: the middle of the last quarter beside the first one."""
        values = [getattr(sample, field) for sample in self.samples if sample.requests >= WARM]
        quarter = len(values) // 4
        if not quarter:
            return f"{field}: too short a soak, the server is warm after {WARM:,} requests"
        before, after = (statistics.median(part) for part in (values[:quarter], values[-quarter:]))
        allowed = max(GROWTH, SHARE * before) if field.endswith("rss") else 1
        return f"{field} grew from {before:,.0f} to {after:,.0f}: {values}" if after - before > allowed else ""

    def report(self) -> None:
        first, last = self.samples[len(self.samples) // 4], self.samples[-1]
        print(
            f"\n{self.name}: {self.counts}",
            f"  after a quarter of the time: {first}",
            f"  at the end: {last}",
            sep="\n",
        )
        least, count = self.counts.right.most_common()[-1]
        print(f"  {len(self.counts.right)} kinds, the fewest {count:,} of {least}")
        print(f"  {self.struck} disturbances, of which {self.kills} SIGKILLs took {self.taken} requests")


def load(target: Target) -> None:
    change(target, "plain", "load")


def unload(target: Target) -> None:
    change(target, "other", "unload")
    change(target, "other", "load")


def soaked(minutes: float) -> list[str]:
    """Soak both servers for so long, print what was seen, and return what is to be complained of."""
    flags = (f"--workers={WORKERS}", f"--max_body_size={mixed.MAX_BODY_SIZE}")
    often = [load, unload, hup, ttin_ttou, kill]
    with ExitStack() as stack:
        servers = []
        for name, strikes, age in (("left alone", [load, unload], 10), ("disturbed", often, 1)):
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            serving = speaking(
                folder,
                *flags,
                f"--grpc_max_connection_age={age}",
                source=mixed.SOURCE,
                target=mixed.TARGET,
                slow_stop="gRPC clients are let go",
            )
            server, address = stack.enter_context(serving)
            server.wait_ready(workers=WORKERS).client.close()  # its connection would be counted
            servers.append(Soaked(name, server, address, strikes))
        end = time.monotonic() + minutes * 60
        seconds = max(SHORTEST, minutes * 60 / ROUNDS)

        async def once() -> None:
            await asyncio.gather(*(each.round(seconds) for each in servers))

        while time.monotonic() < end:
            asyncio.run(once())
            for each in servers:
                each.measure()
        for each in servers:
            each.report()
        return [f"{each.name}: {complaint}" for each in servers for complaint in each.complaints()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30)
    complaints = soaked(parser.parse_args().minutes)
    print(*complaints or ["nothing grew, nothing was lost beyond the SIGKILLs, nothing was wrong"], sep="\n")
    sys.exit(1 if complaints else 0)


if __name__ == "__main__":
    main()
