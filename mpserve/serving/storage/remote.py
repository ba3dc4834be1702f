"""What a storage offers: its files with their sizes and tags, and a copy that goes on where an earlier one ended."""

import hashlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from mpserve.errors import ConfigurationError

ATTEMPTS = 5  # in a row that bring nothing
PAUSE = 0.25  # seconds, doubled before each attempt


class Changed(Exception):
    """The files have changed since they were listed."""


class RemoteFile(NamedTuple):
    """A file of a storage.

    Attributes:
        path: relative to the address.
        size: None if the server does not say it.
        tag: changes when the file changes; empty if the server gives none.
        md5: in hexadecimal digits; empty if unknown.
    """

    path: str
    size: int | None
    tag: str
    md5: str = ""


Report = Callable[[int, int | None], object]
"""Is told how many bytes are there, and how many there will be."""


class Storage(Protocol):
    """The files at one address."""

    def look(self) -> list[RemoteFile]:
        """The files as they are now; one file whose path is empty if the address names a file.
        Raises ConfigurationError: they cannot be read; the message says why.
        """

    def copy(self, files: Sequence[RemoteFile], folder: Path, report: Report) -> None:
        """Bring what is missing of these files in ``folder``. Raises ConfigurationError as ``look``, or Changed."""

    def is_md5(self, file: RemoteFile) -> bool:
        """Whether ``file.md5`` is certain. Asked if it does not fit the content."""


def local_path(folder: Path, file: RemoteFile, name: str) -> Path:
    """Where a file is kept. Raises ConfigurationError: its name leads out of the folder."""
    if not file.path:
        return folder / name
    parts = file.path.split("/")
    if any(part in ("", ".", "..") or "\0" in part for part in parts):
        raise ConfigurationError(f"the storage holds a file named {file.path!r}, which cannot be kept as a file")
    return folder.joinpath(name, *parts)


def identity(files: Sequence[RemoteFile]) -> str:
    """A name for this content: another file, size or tag gives another name. Empty if a tag is unknown."""
    if not all(file.tag for file in files):
        return ""
    lines = "".join(f"{file.path}\0{file.size}\0{file.tag}\n" for file in sorted(files))
    return hashlib.sha256(lines.encode()).hexdigest()[:16]


def size_of(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def append(path: Path, content: bytes, offset: int) -> None:
    """Write at this offset, which becomes the end of what was there. Raises ConfigurationError: the disk fails."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("r+b" if path.exists() else "wb") as file:
            file.truncate(offset)
            file.seek(offset)
            file.write(content)
    except OSError as error:
        raise ConfigurationError(f"cannot write {path}: {error.strerror or error}") from error


def persist(attempt: Callable[[], None], there: Callable[[], int], is_transient: Callable[[Exception], bool]) -> None:
    """Try again after a failure that may pass, until several attempts in a row have brought nothing.
    ``there``: how many bytes are there.
    """
    failures, best = 0, there()
    while True:
        try:
            return attempt()
        except Exception as error:
            failures, best = 1 if there() > best else failures + 1, max(best, there())
            if not is_transient(error) or failures == ATTEMPTS:
                raise
            time.sleep(PAUSE * 2**failures)
