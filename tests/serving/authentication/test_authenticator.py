"""Who sends a request: by a key, by a function of the user, or nobody."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from mpserve.config.settings import Settings
from mpserve.errors import AccessDenied, ConfigurationError, Unauthenticated
from mpserve.serving.authentication.authenticator import Authenticator, Caller
from tests.cases import each

KEY, OTHER = "alice-0123456789abcdef", "other-0123456789abcdef"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    file = tmp_path / "keys"
    file.write_text(f"alice {KEY}\n")
    return Settings(api_keys_file=str(file))


def identified(authenticator: Authenticator, headers: dict[str, str], address: str | None = None) -> Caller:
    return asyncio.run(authenticator.identify(headers, address))


@each("headers, spent", [
    ({"authorization": f"Bearer {KEY}"}, {"authorization"}), ({"authorization": f"bearer  {KEY}"}, {"authorization"}),
    ({"x-api-key": KEY}, {"x-api-key"}), ({"x-api-key": KEY, "authorization": "Bearer jwt"}, {"x-api-key"}),
    ({"x-api-key": KEY, "authorization": f"Bearer {KEY}"}, {"x-api-key", "authorization"}),
    ({"x-api-key": "wrong", "authorization": f"Bearer {KEY}", "cookie": "a"}, {"authorization"}),
])  # fmt: skip
def test_a_key_is_taken_from_two_headers_and_spent(
    settings: Settings, headers: dict[str, str], spent: set[str]
) -> None:
    assert identified(Authenticator(settings, None), headers) == Caller("alice", frozenset(spent))


@each("headers, words", [
    ({}, "has no key"), ({"cookie": KEY}, "has no key"), ({"authorization": KEY}, "an unknown key"),
    ({"authorization": f"Basic {KEY}"}, "an unknown key"), ({"authorization": f"Bearer {KEY}, Bearer {KEY}"}, "an unknown key"),
    ({"x-api-key": OTHER}, "an unknown key"), ({"x-api-key": ""}, "an unknown key"), ({"authorization": "Bearer"}, "an unknown"),
])  # fmt: skip
def test_all_else_is_refused_in_words_without_the_key(settings: Settings, headers: dict[str, str], words: str) -> None:
    with pytest.raises(Unauthenticated) as refusal:
        identified(Authenticator(settings, None), headers)
    assert words in str(refusal.value)
    assert "'Authorization: Bearer KEY' or 'x-api-key: KEY'" in str(refusal.value)
    assert not any(value and value in str(refusal.value) for value in headers.values() if value != "Bearer")


def test_a_function_knows_those_who_have_no_key(settings: Settings) -> None:
    seen: list[Any] = []

    async def waiting(headers: Any, address: str | None) -> str | None:
        seen.append((dict(headers), address))
        return headers.get("user")

    for hook in (waiting, lambda headers, address: headers.get("user")):
        authenticator = Authenticator(settings, hook)
        assert identified(authenticator, {"user": "bob"}, "10.0.0.1") == Caller("bob")
        assert identified(authenticator, {"user": "bob", "x-api-key": KEY}).name == "alice"
        for headers in ({}, {"user": ""}):
            with pytest.raises(Unauthenticated):
                identified(authenticator, headers)
    assert seen[0] == ({"user": "bob"}, "10.0.0.1")


def test_a_function_that_fails_lets_nobody_in() -> None:
    def denying(headers: Any, address: str | None) -> str:
        raise AccessDenied("not on Sundays")

    with pytest.raises(AccessDenied, match="Sundays"):
        identified(Authenticator(Settings(authenticate="a:b"), denying), {})
    with pytest.raises(TypeError, match="returned a bool, expected a name or None"):
        identified(Authenticator(Settings(authenticate="a:b"), lambda headers, address: True), {})  # type: ignore[arg-type,return-value]


@each("options, words", [
    ({"managers": "ops"}, "without api_keys_file and authenticate"), ({"authenticate": "module"}, "package.module:function"),
    ({"public": "helth"}, "expected none, or a list of health, metrics and docs"), ({"public": "none,docs"}, "expected none"),
])  # fmt: skip
def test_options_that_protect_nothing_are_refused(options: dict[str, str], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        Settings(**options)  # type: ignore[arg-type]
