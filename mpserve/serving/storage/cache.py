"""The folder in which fetched models are kept.

``CACHE/ADDRESS/CONTENT/NAME``: a folder for each address, in it one for each content, in it the file or folder. A content is
fetched into ``CONTENT.partial`` and renamed when it is complete, under a lock of the address. What is complete stays: a server
may still read it.
"""

import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from mpserve.errors import ConfigurationError
from mpserve.serving.storage import archive
from mpserve.serving.storage.address import Address
from mpserve.serving.storage.remote import Changed, RemoteFile, Report, Storage, identity, local_path, size_of

PARTIAL = ".partial"
LOCK = "lock"
CHANGES = 3  # of the files while they are fetched


def default() -> Path:
    """Where models are kept without ``--cache_dir`` (XDG Base Directory Specification)."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    try:
        return Path(base if Path(base).is_absolute() else Path.home() / ".cache") / "mpserve" / "models"
    except RuntimeError:
        raise ConfigurationError(
            "this user has no home directory to keep models in; name a folder: --cache_dir"
        ) from None


def make_folder(cache: Path, name: str) -> Path:
    """The folder of an address. Raises ConfigurationError: it cannot be written."""
    place = cache / name
    try:
        place.mkdir(parents=True, exist_ok=True)
        (place / LOCK).touch()
    except OSError as error:
        raise ConfigurationError(
            f"cannot write to {cache}, where models are kept: {error.strerror or error}; name another folder by --cache_dir,"
            " such as a volume of the pod (emptyDir)"
        ) from error
    return place


@contextmanager
def _alone(place: Path, waiting: Callable[[], object]) -> Iterator[None]:
    """Hold the lock of an address. The kernel releases the lock of a process that is killed."""
    with (place / LOCK).open("wb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waiting()
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def keep(address: Address, storage: Storage, cache: Path, report: Report, waiting: Callable[[], object]) -> Path:
    """The file or folder of this address in the cache, fetched if it is not there.
    ``waiting`` is called if another process is fetching it.

    Raises ConfigurationError: it cannot be fetched or kept.
    """
    if found := _known(address, cache / address.folder):
        return found
    place = make_folder(cache, address.folder)
    with _alone(place, waiting):
        if found := _known(address, place):
            return found
        for _ in range(CHANGES):
            files = storage.look()
            try:
                return _keep(address, storage, files, place, report)
            except Changed:
                continue
    raise ConfigurationError(f"{address.shown} changed {CHANGES} times while it was fetched")


def _known(address: Address, place: Path) -> Path | None:
    """The content whose digest the address says. It needs no look at the storage."""
    return _complete(place / f"sha256-{address.sha256}") if address.sha256 else None


def _complete(entry: Path) -> Path | None:
    return next(iter(entry.iterdir()), None) if entry.is_dir() else None


def _keep(address: Address, storage: Storage, files: Sequence[RemoteFile], place: Path, report: Report) -> Path:
    if address.sha256 and (len(files) != 1 or files[0].path):
        raise ConfigurationError(f"{address.shown} is a folder, and #sha256= is the digest of one file")
    content = f"sha256-{address.sha256}" if address.sha256 else identity(files)
    if not address.sha256 and content and (found := _complete(place / content)):
        return found
    partial = place / f"{identity(files) or 'unknown'}{PARTIAL}"
    for other in place.glob(f"*{PARTIAL}"):
        if other != partial or not identity(files):
            shutil.rmtree(other)
    try:
        partial.mkdir(exist_ok=True)
        _refuse_no_room(address, files, partial)
        storage.copy(files, partial, report)
        digest = _check(address, storage, files, partial)
        whole = _unpacked(address, partial) if address.is_archive and not files[0].path else partial / address.name
        _settle(partial)
        entry = place / (content or f"content-{digest[:16]}")
        if not entry.is_dir():
            partial.rename(entry)
    except OSError as error:
        raise ConfigurationError(f"cannot keep {address.shown} in {place}: {error.strerror or error}") from error
    return entry / whole.name


def _refuse_no_room(address: Address, files: Sequence[RemoteFile], partial: Path) -> None:
    missing = sum((file.size or 0) - size_of(local_path(partial, file, address.name)) for file in files)
    free = shutil.disk_usage(partial).free
    if missing > free:
        raise ConfigurationError(
            f"{address.shown} needs {missing} more bytes in {partial.parent.parent}, where {free} are free;"
            " name another folder by --cache_dir"
        )


def _check(address: Address, storage: Storage, files: Sequence[RemoteFile], partial: Path) -> str:
    """Check sizes and digests; the SHA-256 of the last file. A wrong file is removed, so that it is fetched again."""
    sha256 = ""
    for file in files:
        path = local_path(partial, file, address.name)
        wrong, sha256 = _wrong(path, file, address.sha256)
        if wrong and not (wrong == "MD5" and not storage.is_md5(file)):
            shutil.rmtree(partial)
            expected = {"size": file.size, "MD5": file.md5, "SHA-256": address.sha256}[wrong]
            named = f"{address.shown}{'/' if file.path else ''}{file.path}"
            raise ConfigurationError(f"{named} was fetched with another {wrong} than expected, {expected}")
    return sha256


def _wrong(path: Path, file: RemoteFile, sha256: str) -> tuple[str, str]:
    """What is wrong with a file, and its SHA-256 if that was needed."""
    if file.size is not None and path.stat().st_size != file.size:
        return "size", ""
    if file.md5 and _digest(path, "md5") != file.md5:
        return "MD5", ""
    found = _digest(path, "sha256") if sha256 or not file.tag else ""
    return "SHA-256" if sha256 and found != sha256 else "", found


def _digest(path: Path, algorithm: str) -> str:
    state = hashlib.new(algorithm, usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            state.update(chunk)
    return state.hexdigest()


def _unpacked(address: Address, partial: Path) -> Path:
    """Replace the archive in ``partial`` by a folder with its content, which has the archive's name without its ending."""
    packed = partial / address.name
    aside = partial.with_name(f"unpacked{PARTIAL}")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        archive.unpack(packed, aside)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    packed.unlink()
    whole = partial / address.stem
    shutil.rmtree(whole, ignore_errors=True)
    aside.rename(whole)
    return whole


def _settle(folder: Path) -> None:
    """Let the disk have all files before they count as complete: a machine may lose its power."""
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
