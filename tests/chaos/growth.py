"""Asks each kind of request many times, one kind after the other, of one worker: whatever grows is told beside its kind.

``python -m tests.chaos.growth --each 50000``. Ends with 1 if memory, descriptors or threads of the worker grow, or if an
answer is wrong or lost.
"""

import argparse
import asyncio
import contextlib
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import grpc

from tests.chaos import mixed
from tests.chaos.soak import measured
from tests.e2e.calls import speaking
from tests.running import Server, eventually

CLIENTS = 4
WARM = 10  # the part of the requests after which the memory that a kind keeps has its size, and is measured first
GROWTH = 4_000_000  # bytes by which the worker may grow in all other requests of a kind


class Grown(NamedTuple):
    """What a kind of request has left behind."""

    kind: str
    seconds: float
    memory: int
    descriptors: int
    threads: int

    def __str__(self) -> str:
        return f"| {self.kind} | {self.seconds:.0f} s | {self.memory / 1e3:+,.0f} kB | {self.descriptors:+} | {self.threads:+} |"

    @property
    def is_flat(self) -> bool:
        # One descriptor may be the connection that asks for metrics, and one thread gRPC's, which come and go.
        return self.memory <= GROWTH and self.descriptors <= 1 and self.threads <= 1


def asked(server: Server, address: str, counts: mixed.Counts, kind: str, count: int) -> None:
    """Let the clients ask so many requests of a kind, and leave."""

    async def one(number: int) -> None:
        async with grpc.aio.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
            client = mixed.Client(server.port, channel, number)
            for _ in range(count // CLIENTS):
                await counts.count(kind, mixed.kinds()[kind], client)
            client.close()

    async def all_of_them() -> None:
        await asyncio.gather(*(one(number) for number in range(CLIENTS)))

    asyncio.run(all_of_them())


def quiet(server: Server) -> tuple[int, int, int]:
    """The memory, descriptors and threads of the worker, which answers nobody else."""
    eventually(lambda: server.metric("mpserve_requests_in_flight") == 0)
    eventually(lambda: server.metric("mpserve_connections") <= 1)  # the one that asks
    return measured(server.workers())


def grown(server: Server, address: str, counts: mixed.Counts, each: int) -> Iterator[Grown]:
    for kind in mixed.kinds():  # what any kind needs at first is not counted as the growth of one
        asked(server, address, counts, kind, CLIENTS * 10)
    for kind in mixed.kinds():
        asked(server, address, counts, kind, each // WARM)
        before, begin = quiet(server), time.monotonic()
        asked(server, address, counts, kind, each - each // WARM)
        seconds = time.monotonic() - begin
        yield Grown(kind, seconds, *(after - earlier for earlier, after in zip(before, quiet(server), strict=True)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--each", type=int, default=50_000)
    each = parser.parse_args().each
    counts = mixed.Counts()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        flags = (f"--max_body_size={mixed.MAX_BODY_SIZE}",)
        serving = speaking(folder, *flags, source=mixed.SOURCE, target=mixed.TARGET)
        server, address = stack.enter_context(serving)
        server.wait_ready(workers=1).client.close()  # its connection would be counted
        print("| Kind | Time | Memory | Descriptors | Threads |", "|---|---:|---:|---:|---:|", sep="\n")
        rows = []
        for row in grown(server, address, counts, each):
            rows.append(row)
            print(row, flush=True)
    print(counts)
    growing = [row.kind for row in rows if not row.is_flat]
    print(
        f"grew with {', '.join(growing)}" if growing else f"{len(rows)} kinds, {each:,} requests of each: nothing grew"
    )
    sys.exit(1 if growing or counts.wrong or counts.lost else 0)


if __name__ == "__main__":
    main()
