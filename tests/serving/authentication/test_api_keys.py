"""The file of keys: what is read, what is refused in words, and that no word is a key."""

import hashlib
from pathlib import Path

import pytest

from mpserve.errors import ConfigurationError
from mpserve.serving.authentication.api_keys import read_api_keys
from tests.cases import each

ALICE, OPS = "alice-0123456789abcdef", "ops-0123456789abcdef"
HASHED = hashlib.sha256(OPS.encode()).hexdigest()


def test_the_names_of_keys_are_found_and_of_nothing_else(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_bytes(
        f"\ufeff# people\r\nalice {ALICE}\r\n\r\n ops\tsha256:{HASHED.upper()} \r\nalice new-{ALICE}\r\n".encode()
    )
    keys = read_api_keys(str(file))
    assert [keys.name_of(key) for key in (ALICE, f"new-{ALICE}", OPS)] == ["alice", "alice", "ops"]
    others = ("", "alice", ALICE[:-1], f"{ALICE} ", HASHED, f"sha256:{HASHED}", "\udc80" * 20, "caf\xe9")
    assert [keys.name_of(key) for key in others] == [None] * len(others)


@each("text, words", [
    ("", "no key"), ("# alice\n", "no key"), (f"alice {ALICE} more", "line 1: expected NAME KEY"), (ALICE, "line 1: expected"),
    (f"\n\nalice\u00e9 {ALICE}", "line 3: expected"), (f"alice sha256:{HASHED[:-1]}", "line 1: expected"),
    ("alice secret", "the key of alice is too short, expected 16"),
    (f"alice {ALICE}\nbob {ALICE}", "line 2: bob has the same key as alice"), (b"alice \xff0123456789abcdef", "UTF-8"),
])  # fmt: skip
def test_a_wrong_file_is_refused_in_words_that_hold_no_key(tmp_path: Path, text: str | bytes, words: str) -> None:
    file = tmp_path / "keys"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigurationError) as refusal:
        read_api_keys(str(file))
    told = str(refusal.value)
    assert words in told
    assert told.startswith(f"api_keys_file: {file}")
    assert not any(secret in told for secret in (ALICE, HASHED[:-1], "secret", "0123456789abcdef"))


def test_a_missing_file_is_told() -> None:
    with pytest.raises(ConfigurationError, match="/nowhere cannot be read: No such file"):
        read_api_keys("/nowhere")
