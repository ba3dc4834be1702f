"""``mpserve doctor``: looks at this machine as a server would find it, and says first what is wrong.

The exit status is 1 if a server could not start, or not serve as it should.
"""

import os
import platform
import re
import resource
import shutil
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import PackageNotFoundError, distribution, requires, version
from pathlib import Path
from typing import NamedTuple

from mpserve.commands.arguments import read
from mpserve.config.options import Option
from mpserve.config.settings import Settings
from mpserve.errors import ConfigurationError
from mpserve.prefork.listener.acceptor import RESERVED_FILES
from mpserve.prefork.worker import devices, threads
from mpserve.version import VERSION

OWN: tuple[Option, ...] = ()

LEAST_FILES = 1024  # the usual limit of a Linux system
LEAST_SHARED_MEMORY = 16 << 20  # free bytes
LEAST_MEMORY = 200 << 20
MEMORY_FILES = (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes"))  # cgroup v2, v1
UNLIMITED = 1 << 60  # bytes, from which on v1 means no limit


class Finding(NamedTuple):
    """What was looked at, what was found, and the remedy if that is wrong."""

    name: str
    found: str
    remedy: str = ""


def run(arguments: Sequence[str]) -> int:
    """Report, and return the exit status."""
    settings = read(arguments).settings
    if settings.target is not None:
        raise ConfigurationError(f"doctor takes no TARGET; to try one: mpserve test {settings.target}")
    findings = [finding for look in LOOKS for finding in look(settings)]
    wrong = [finding for finding in findings if finding.remedy]
    for finding in wrong:
        print(f"WRONG {finding.name:<18} {finding.found}: {finding.remedy}")
    if not wrong:
        print("nothing is wrong")
    print()
    for finding in findings:
        print(f"  {finding.name:<18} {finding.found}")
    return 1 if wrong else 0


def _versions(settings: Settings) -> Iterator[Finding]:
    yield Finding("mpserve", f"{VERSION}, Python {platform.python_version()} in {sys.prefix}, {platform.platform()}")
    for name in ("gunicorn", "uvicorn", "starlette", "numpy", "orjson", "uvloop"):
        yield _package(name)
    for name in ("grpcio", "torch", "onnxruntime", "scikit-learn"):
        if _is_installed(name):
            yield _package(name)


def _package(name: str) -> Finding:
    try:
        return Finding(name, version(name))
    except PackageNotFoundError:
        return Finding(name, "is not installed", "pip install --force-reinstall mpserve")


def _extras(settings: Settings) -> Iterator[Finding]:
    """Extras of which every package is there, and those of which only some are."""
    by_extra: dict[str, list[str]] = {}
    for requirement in requires("mpserve") or ():
        if found := re.match(r"([\w.-]+).*extra == ['\"]([\w-]+)['\"]", requirement):
            by_extra.setdefault(found[2], []).append(found[1])
    there = [extra for extra, names in by_extra.items() if all(map(_is_installed, names))]
    yield Finding(
        "extras", f"{', '.join(there) or 'none'}; not installed: {', '.join(sorted(by_extra.keys() - there)) or 'none'}"
    )


def _is_installed(name: str) -> bool:
    try:
        distribution(name)
    except PackageNotFoundError:
        return False
    return True


def _devices(settings: Settings) -> Iterator[Finding]:
    try:
        plan = devices.plan(settings.devices, devices.visible_accelerators(os.environ))
    except ConfigurationError as error:
        yield Finding("devices", settings.devices, str(error))
    else:
        yield Finding("devices", devices.describe(plan, settings.workers))


def _processors(settings: Settings) -> Iterator[Finding]:
    cpus = threads.available_cpus()
    found = f"{cpus:g} usable of {os.cpu_count()}"
    remedy = f"{settings.workers} workers share them: set --workers to {max(int(cpus), 1)} or less"
    yield Finding("CPUs", found, remedy if settings.workers > max(cpus, 1) else "")


def _memory(settings: Settings) -> Iterator[Finding]:
    meminfo = dict(re.findall(r"(\w+): +(\d+) kB", Path("/proc/meminfo").read_text()))
    free = int(meminfo["MemAvailable"]) << 10
    found = f"{_size(free)} available of {_size(int(meminfo['MemTotal']) << 10)}"
    for folder in threads.cgroup_folders(Path("/"), "memory"):
        for limit, used in MEMORY_FILES:
            bound = _number(folder / limit)
            if bound is not None and bound < UNLIMITED:
                left = bound - (_number(folder / used) or 0)
                free = min(free, left)
                found += f"; the cgroup has {_size(left)} left of {_size(bound)}"
    yield Finding(
        "memory",
        found,
        "little is left for a model: stop something else, or give the container more" if free < LEAST_MEMORY else "",
    )


def _number(file: Path) -> int | None:
    try:
        return int(file.read_text())
    except (OSError, ValueError):
        return None


def _shared_memory(settings: Settings) -> Iterator[Finding]:
    try:
        usage = shutil.disk_usage("/dev/shm")
    except OSError as error:
        yield Finding(
            "/dev/shm", f"cannot be read: {error.strerror}", "mount a tmpfs there; heartbeats wait for a disk otherwise"
        )
        return
    remedy = ""
    if not os.access("/dev/shm", os.W_OK):
        remedy = "let this user write there; heartbeats wait for a disk otherwise"
    elif usage.free < LEAST_SHARED_MEMORY:
        remedy = "free some of it, or enlarge it (docker run --shm-size)"
    yield Finding("/dev/shm", f"{_size(usage.free)} free of {_size(usage.total)}", remedy)


def _descriptors(settings: Settings) -> Iterator[Finding]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = min(settings.max_connections + RESERVED_FILES, LEAST_FILES)
    remedy = f"ulimit -n {needed} or more; of fewer, a worker keeps {RESERVED_FILES} for other things than connections"
    yield Finding("open files", f"{soft} of at most {hard}", remedy if soft < needed else "")


def _ports(settings: Settings) -> Iterator[Finding]:
    wanted = [("HTTP", settings.http_port, "--http_port")]
    wanted += [("gRPC", settings.grpc_port, "--grpc_port")] if settings.enable_grpc and _is_installed("grpcio") else []
    for protocol, port, flag in wanted:
        family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
        try:
            with socket.socket(family) as candidate:
                candidate.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                candidate.bind((settings.host, port))
        except OSError as error:
            yield Finding(
                f"{protocol} port",
                f"{settings.host} port {port}: {error.strerror}",
                f"choose another by {flag} or --host",
            )
        else:
            yield Finding(f"{protocol} port", f"{settings.host} port {port} is free")


def _size(count: int) -> str:
    return f"{count / (1 << 30):.1f} GiB" if count >= 1 << 30 else f"{count >> 20} MiB"


LOOKS: tuple[Callable[[Settings], Iterator[Finding]], ...] = (
    _versions, _extras, _devices, _processors, _memory, _shared_memory, _descriptors, _ports,
)  # fmt: skip
