"""The regions of shared memory that clients have registered with one server, and their open objects in a worker.

A file that all workers share has the registered regions, so a worker that is respawned later knows them too. A worker opens
the object of a region when a request first names it, and keeps it open as long as it is used, so an unregistered region stays
until its requests end. Knows bytes and no tensors.

The bytes are copied by the kernel, and not mapped: a client may shrink its object at any time, and the kernel kills a process
that touches the mapping of bytes that are gone. So a model never sees bytes that change under it, either.

Source: Triton's docs/protocol/extension_shared_memory.md.
"""

import os
import stat
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import orjson

from mpserve.errors import AlreadyExists, InvalidInput, RegionNotFound, shown
from mpserve.protocol.json.documents import show
from mpserve.state import rundir
from mpserve.state.scoreboard import Scoreboard

REGISTERED = "regions.json"
OBJECTS = "/dev/shm"  # where Linux keeps what ``shm_open`` makes
CUDA_REFUSED = "CUDA shared memory is not supported; register system shared memory, or send the tensors"
"""The answer to a registration. A status is empty and an unregistration of all succeeds, since many clients begin with it."""


class Region(NamedTuple):
    """``byte_size`` bytes of a shared memory object from ``offset``; ``inode`` tells the object from a later one of its key."""

    name: str
    key: str
    offset: int
    byte_size: int
    inode: int


class OpenObject:
    """A shared memory object, open until nobody refers to it."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def __del__(self) -> None:
        os.close(self.descriptor)


class RegionView:
    """A part of a region, for one tensor."""

    def __init__(self, region: Region, memory: OpenObject, offset: int, byte_size: int) -> None:
        self.region = region
        self.offset = offset
        self.byte_size = byte_size
        self._memory = memory
        self._start = region.offset + offset

    def read(self) -> memoryview:
        """A copy of the bytes of the view. Raises InvalidInput if the object has shrunk."""
        self._check()
        content = np.empty(self.byte_size, np.uint8).data
        done = 0
        while done < self.byte_size:
            count = os.preadv(self._memory.descriptor, [content[done:]], self._start + done)
            if not count:
                raise self._shrunk()
            done += count
        return content.toreadonly()

    def write(self, data: bytes | memoryview) -> None:
        """Write to the beginning of the view. Raises InvalidInput if the object has shrunk, or there is no memory for it."""
        self._check()
        done = 0
        try:
            while done < len(data):
                done += os.pwrite(self._memory.descriptor, memoryview(data)[done:], self._start + done)
        except OSError as error:
            raise InvalidInput(f"shared memory region '{self.region.name}': {error.strerror}") from None

    def _check(self) -> None:
        if os.fstat(self._memory.descriptor).st_size < self._start + self.byte_size:
            raise self._shrunk()

    def _shrunk(self) -> InvalidInput:
        return InvalidInput(
            f"shared memory region '{self.region.name}': its object has shrunk to"
            f" {os.fstat(self._memory.descriptor).st_size} bytes, expected {self._start + self.byte_size} or more"
        )


class Regions:
    """The regions of the server whose workers share ``directory`` and ``board``.
    ``register``, ``unregister`` and ``status`` wait for files. ``follow`` and ``window`` are for the event loop, and read a file
    only after a change.
    """

    def __init__(self, directory: Path, board: Scoreboard) -> None:
        self._directory = directory
        self._board = board
        self._generation = 0
        self._registered: dict[str, Region] = {}
        self._open: dict[Region, OpenObject] = {}

    def register(self, name: str, key: Any, offset: Any, byte_size: Any) -> None:
        """Register a part of the object ``key`` as the region ``name``, for all workers.
        Raises AlreadyExists if the name is taken; InvalidInput if the object is missing or too short, or a field is invalid.
        """
        if not name:
            raise InvalidInput("expected the name of a shared memory region, got an empty one")
        for field, value, least in (("offset", offset, 0), ("byte_size", byte_size, 1)):
            if type(value) is not int or value < least:
                raise InvalidInput(f"{field} is {show(value)}, expected a number of bytes of {least} or more")
        with rundir.locked(self._directory):
            generation, registered = self._read()
            if name in registered:
                raise AlreadyExists(f"shared memory region '{shown(name)}' is registered already; unregister it first")
            descriptor, found = _open(key)
            os.close(descriptor)
            if found.st_size < offset + byte_size:
                raise InvalidInput(
                    f"shared memory object '{shown(key)}' has {found.st_size} bytes, expected {offset + byte_size} or more for"
                    f" {byte_size} bytes from offset {offset} on"
                )
            registered[name] = Region(name, key, offset, byte_size, found.st_ino)
            self._write(generation + 1, registered)

    def unregister(self, name: str) -> None:
        """Forget the region of that name, if there is one, or all regions if the name is empty."""
        with rundir.locked(self._directory):
            generation, registered = self._read()
            self._write(generation + 1, {each: registered[each] for each in registered if name not in ("", each)})

    def status(self, name: str) -> list[Region]:
        """The region of that name, or all regions if the name is empty. Raises RegionNotFound for an unknown name."""
        _, registered = self._read()
        return [_found(registered, name)] if name else list(registered.values())

    def follow(self) -> None:
        """Read the registered regions after a change, and close other objects. To be called often; costs nothing otherwise."""
        if self._generation != self._board.regions:
            self._generation, self._registered = self._read()
            kept = self._open.keys() & self._registered.values()
            self._open = {region: self._open[region] for region in kept}

    def window(self, name: str, offset: int, byte_size: int) -> RegionView:
        """A view on a part of a region. The view may outlive the region.
        Raises RegionNotFound for an unknown name; InvalidInput if the region is too short, or its object is gone.
        """
        self.follow()
        region = _found(self._registered, name)
        if offset + byte_size > region.byte_size:
            raise InvalidInput(
                f"shared memory region '{shown(name)}' has {region.byte_size} bytes, expected {offset + byte_size} or more for"
                f" {byte_size} bytes from offset {offset} on"
            )
        if region not in self._open:
            self._open[region] = _object_of(region)
        return RegionView(region, self._open[region], offset, byte_size)

    def _read(self) -> tuple[int, dict[str, Region]]:
        try:
            generation, *regions = orjson.loads((self._directory / REGISTERED).read_bytes())
        except FileNotFoundError:
            return 0, {}
        return generation, {fields[0]: Region(*fields) for fields in regions}

    def _write(self, generation: int, registered: dict[str, Region]) -> None:
        # Announced first: if the writer dies in between, the others only read again what they know.
        self._board.regions = generation
        content = orjson.dumps([generation, *map(list, registered.values())])  # orjson takes no named tuples
        rundir.replace(self._directory / REGISTERED, content)


def _found(registered: dict[str, Region], name: str) -> Region:
    region = registered.get(name)
    if region is None:
        raise RegionNotFound(f"shared memory region '{shown(name)}' is not registered")
    return region


def _open(key: Any) -> tuple[int, os.stat_result]:
    """A descriptor of a shared memory object, for reading and writing, and its status."""
    name = key.removeprefix("/") if isinstance(key, str) else ""
    if not name or "/" in name or "\0" in name or name in (".", ".."):
        raise InvalidInput(f"key is {show(key)}, expected the name of a shared memory object, without a path")
    try:
        descriptor = os.open(f"{OBJECTS}/{name}", os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise InvalidInput(
            f"shared memory object '{shown(key)}' cannot be opened for reading and writing: {error.strerror}"
        ) from None
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode):
        os.close(descriptor)
        raise InvalidInput(f"'{shown(key)}' is no shared memory object")
    return descriptor, found


def _object_of(region: Region) -> OpenObject:
    descriptor, found = _open(region.key)
    memory = OpenObject(descriptor)
    if found.st_ino != region.inode:
        raise InvalidInput(
            f"shared memory object '{shown(region.key)}' is another one by now; register the region anew"
        )
    return memory
