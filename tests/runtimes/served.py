"""A server of a folder of model files, for all tests of a module."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.running import Server, free_port, running


@contextmanager
def serving_files(folder: Path, logs: Path, most_rows: int, slow_stop: str) -> Iterator[tuple[Server, str]]:
    """A server with gRPC, two workers, and batches of ``most_rows``, once it is ready; and the address of its gRPC port."""
    port, grpc_port = free_port(), free_port()
    ports = (f"--http_port={port}", "--enable_grpc=yes", f"--grpc_port={grpc_port}")
    flags = (*ports, "--workers=2", f"--max_batch_size={most_rows}")
    command = [sys.executable, "-m", "mpserve", "serve", str(folder), *flags]
    with running(command, logs, port, slow_stop=slow_stop) as server:
        yield server.wait_ready(workers=2), f"127.0.0.1:{grpc_port}"
