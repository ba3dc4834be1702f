"""Names the native threads of this process, which Python does not know, and the library that each of them belongs to.

Most libraries give their threads no name, so the name alone ("python") says nothing. The stack of a waiting thread tells the
library: it holds the addresses to which the thread will return. Where the kernel does not show them, the name must do.
"""

import bisect
import os
import re
import struct
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

TASKS = Path("/proc/self/task")
STACK = 16 * 1024  # bytes of a stack to look at; most threads wait within the first hundred
LOOKS, PAUSE = 50, 0.002  # at a thread that runs, and seconds between them

# Every thread waits in these, whoever started it.
EVERYBODYS = ("libc.", "libc-", "libpthread", "libstdc++", "libgcc_s", "libm.", "ld-", "libpython")

HARMLESS = ("openblas", "jemalloc_bg_thd", "libarrow", "duckdb", "cv2", "tokenizers", "_catboost", "polars-ooc")
"""Parts of the labels of threads whose libraries end them before a fork, begin anew in the child, or do without them there."""


class _Code(NamedTuple):
    """Where a file of code lies in memory."""

    begin: int
    end: int
    file: str


def named() -> set[str]:
    """The threads that may be missed after a fork, such as ``polars (_polars_runtime.abi3.so)``."""
    known = {str(thread.native_id) for thread in threading.enumerate()}
    tasks = [task for task in TASKS.iterdir() if task.name not in known]
    if not tasks:
        return set()
    code = sorted(_mapped_code())
    labels = set()
    for task in tasks:
        with suppress(OSError):  # it has ended meanwhile
            labels.add(_label(task, code))
    return {label for label in labels if not any(part in label for part in HARMLESS)}


def _label(task: Path, code: list[_Code]) -> str:
    name = re.sub(r"\W*\d*$", "", (task / "comm").read_text().strip())  # those of a pool are numbered
    library = _library(task, code)
    if library is None:
        return name
    # A thread without a name of its own has the name of the process.
    return library if Path(sys.executable).name.startswith(name) else f"{name} ({library})"


def _library(task: Path, code: list[_Code]) -> str | None:
    """The file of the innermost function of a waiting thread that is not everybody's; None if it cannot be told."""
    try:
        fields = _waiting(task)
        addresses = _words(int(fields[-2], 16))
    except (OSError, IndexError, ValueError):  # not allowed, or it runs on
        return None
    for address in addresses:
        place = bisect.bisect(code, address, key=lambda part: part.begin) - 1
        if place >= 0 and address < code[place].end and not code[place].file.startswith(EVERYBODYS):
            return code[place].file
    return None


def _waiting(task: Path) -> list[str]:
    """Where a thread waits (proc(5), "syscall"): a number, its arguments, the stack pointer and the program counter."""
    fields: list[str] = []
    for _ in range(LOOKS):
        fields = (task / "syscall").read_text().split()
        if fields != ["running"]:
            break
        time.sleep(PAUSE)  # a new thread of OpenBLAS spins for a while before it waits
    return fields


def _words(pointer: int) -> list[int]:
    memory = os.open("/proc/self/mem", os.O_RDONLY)
    try:
        stack = os.pread(memory, STACK, pointer)
    finally:
        os.close(memory)
    return [word for (word,) in struct.iter_unpack("N", stack[: len(stack) // 8 * 8])]


def _mapped_code() -> Iterator[_Code]:
    executable = Path(sys.executable).resolve().name
    for line in Path("/proc/self/maps").read_text().splitlines():
        addresses, rights, *_, path = line.split(maxsplit=5)
        file = path.rpartition("/")[2]
        if "x" in rights and path.startswith("/") and file != executable:
            begin, end = (int(address, 16) for address in addresses.split("-"))
            yield _Code(begin, end, file)
