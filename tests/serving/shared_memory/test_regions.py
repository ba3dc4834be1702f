"""Regions of shared memory: what may be registered, who knows of it, and how long a mapping lasts."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mpserve.errors import AlreadyExists, InvalidInput, RegionNotFound
from mpserve.serving.shared_memory.regions import Region, Regions, RegionView
from mpserve.state.scoreboard import Scoreboard
from tests.cases import each
from tests.memory import memory
from tests.running import eventually

CONTENT = bytes(range(64))


@pytest.fixture(name="board")
def one_scoreboard() -> Scoreboard:
    return Scoreboard(1)


@pytest.fixture(name="regions")
def one_workers_regions(tmp_path: Path, board: Scoreboard) -> Regions:
    return Regions(tmp_path, board)


@pytest.fixture(name="path")
def an_object() -> Iterator[Path]:
    with memory(CONTENT) as path:
        yield path


def is_open(path: Path) -> bool:
    return any(os.path.realpath(open_file) == str(path) for open_file in Path("/proc/self/fd").iterdir())


def content(regions: Regions, name: str, offset: int = 0, size: int = 4) -> bytes:
    return bytes(regions.window(name, offset, size).read())


@pytest.mark.parametrize("slash", ["", "/"])
def test_a_region_is_a_part_of_an_object_and_its_client_sees_what_is_written(
    regions: Regions, path: Path, slash: str
) -> None:
    regions.register("r", slash + path.name, 8, 16)
    assert content(regions, "r") == CONTENT[8:12]
    assert content(regions, "r", 12, 4) == CONTENT[20:24]
    assert regions.status("r") == [Region("r", slash + path.name, 8, 16, path.stat().st_ino)]
    regions.window("r", 4, 2).write(b"\xff\xfe")
    assert path.read_bytes() == CONTENT[:12] + b"\xff\xfe" + CONTENT[14:]


@each("key", ["", "/", "..", "/..", ".", "a/b", "/a/b", "../etc/passwd", "//a", "a\0", 7, None])
def test_a_key_that_is_a_path_or_none_is_refused(regions: Regions, key: Any) -> None:
    with pytest.raises(InvalidInput, match=r"^key is .*, expected the name of a shared memory object, without a path$"):
        regions.register("r", key, 0, 1)


@each("offset, size, words", [
    (-1, 4, "offset is -1, expected a number of bytes of 0 or more"),
    (0, 0, "byte_size is 0, expected a number of bytes of 1 or more"), (0, -4, "byte_size is -4"),
    (0.0, 4, "offset is 0.0"), (0, None, "byte_size is null"), (True, 4, "offset is true"),
    (0, 65, r"has 64 bytes, expected 65 or more for 65 bytes from offset 0 on"),
    (61, 4, r"has 64 bytes, expected 65 or more for 4 bytes from offset 61 on"),
    (2**63, 2**63, "has 64 bytes, expected 18446744073709551616 or more"),
])  # fmt: skip
def test_a_part_that_is_not_there_is_refused(regions: Regions, path: Path, offset: Any, size: Any, words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        regions.register("r", path.name, offset, size)
    assert regions.status("") == []


@each("make, words", [
    (lambda path: path, "cannot be opened for reading and writing: No such file"),
    (lambda path: path.symlink_to("/etc/hostname"), "cannot be opened"),
    (os.mkfifo, "is no shared memory object"), (Path.mkdir, "cannot be opened .*: Is a directory"),
])  # fmt: skip
def test_what_is_no_shared_memory_object_is_refused(regions: Regions, make: Any, words: str) -> None:
    with memory(b"") as path:
        path.unlink()
        make(path)
        with pytest.raises(InvalidInput, match=f"'{path.name}' {words}"):
            regions.register("r", path.name, 0, 1)
        if path.is_dir():
            path.rmdir()


def test_a_name_is_given_once_until_it_or_all_are_unregistered(regions: Regions, path: Path) -> None:
    for name in "abc":
        regions.register(name, path.name, 0, 4)
    with pytest.raises(AlreadyExists, match="region 'b' is registered already; unregister it first"):
        regions.register("b", path.name, 4, 4)
    with pytest.raises(InvalidInput, match="expected the name of a shared memory region, got an empty one"):
        regions.register("", path.name, 4, 4)
    assert content(regions, "b") == CONTENT[:4]
    regions.unregister("b")
    regions.unregister("nobody")
    assert [region.name for region in regions.status("")] == ["a", "c"]
    with pytest.raises(RegionNotFound, match="region 'b' is not registered"):
        regions.status("b")
    regions.unregister("")
    assert regions.status("") == []


@pytest.mark.parametrize(("offset", "size"), [(0, 17), (13, 4), (2**63, 0)])
def test_a_window_is_inside_its_region(regions: Regions, path: Path, offset: int, size: int) -> None:
    regions.register("r", path.name, 8, 16)
    words = f"region 'r' has 16 bytes, expected {offset + size} or more for {size} bytes"
    with pytest.raises(InvalidInput, match=words):
        regions.window("r", offset, size)


def test_every_worker_knows_and_so_does_one_that_starts_later(
    regions: Regions, board: Scoreboard, path: Path, tmp_path: Path
) -> None:
    others = [Regions(tmp_path, board) for _ in range(2)]
    regions.register("r", path.name, 0, 4)
    assert [content(region, "r") for region in (*others, Regions(tmp_path, board))] == [CONTENT[:4]] * 3
    others[0].unregister("r")
    others[1].register("s", path.name, 4, 4)
    for region in (regions, *others):
        assert content(region, "s") == CONTENT[4:8]
        with pytest.raises(RegionNotFound, match="'r' is not registered"):
            content(region, "r")


def test_a_worker_that_died_between_announcing_and_writing_hides_nothing(
    regions: Regions, board: Scoreboard, path: Path
) -> None:
    regions.register("r", path.name, 0, 4)
    board.regions += 1
    assert content(regions, "r") == CONTENT[:4]
    regions.register("s", path.name, 4, 4)
    assert content(regions, "s") == CONTENT[4:8]


def test_a_window_outlives_its_region_and_nothing_else_stays_open(regions: Regions, path: Path) -> None:
    regions.register("r", path.name, 0, 4)
    window = regions.window("r", 0, 4)
    regions.unregister("r")
    regions.follow()
    assert bytes(window.read()) == CONTENT[:4]
    assert is_open(path)
    del window
    assert not is_open(path)


def test_an_object_that_shrinks_ends_no_worker(regions: Regions, path: Path) -> None:
    """Not while it is read or written, either: to touch the mapping of bytes that are gone is a SIGBUS."""
    regions.register("r", path.name, 8, 16)
    window = regions.window("r", 0, 16)
    seen = window.read()
    os.truncate(path, 16)
    assert bytes(seen) == CONTENT[8:24]
    for touch in (window.read, lambda: window.write(b"1")):
        with pytest.raises(InvalidInput, match="region 'r': its object has shrunk to 16 bytes, expected 24 or more"):
            touch()
    assert content(regions, "r", 0, 8) == CONTENT[8:16]
    assert path.read_bytes() == CONTENT[:16]


def test_a_client_that_shrinks_its_object_all_the_time_gets_its_bytes_or_is_refused(
    regions: Regions, path: Path
) -> None:
    size = 1 << 22
    os.truncate(path, size)
    regions.register("r", path.name, 0, size)
    shrinking = subprocess.Popen(
        [sys.executable, "-c", f"import os\nwhile True:\n for s in (0, {size}): os.truncate({str(path)!r}, s)"]
    )
    outcomes = set()

    def touched(touch: Callable[[RegionView], object]) -> bool:
        try:
            touch(regions.window("r", 0, size))
            outcomes.add("done")
        except InvalidInput as error:
            outcomes.add(str(error).split(" to ")[0])
        return len(outcomes) == 2

    try:
        for touch in (RegionView.read, lambda window: window.write(bytes(size))):
            outcomes.clear()
            eventually(lambda touch=touch: touched(touch), every=0)
            assert outcomes == {"done", "shared memory region 'r': its object has shrunk"}
    finally:
        shrinking.kill()
        shrinking.wait()


def test_another_object_of_the_same_key_is_not_taken_for_the_first(regions: Regions, path: Path) -> None:
    """Workers that have mapped the first would read other bytes than those that have not."""
    regions.register("r", path.name, 0, 4)
    later = path.with_name(f"{path.name}-later")
    later.write_bytes(b"late")
    later.rename(path)
    with pytest.raises(InvalidInput, match="is another one by now; register the region anew"):
        regions.window("r", 0, 4)
    regions.unregister("r")
    regions.register("r", path.name, 0, 4)
    assert content(regions, "r") == b"late"
