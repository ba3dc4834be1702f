"""Checks on a real GPU what the tests can only pretend, in less than 4 minutes, and prints a Markdown table.

The arbiter stays without CUDA, two workers share one GPU, and a failed assert on the device and a lack of memory are real.
Memory, the time to READY and the throughput are measured. `--cpu` tries the script itself: the models raise the errors of a GPU.
Exits with 1 if a check fails. Needs a torch that is built for CUDA.
"""

import argparse
import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from mpserve.serving.execution.model_instance import SHORTAGES

LIMIT = 235  # seconds for everything
CLIENTS = 8

MODELS = '''
import os
import torch
from mpserve import Tensor, TorchModel

class Embedding(TorchModel):
    """Sums a row of its table: row i holds i. An index out of range fails an assert on the device."""
    inputs = (Tensor("x", "INT64", (-1,)),)
    outputs = (Tensor("y", "FP32", (-1,)),)
    def preload(self):
        self.table = torch.arange(1024.0).repeat(1024, 1).T.contiguous()
    def load(self):
        self.table = self.table.to(self.device)
        self.ready = True
        return True
    def predict(self, x):
        if self.device == "cpu" and bool((x >= 1024).any()):
            raise torch.AcceleratorError("CUDA error: device-side assert triggered")
        return torch.nn.functional.embedding(x, self.table).mean(1)

class Memory(TorchModel):
    """Takes so many tenths of the memory of the GPU for each row."""
    inputs = (Tensor("x", "INT64", (-1,)),)
    outputs = (Tensor("y", "INT64", (-1,)),)
    max_batch_size = 4
    max_batch_delay = 0.2
    def predict(self, x):
        tenths = int(x.sum())
        with open("attempts", "a") as attempts:
            attempts.write(f"{len(x)}\\n")
        if self.device != "cpu":
            torch.empty(tenths * torch.cuda.mem_get_info()[1] // 10, dtype=torch.uint8, device=self.device)
        elif tenths > 9:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return x

models = [Embedding("embedding"), Memory("memory")]
'''


class CheckFailed(Exception):
    """What was expected did not happen; the message says what did."""


def expect(is_so: object, what: str) -> None:
    if not is_so:
        raise CheckFailed(what)


class Server:
    """mpserve with so many workers on one device."""

    def __init__(self, folder: Path, workers: int, device: str) -> None:
        self.workers_wanted = workers
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        (folder / "models.py").write_text(MODELS)
        command = [sys.executable, "-m", "mpserve", "serve", "models.py:models", f"--http_port={self.port}"]
        options = [
            f"--workers={workers}",
            f"--devices={device}",
            "--enable_grpc=no",
            "--host=127.0.0.1",
            "--ready_when=all",
        ]
        self.log = folder / f"server-{workers}.log"
        begin = time.monotonic()
        with self.log.open("wb") as output:
            self.process = subprocess.Popen([*command, *options], cwd=folder, stdout=output, stderr=output)
        self.seconds_to_ready = self.until(self.is_ready) - begin

    def until(self, condition: Callable[[], object]) -> float:
        """Wait for the condition, and return the time. The alarm of the script ends a wait in vain."""
        while not condition():
            expect(self.process.poll() is None, f"the server ended:\n{self.log.read_text()}")
            time.sleep(0.02)
        return time.monotonic()

    def is_ready(self) -> bool:
        with contextlib.suppress(OSError, http.client.HTTPException):
            return self.get("/v2/health/ready")[0] == 200 and len(self.workers()) == self.workers_wanted
        return False

    def get(self, path: str) -> tuple[int, bytes]:
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)) as connection:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read()

    def workers(self) -> set[int]:
        return set(map(int, Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()))

    def ask(self, model: str, x: int, connection: http.client.HTTPConnection | None = None) -> tuple[int, Any]:
        """The status, and the only number of the answer, or the error and the Retry-After."""
        asked = connection or http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            tensor = {"name": "x", "shape": [1], "datatype": "INT64", "data": [x]}
            asked.request("POST", f"/v2/models/{model}/infer", json.dumps({"inputs": [tensor]}))
            response = asked.getresponse()
            answer = json.loads(response.read())
        finally:
            if connection is None:
                asked.close()
        if response.status == 200:
            return 200, answer["outputs"][0]["data"][0]
        return response.status, (answer["error"], response.getheader("retry-after"))

    def load(self, until: Callable[[], object]) -> tuple[Counter[str], float]:
        """What clients are told who ask one request after the other until the condition holds, and requests per second."""
        over, told = threading.Event(), Counter[str]()

        def client(number: int) -> Counter[str]:
            own = Counter[str]()
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
            while not over.is_set():
                try:
                    status, answer = self.ask("embedding", number, connection)
                    own["right" if answer == number else "wrong" if status == 200 else str(status)] += 1
                except (OSError, http.client.HTTPException):
                    connection.close()
                    own["connection lost"] += 1
            connection.close()
            return own

        begin = time.monotonic()
        with ThreadPoolExecutor(CLIENTS) as pool:
            clients = [pool.submit(client, number + 1) for number in range(CLIENTS)]
            try:
                self.until(until)
            finally:
                over.set()
            for each in clients:
                told += each.result()
        return told, told["right"] / (time.monotonic() - begin)

    def throughput(self, seconds: float) -> float:
        self.load(for_seconds(seconds / 4))
        return self.load(for_seconds(seconds))[1]

    def end(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()


def for_seconds(seconds: float) -> Callable[[], bool]:
    end = time.monotonic() + seconds
    return lambda: time.monotonic() > end


@contextlib.contextmanager
def serving(workers: int, device: str) -> Iterator[Server]:
    with tempfile.TemporaryDirectory() as folder:
        server = Server(Path(folder), workers, device)
        try:
            yield server
        finally:
            server.end()


def has_cuda(pid: int) -> bool:
    """Whether a process has opened the driver of CUDA."""
    files = [str(file.readlink()) for file in Path(f"/proc/{pid}/fd").iterdir()]
    return "/dev/nvidia-uvm" in files or "/dev/nvidia-uvm" in Path(f"/proc/{pid}/maps").read_text()


def memory_used() -> int:
    """MiB in use on the first visible GPU."""
    gpu = os.environ.get("CUDA_VISIBLE_DEVICES", "0").partition(",")[0]
    command = ["nvidia-smi", f"--id={gpu}", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


class Checks:
    """The checks, in their order. Each returns what it found; ``seconds`` are those of each measurement of throughput."""

    def __init__(self, device: str, seconds: float) -> None:
        self.device = device
        self.seconds = seconds
        self.is_real = device != "cpu"
        self.rows: list[tuple[str, str]] = []

    def note(self, what: str, found: str) -> None:
        self.rows.append((what, found))
        print(f"| {what} | {found} |", flush=True)

    def run(self) -> None:
        before = memory_used() if self.is_real else 0
        with serving(2, self.device) as server:
            self.note("2 workers on one device: time to READY", f"{server.seconds_to_ready:.1f} s")
            self.forked(server, before)
            two = server.throughput(self.seconds)
            self.assert_on_device(server)
        with serving(1, self.device) as server:
            self.note("1 worker: time to READY", f"{server.seconds_to_ready:.1f} s")
            one = server.throughput(self.seconds)
            self.note("requests per second, 2 workers beside 1", f"{two:.0f} beside {one:.0f}")
            self.out_of_memory(server)

    def forked(self, server: Server, before: int) -> None:
        told, _ = server.load(for_seconds(1))
        expect(set(told) == {"right"}, f"expected right answers alone, got {dict(told)}")
        if not self.is_real:
            return
        expect(not has_cuda(server.process.pid), "the arbiter has opened /dev/nvidia-uvm")
        expect(all(map(has_cuda, server.workers())), "a worker has not opened /dev/nvidia-uvm: it does not use the GPU")
        self.note("/dev/nvidia-uvm is open in", "both workers, and not in the arbiter")
        self.note("memory of the GPU for each of 2 workers", f"{(memory_used() - before) // 2} MiB")

    def assert_on_device(self, server: Server) -> None:
        """An index out of range in an embedding: its worker is replaced, and the other one goes on."""
        before = server.workers()
        poison: list[tuple[int, Any]] = []
        begin = time.monotonic()

        def is_replaced() -> bool:
            if not poison:
                poison.append(server.ask("embedding", 5000))
            return server.is_ready() and len(server.workers() - before) == 1

        told, _ = server.load(is_replaced)
        seconds = time.monotonic() - begin
        self.is_refused(poison[0], "an index out of range")
        expect(not told["wrong"] and set(told) <= {"right", "503"}, f"expected right answers and 503, got {dict(told)}")
        after, _ = server.load(for_seconds(1))
        expect(set(after) == {"right"}, f"expected right answers after the replacement, got {dict(after)}")
        self.note("a failed assert on the device", f"503 with Retry-After; replaced in {seconds:.1f} s")
        self.note("requests of others meanwhile", ", ".join(f"{number} {what}" for what, number in told.items()))

    def out_of_memory(self, server: Server) -> None:
        [worker] = server.workers()
        with ThreadPoolExecutor(4) as pool:
            told = list(pool.map(lambda _: server.ask("memory", 3), range(4)))
        expect(told == [(200, 3)] * 4, f"expected four answers by halves of a batch, got {told}")
        attempts = (server.log.parent / "attempts").read_text().split()
        expect(attempts[:1] == ["4"], f"expected a batch of 4 rows first, got batches of {attempts}")
        self.note(
            "4 requests that need 12 tenths of the memory together", f"answered in batches of {', '.join(attempts[1:])}"
        )
        for _ in range(SHORTAGES - 1):
            self.is_refused(server.ask("memory", 20), "a request that needs twice the memory")
        expect(server.ask("memory", 3) == (200, 3), "expected an answer after a lack of memory")
        expect(server.workers() == {worker}, "the worker was replaced too early")
        for _ in range(SHORTAGES):
            self.is_refused(server.ask("memory", 20), "a request that needs twice the memory")
        begin = time.monotonic()
        seconds = server.until(lambda: worker not in server.workers() and server.is_ready()) - begin
        expect(server.ask("memory", 3) == (200, 3), "expected an answer of the new worker")
        self.note(
            f"a real lack of memory, {SHORTAGES} times in a row", f"503 with Retry-After; replaced in {seconds:.1f} s"
        )

    @staticmethod
    def is_refused(told: tuple[int, Any], what: str) -> None:
        expect(told[0] == 503 and told[1][1] is not None, f"{what}: expected 503 with Retry-After, got {told}")


def obstacle() -> str | None:
    """Why nothing can be checked here, in one sentence."""
    if not list(Path("/dev").glob("nvidia[0-9]*")):
        return "There is no NVIDIA GPU here (no /dev/nvidia0); --cpu tries this script without one."
    words = "import torch; print(torch.cuda.is_available(), torch.__version__)"
    is_available, _, found = subprocess.run(
        [sys.executable, "-c", words], capture_output=True, text=True, check=True
    ).stdout.partition(" ")
    return None if is_available == "True" else f"torch {found.strip()} cannot use the GPU that is here."


def give_up(number: int, frame: object) -> None:
    raise CheckFailed(f"not finished within {LIMIT} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cpu", action="store_true", help="try the script itself, with errors that the models raise")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each measurement of throughput")
    options = parser.parse_args()
    if not options.cpu and (reason := obstacle()) is not None:
        sys.exit(reason)
    signal.signal(signal.SIGALRM, give_up)
    signal.alarm(LIMIT)
    begin = time.monotonic()
    print("| Check | Found |\n|---|---|")
    try:
        Checks("cpu" if options.cpu else "cuda:0", options.seconds).run()
    except CheckFailed as failure:
        sys.exit(f"FAILED: {failure}")
    print(f"\nAll checks hold, in {time.monotonic() - begin:.0f} s.")


if __name__ == "__main__":
    main()
