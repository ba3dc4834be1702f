"""What a server does with four times as many requests as it can answer.

    python benchmarks/overload.py [seconds]

The model takes 5 ms without the GIL, one request at a time in one worker. Its capacity is measured by clients that ask one
request after the other; then four times as many are sent at an even pace, whatever becomes of them, over kept-alive connections,
of which as many are opened as it takes. Three servers: with a deadline, with a bounded queue too, and with batches of up to 8
rows (which take four times as long as one row). Exits with 1 if less than 90 % of the capacity is answered in time, if the
99th percentile of what was answered exceeds the deadline, if a refusal is anything but a 503 or 504 in JSON, the 503 with
Retry-After, if a connection breaks, or if memory grows.
"""

import asyncio
import json
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import psutil

SERVICE, DEADLINE, OVERLOAD = 0.005, 0.25, 4
CALIBRATION = 4.0
GOODPUT, GROWTH = 0.9, 0.02
PATH = b"/v2/models/m/infer"
BODY = b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1,4],"data":[1,2,3,4]}]}'
REQUEST = b"POST %b HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%b" % (PATH, len(BODY), BODY)
HEALTH = b"GET /v2/health/ready HTTP/1.1\r\nhost: x\r\n\r\n"
SOURCE = f"""
import time
from mpserve import Tensor, TensorModel

class Slow(TensorModel):
    name = "m"
    inputs = [Tensor("x", "FP32", [-1, 4])]
    outputs = [Tensor("y", "FP32", [-1, 4])]
    def predict(self, x):
        time.sleep({SERVICE} * max(1, len(x) / 2))
        return x
"""
CASES = {
    "deadline": [f"--request_timeout={DEADLINE}"],
    "queue": [f"--request_timeout={DEADLINE}", "--max_queue_size=16"],
    "batches": [f"--request_timeout={DEADLINE}", "--max_batch_size=8"],
}


class Seen(NamedTuple):
    """What came of one request: seconds, status (0: the connection broke), and whether the answer is as it should be."""

    seconds: float
    status: int
    clean: bool


class Connections:
    """Kept-alive connections, of which a free one is used or a new one opened."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.opened = 0
        self._free: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def ask(self, request: bytes = REQUEST) -> Seen:
        start = time.perf_counter()
        try:
            if not self._free:
                self.opened += 1
                self._free.append(await asyncio.open_connection("127.0.0.1", self.port))
            reader, writer = self._free.pop()
            writer.write(request)
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            length = int(head.partition(b"content-length:")[2].split(b"\r\n")[0])
            body = await reader.readexactly(length)
        except (OSError, asyncio.IncompleteReadError):
            return Seen(time.perf_counter() - start, 0, False)
        seconds = time.perf_counter() - start
        if b"connection: close" in head:
            writer.close()
        else:
            self._free.append((reader, writer))
        status = int(head.split()[1])
        return Seen(seconds, status, is_clean(status, head, body))

    def close(self) -> None:
        for _, writer in self._free:
            writer.close()


def is_clean(status: int, head: bytes, body: bytes) -> bool:
    if status == 200:
        return True
    told = status in (503, 504) and list(json.loads(body)) == ["error"]
    return told and (status == 504 or b"retry-after: " in head)


async def capacity(connections: Connections, clients: int) -> float:
    """Answers a second to clients that each ask one request after the other, so few that none waits for long."""
    answered = 0
    end = time.perf_counter() + CALIBRATION

    async def client() -> None:
        nonlocal answered
        while time.perf_counter() < end:
            seen = await connections.ask()
            answered += seen.status == 200

    await asyncio.gather(*(client() for _ in range(clients)))
    return answered / CALIBRATION


async def overload(connections: Connections, rate: float, seconds: float, middle: "asyncio.Event") -> list[Seen]:
    """What came of ``rate`` requests a second, sent when they are due. ``middle`` is set when a third of the time is over."""
    seen: list[Seen] = []
    asked: set[asyncio.Task[Seen]] = set()

    def note(task: "asyncio.Task[Seen]") -> None:
        asked.discard(task)
        seen.append(task.result())

    start = time.perf_counter()
    sent = 0
    while (passed := time.perf_counter() - start) < seconds:
        for _ in range(int(passed * rate) - sent):
            task = asyncio.create_task(connections.ask())
            asked.add(task)
            task.add_done_callback(note)
            sent += 1
        if passed > seconds / 3:
            middle.set()
        await asyncio.sleep(0.002)
    await asyncio.gather(*asked)
    return seen


async def health(connections: Connections, over: "asyncio.Event") -> list[Seen]:
    """Probes of readiness, twenty a second, until it is over."""
    seen = []
    while not over.is_set():
        seen.append(await connections.ask(HEALTH))
        await asyncio.sleep(0.05)
    return seen


def memory(server: "subprocess.Popen[bytes]") -> float:
    """MB that the server and its workers take, each shared page counted once."""
    processes = [psutil.Process(server.pid), *psutil.Process(server.pid).children(recursive=True)]
    return float(sum(process.memory_full_info().pss for process in processes)) / 1e6


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(int(len(values) * share), len(values) - 1)] if values else 0.0


async def measure(name: str, port: int, server: "subprocess.Popen[bytes]", seconds: float) -> bool:
    """Print what came of it; whether it is as it should be."""
    connections, probes = Connections(port), Connections(port)
    clients = 16 if name == "batches" else 2
    able = await capacity(connections, clients)
    middle, over = asyncio.Event(), asyncio.Event()
    probing = asyncio.create_task(health(probes, over))
    running = asyncio.create_task(overload(connections, OVERLOAD * able, seconds, middle))
    await middle.wait()
    before = await asyncio.to_thread(memory, server)
    seen = await running
    after = await asyncio.to_thread(memory, server)
    over.set()
    probed = await probing
    await asyncio.to_thread(time.sleep, 0.5)
    able = max(able, await capacity(connections, clients))  # the machine may have had more to give meanwhile
    statuses = Counter(each.status for each in seen)
    accepted = [each.seconds for each in seen if each.status == 200]
    share = len(accepted) / seconds / able
    late = percentile(accepted, 0.99)
    broken = statuses[0]
    unclean = sum(not each.clean for each in seen)
    kept = share >= GOODPUT and late <= DEADLINE and not unclean and after <= before * (1 + GROWTH)
    kept = kept and all(probe.status == 200 for probe in probed)
    refused = ", ".join(f"{number} x {status}" for status, number in sorted(statuses.items()) if status not in (0, 200))
    print(
        f"{name:8}  capacity {able:5.0f}/s, asked {len(seen) / seconds:5.0f}/s, goodput {share:4.0%} of capacity;"
        f" p99 of accepted {late * 1000:3.0f} ms (deadline {DEADLINE * 1000:.0f} ms); {refused}; {unclean} unclean,"
        f" {broken} connections broken of {connections.opened}; {before:.0f} -> {after:.0f} MB;"
        f" p99 of readiness {percentile([probe.seconds for probe in probed], 0.99) * 1000:.0f} ms"
        f"{'' if kept else '  MISSED'}"
    )
    connections.close()
    probes.close()
    return kept


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


async def wait_until_served(port: int, server: "subprocess.Popen[bytes]") -> None:
    while (await Connections(port).ask(HEALTH)).status != 200:
        if server.poll() is not None:
            sys.exit("the server ended; see its log above")
        await asyncio.sleep(0.05)


def serve_and_measure(name: str, flags: list[str], folder: str, seconds: float) -> bool:
    async def run() -> bool:
        await wait_until_served(port, server)
        return await measure(name, port, server, seconds)

    port = free_port()
    command = [sys.executable, "-m", "mpserve", "serve", "model.py", "--host=127.0.0.1", f"--http_port={port}"]
    command += ["--enable_grpc=no", "--log_level=error", *flags]
    server = subprocess.Popen(command, cwd=folder)
    try:
        return asyncio.run(run())
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait()


def main() -> None:
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 10.0
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "model.py").write_text(SOURCE)
        kept = [serve_and_measure(name, flags, folder, seconds) for name, flags in CASES.items()]
    sys.exit(not all(kept))


if __name__ == "__main__":
    main()
