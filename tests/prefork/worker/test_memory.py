"""Freed memory stays with the process for its next request, unless the user has told glibc what to do."""

import subprocess
import sys

from tests.cases import each

PROGRAM = """
from mpserve.prefork.worker import memory
from mpserve.telemetry.memory import resident
memory.keep_freed()
before = resident()
blocks = [bytearray(b"x" * (20 << 20)) for _ in range(4)]
del blocks
print((resident() - before) >> 20)
"""


@each("environment, is_kept", [
    ({}, True), ({"MALLOC_TRIM_THRESHOLD_": "131072"}, False), ({"MALLOC_ARENA_MAX": "131072"}, False),
])  # fmt: skip
def test_freed_memory_is_kept_unless_the_user_has_told_glibc_what_to_do(
    environment: dict[str, str], is_kept: bool
) -> None:
    """MiB that stay resident of 80 that were freed."""
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=True)
    assert int(done.stdout) > 60 if is_kept else int(done.stdout) < 30
