"""Freed memory stays with the process for its next request, unless the user has told glibc what to do."""

import subprocess
import sys

import pytest

PROGRAM = """
import re
from pathlib import Path
from mpserve.prefork.worker import memory

def resident():
    return int(re.search(r"VmRSS:\\s+(\\d+)", Path("/proc/self/status").read_text()).group(1)) * 1024

memory.keep_freed()
before = resident()
blocks = [bytearray(b"x" * (20 << 20)) for _ in range(4)]
del blocks
print((resident() - before) >> 20)
"""


def kept_megabytes(**environment: str) -> int:
    """MiB that stay resident of 80 that were freed."""
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=True)
    return int(done.stdout)


def test_freed_memory_is_kept() -> None:
    assert kept_megabytes() > 60


@pytest.mark.parametrize("name", ["MALLOC_TRIM_THRESHOLD_", "MALLOC_ARENA_MAX"])
def test_who_has_told_glibc_what_to_do_is_obeyed(name: str) -> None:
    assert kept_megabytes(**{name: "131072"}) < 30
