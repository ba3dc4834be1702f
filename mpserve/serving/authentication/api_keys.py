"""The file of the keys by which clients are known. Knows no front end.

A line is ``NAME KEY``, with ``sha256:`` and the hexadecimal digest of a key instead of the key if the file is not to hold it.
No message shows a part of a line, since any part may be a key.
"""

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path

from mpserve.errors import ConfigurationError

LEAST = 16
"""Least characters of a key. A shorter one can be guessed, and found from its digest."""

_LINE = re.compile(
    r"(?P<name>[A-Za-z0-9._@-]{1,64})\s+(?:sha256:(?P<digest>[0-9A-Fa-f]{64})|(?!sha256:)(?P<key>[!-~]+))"
)
_EXPECTED = "expected NAME KEY or NAME sha256:DIGEST, where NAME has up to 64 of the characters A-Z a-z 0-9 . _ @ -"


class ApiKeys:
    """The names of callers by the SHA-256 of their keys.

    A key is looked up by its digest. So how long the search takes tells nothing about the keys: nobody can choose a digest.
    """

    def __init__(self, names: Mapping[bytes, str]) -> None:
        self._names = names

    def name_of(self, key: str) -> str | None:
        """The name of whoever has the key, or None."""
        return self._names.get(_digest_of(key))


def read_api_keys(path: str) -> ApiKeys:
    """The keys of a file. Raises ConfigurationError, in words that hold nothing of the file."""
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigurationError(f"api_keys_file: {path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigurationError(f"api_keys_file: {path} is not a text in UTF-8") from None
    names: dict[bytes, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip() and not line.lstrip().startswith("#"):
            digest, name = _read(line.strip(), f"api_keys_file: {path}, line {number}")
            if names.setdefault(digest, name) != name:
                raise ConfigurationError(
                    f"api_keys_file: {path}, line {number}: {name} has the same key as {names[digest]}"
                )
    if not names:
        raise ConfigurationError(f"api_keys_file: {path} has no key, {_EXPECTED}")
    return ApiKeys(names)


def _read(line: str, place: str) -> tuple[bytes, str]:
    found = _LINE.fullmatch(line)
    if found is None:
        raise ConfigurationError(f"{place}: {_EXPECTED}")
    if found["digest"]:
        return bytes.fromhex(found["digest"]), found["name"]
    if len(found["key"]) < LEAST:
        raise ConfigurationError(
            f"{place}: the key of {found['name']} is too short, expected {LEAST} characters or more"
        )
    return _digest_of(found["key"]), found["name"]


def _digest_of(key: str) -> bytes:
    return hashlib.sha256(key.encode(errors="replace")).digest()
