"""How 64 kept-alive connections spread over 4 workers, and how long 640 requests of 10 ms take compared with the ideal.

    python benchmarks/balance.py [uvloop|asyncio]

The model sleeps for 10 ms, one request at a time in each worker, so 4 workers need 1.6 s at best. The same model is served
by gunicorn with uvicorn-worker, where that is installed. Exits with 1 when ours needs more than 1.15 times the ideal or
spreads the connections by more than one from the mean.
"""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

WORKERS, CONNECTIONS, ROUNDS, SECONDS = 4, 64, 10, 0.01
LIMIT = 1.15
OURS = f"""
import os, time
from mpserve import Model

class Slow(Model):
    name = "m"
    def predict(self, payload, headers=None):
        time.sleep({SECONDS})
        return {{"predictions": [os.getpid()]}}
"""
STOCK = f"""
import json, os, time

async def app(scope, receive, send):
    if scope["type"] != "http":
        return
    while (await receive()).get("more_body"):
        pass
    time.sleep({SECONDS})
    body = json.dumps({{"predictions": [os.getpid()]}}).encode()
    await send({{"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]}})
    await send({{"type": "http.response.body", "body": body}})
"""
REQUEST = b'POST /v1/models/m:predict HTTP/1.1\r\nhost: x\r\ncontent-length: 17\r\n\r\n{"instances":[0]}'


class Client:
    """A kept-alive connection. ``reconnects`` counts how often the server asked for a new one."""

    reconnects = 0

    def __init__(self, port: int) -> None:
        self.port = port

    async def connect(self) -> None:
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port)

    async def ask(self) -> int:
        """The pid of the worker that answers."""
        self.writer.write(REQUEST)
        head = (await self.reader.readuntil(b"\r\n\r\n")).lower()
        length = int(head.partition(b"content-length:")[2].split(b"\r\n")[0])
        pid: int = json.loads(await self.reader.readexactly(length))["predictions"][0]
        if b"connection: close" in head:
            Client.reconnects += 1
            await self.connect()
        return pid


async def all_connected(port: int) -> list[Client]:
    clients = [Client(port) for _ in range(CONNECTIONS)]
    await asyncio.gather(*(client.connect() for client in clients))
    return clients


async def measure(port: int) -> tuple[list[int], float]:
    """Connections of each worker, most first, and the wall time of all requests over the ideal."""
    clients = await all_connected(port)
    pids = await asyncio.gather(*(client.ask() for client in clients))
    started = time.perf_counter()

    async def rounds(client: Client) -> None:
        for _ in range(ROUNDS):
            await client.ask()

    await asyncio.gather(*map(rounds, clients))
    wall = time.perf_counter() - started
    for client in clients:
        client.writer.close()
    spread = sorted(Counter(pids).values(), reverse=True)
    return spread + [0] * (WORKERS - len(spread)), wall / (CONNECTIONS * ROUNDS * SECONDS / WORKERS)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


async def wait_until_served(port: int, server: "subprocess.Popen[bytes]") -> None:
    """Until all workers answer, each request on a connection of its own."""
    seen: set[int] = set()
    for _ in range(2000):
        if server.poll() is not None:
            sys.exit("the server ended; see its log above")
        client = Client(port)
        try:
            await client.connect()
            seen.add(await client.ask())
            client.writer.close()
            if len(seen) == WORKERS:
                return
        except (OSError, asyncio.IncompleteReadError):
            await asyncio.sleep(0.05)
    print(f"only {len(seen)} of {WORKERS} workers have answered")


def serve_and_measure(name: str, command: list[str], folder: str, port: int) -> bool:
    environment = os.environ | {"MPSERVE_HOST": "127.0.0.1", "MPSERVE_ENABLE_GRPC": "no", "MPSERVE_LOG_LEVEL": "error"}
    server = subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.DEVNULL)
    kept = True
    try:
        asyncio.run(wait_until_served(port, server))
        for _ in range(3):
            spread, ratio = asyncio.run(measure(port))
            kept = kept and ratio <= LIMIT and all(abs(count - CONNECTIONS // WORKERS) <= 1 for count in spread)
            print(f"{name:18} spread {spread!s:18} wall time {ratio:.2f} of the ideal, {Client.reconnects} reconnects")
            time.sleep(0.5)  # until the workers have noticed that the connections are gone
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait()
    return kept


def main() -> None:
    loop = sys.argv[1] if len(sys.argv) > 1 else "uvloop"
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "model.py").write_text(OURS)
        Path(folder, "stock.py").write_text(STOCK)
        port = free_port()
        ours = ["-m", "mpserve", "serve", "model.py", f"--http_port={port}", f"--workers={WORKERS}"]
        ours.append(f"--event-loop={loop}")
        kept = serve_and_measure("mpserve", [sys.executable, *ours], folder, port)
        if find_spec("uvicorn_worker") is not None:
            port = free_port()
            stock = ["-m", "gunicorn", "stock:app", "-k", "uvicorn_worker.UvicornWorker", "--log-level=error"]
            stock += [f"--bind=127.0.0.1:{port}", f"--workers={WORKERS}"]
            serve_and_measure("uvicorn-worker", [sys.executable, *stock], folder, port)
    sys.exit(not kept)


if __name__ == "__main__":
    main()
