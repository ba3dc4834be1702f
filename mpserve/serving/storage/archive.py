"""Unpacks an archive from a stranger: only files and folders, only within its folder, and of a bounded size."""

import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from mpserve.errors import ConfigurationError

RATIO = 200  # how many times its size an archive may expand to
SMALL = 64 << 20  # bytes that every archive may expand to
MEMBERS = 100_000

Member = tuple[str, IO[bytes] | None]
"""A name, and the content of a file, or None for a folder."""


def unpack(archive: Path, folder: Path) -> None:
    """Unpack into ``folder``. Raises ConfigurationError: the archive is broken, too large, or has an unsafe member."""
    allowed = max(SMALL, RATIO * archive.stat().st_size)
    try:
        members = _of_zip(archive) if archive.name.lower().endswith(".zip") else _of_tar(archive)
        folder.mkdir(parents=True)
        for count, (name, content) in enumerate(members):
            if count >= MEMBERS:
                raise ConfigurationError(f"{archive.name} has more than {MEMBERS} members")
            target = folder.joinpath(*_parts(archive, name))
            if content is None:
                target.mkdir(parents=True, exist_ok=True)
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            with content, target.open("xb") as file:
                allowed -= _copy(archive, content, file, allowed)
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError) as error:
        if isinstance(error, ConfigurationError):
            raise
        raise ConfigurationError(f"{archive.name} cannot be unpacked: {error}") from error
    except FileExistsError as error:
        raise ConfigurationError(f"{archive.name} holds one name twice: {error.filename}") from error


def _copy(archive: Path, content: IO[bytes], file: IO[bytes], allowed: int) -> int:
    copied = 0
    while chunk := content.read(1 << 20):
        copied += len(chunk)
        if copied > allowed:
            raise ConfigurationError(
                f"{archive.name} expands to more than {RATIO} times its size; unpack it, and name the folder"
            )
        file.write(chunk)
    return copied


def _parts(archive: Path, name: str) -> list[str]:
    parts = [part for part in name.rstrip("/").split("/") if part != "."]
    if name.startswith("/") or any(part in ("", "..") or "\\" in part or "\0" in part for part in parts):
        raise ConfigurationError(f"{archive.name} holds {name!r}, which does not stay within its folder")
    return parts


def _of_zip(archive: Path) -> Iterator[Member]:
    with zipfile.ZipFile(archive) as opened:
        needed = sum(info.file_size for info in opened.infolist())
        if needed > shutil.disk_usage(archive.parent).free:
            raise ConfigurationError(f"{archive.name} needs {needed} bytes on the disk, which are not free")
        for info in opened.infolist():
            kind = info.external_attr >> 28  # of Unix; 0 if another system wrote the archive
            if kind not in (0, 0o4, 0o10):
                raise ConfigurationError(_no_file(archive, info.filename))
            yield info.filename, None if info.is_dir() else opened.open(info)


def _of_tar(archive: Path) -> Iterator[Member]:
    with tarfile.open(archive) as opened:
        for info in opened:
            content = opened.extractfile(info) if info.isreg() else None
            if content is None and not info.isdir():
                raise ConfigurationError(_no_file(archive, info.name))
            yield info.name, content
        while opened.fileobj is not None and opened.fileobj.read(1 << 20):
            pass  # gzip compares its checksum at the end of the file, where tarfile does not go


def _no_file(archive: Path, name: str) -> str:
    return f"{archive.name} holds {name!r}, which is a link or a device; expected files and folders alone (tar -h follows links)"
