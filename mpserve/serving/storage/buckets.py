"""Object storage: S3, Google Cloud Storage and Azure, read by fsspec and its packages.

Ranges of several files are read at a time. The files are listed again afterwards, which shows a change meanwhile.
"""

import base64
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mpserve.errors import ConfigurationError, MPServeError, text_of
from mpserve.serving.storage.address import BUCKETS, PACKAGES, Address
from mpserve.serving.storage.remote import Changed, RemoteFile, Report, append, local_path, persist, size_of

CHUNK = 8 << 20
BATCH = 8 * CHUNK  # bytes in memory at a time
REQUESTS = 64  # at a time


class _Range(NamedTuple):
    file: RemoteFile
    start: int
    end: int


class Bucket:
    """The object of an ``s3://``, ``gs://`` or ``az://`` address, or all objects below it."""

    def __init__(self, address: Address, **options: Any) -> None:
        self._address = address
        extra = BUCKETS[address.scheme]
        try:
            from fsspec.core import url_to_fs

            options = {"skip_instance_cache": True, "use_listings_cache": False, **options}
            self._files, root = url_to_fs(
                address.url, **options
            )  # the address may name more, such as an account of Azure
            self._root = str(root).rstrip("/")
        except ImportError:
            raise ConfigurationError(
                f"{address.shown} needs {PACKAGES[extra]}, which is not installed: pip install 'mpserve[{extra}]'"
            ) from None
        except Exception as error:
            raise self._told(error) from None

    def look(self) -> list[RemoteFile]:
        found: list[RemoteFile] = []

        def ask() -> None:
            found[:] = self._list()

        self._persist(ask, lambda: 0)
        if not found:
            raise ConfigurationError(f"{self._address.shown}: there is nothing")
        return sorted(found)

    def _list(self) -> Iterator[RemoteFile]:
        self._files.invalidate_cache()
        about = self._files.info(self._root)
        if about["type"] == "file" and not self._address.place.endswith("/"):
            yield _described("", about)
            return
        for name, each in self._files.find(self._root, detail=True).items():
            if each["type"] == "file" and not name.endswith("/"):  # some tools store an empty object for each folder
                yield _described(name.removeprefix(f"{self._root}/"), each)

    def copy(self, files: Sequence[RemoteFile], folder: Path, report: Report) -> None:
        targets = {file: local_path(folder, file, self._address.name) for file in files}
        total = sum(file.size or 0 for file in files)

        def there() -> int:
            return sum(map(size_of, targets.values()))

        def attempt() -> None:
            missing = [part for file in files for part in _missing(file, size_of(targets[file]))]
            here = there()
            for batch in _batches(missing):
                self._bring(batch, targets)
                here += sum(part.end - part.start for part in batch)
                report(here, total)

        for target in targets.values():
            append(target, b"", size_of(target))
        self._persist(attempt, there)
        if self.look() != sorted(files):
            raise Changed

    def _bring(self, parts: Sequence[_Range], targets: dict[RemoteFile, Path]) -> None:
        paths = [self._path(part.file) for part in parts]
        contents = self._files.cat_ranges(
            paths, [part.start for part in parts], [part.end for part in parts], on_error="return"
        )
        for part, content in zip(parts, contents, strict=True):
            if isinstance(content, Exception):
                raise content
            if len(content) != part.end - part.start:
                raise Changed
            append(targets[part.file], content, part.start)

    def _path(self, file: RemoteFile) -> str:
        return f"{self._root}/{file.path}" if file.path else self._root

    def is_md5(self, file: RemoteFile) -> bool:
        """With a key of KMS or of the customer, S3 gives an ETag that looks like an MD5 and is none."""
        if self._address.scheme != "s3":
            return True
        bucket, _, key = self._path(file).partition("/")
        head = self._files.call_s3("head_object", Bucket=bucket, Key=key)
        return head.get("ServerSideEncryption", "AES256") == "AES256" and "SSECustomerAlgorithm" not in head

    def _persist(self, attempt: Any, there: Any) -> None:
        try:
            persist(attempt, there, _is_transient)
        except (MPServeError, Changed):
            raise
        except Exception as error:
            raise self._told(error) from None

    def _told(self, error: Exception) -> ConfigurationError:
        kind, text = type(error).__name__, text_of(error)
        shown = self._address.shown
        if isinstance(error, FileNotFoundError):
            return ConfigurationError(f"{shown}: there is nothing (404): {text}")
        if isinstance(error, PermissionError):
            return ConfigurationError(f"{shown}: access is denied (403): {text}")
        if re.search("Credential|TokenRetrieval|SSO|DefaultAzure", kind):
            public = "; for a public bucket set FSSPEC_S3_ANON=true" if self._address.scheme == "s3" else ""
            return ConfigurationError(f"{shown}: there are no credentials{public} ({kind}: {text})")
        return ConfigurationError(f"{shown} cannot be fetched: {kind}: {text}")


def _is_transient(error: Exception) -> bool:
    lasting = (
        MPServeError,
        Changed,
        FileNotFoundError,
        PermissionError,
        TypeError,
        AttributeError,
        KeyError,
        ValueError,
    )
    return not isinstance(error, lasting) and not re.search("Credential|Token|SSO", type(error).__name__)


def _batches(parts: Sequence[_Range]) -> Iterator[list[_Range]]:
    batch: list[_Range] = []
    for part in parts:
        batch.append(part)
        if len(batch) == REQUESTS or sum(each.end - each.start for each in batch) > BATCH - CHUNK:
            yield batch
            batch = []
    if batch:
        yield batch


def _missing(file: RemoteFile, here: int) -> Iterator[_Range]:
    size = file.size or 0
    for start in range(here, size, CHUNK):
        yield _Range(file, start, min(start + CHUNK, size))


def _described(path: str, about: dict[str, Any]) -> RemoteFile:
    """What a package of fsspec tells of an object: each has words of its own."""
    tag = str(about.get("ETag") or about.get("etag") or about.get("generation") or about.get("last_modified") or "")
    md5 = about.get("md5Hash") or (about.get("content_settings") or {}).get("content_md5") or b""
    if md5:
        known = (md5 if isinstance(md5, bytes | bytearray) else base64.b64decode(md5)).hex()
    else:
        known = tag.strip('"') if "ETag" in about and re.fullmatch('"?[0-9a-f]{32}"?', tag) else ""
    return RemoteFile(path, int(about["size"]), tag, known)
