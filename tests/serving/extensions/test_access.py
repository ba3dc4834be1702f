"""Who may manage a server, decided from the address and the headers alone."""

import pytest

from mpserve.config.settings import Settings
from mpserve.errors import AccessDenied
from mpserve.serving.extensions.access import check_access
from tests.cases import each

HERE = "127.0.0.1"


@each("address, headers", [
    (HERE, {}), ("::1", {}), ("::ffff:127.0.0.1", {}), ("10.1.2.3", {}),  # the last is --host
    (HERE, {"host": "localhost:8080", "user-agent": "curl"}), (HERE, {"host": "[::1]:8080"}), (HERE, {"host": "127.0.0.1"}),
    (HERE, {"host": "localhost:8080", "origin": "http://localhost:8080", "sec-fetch-site": "same-origin"}),  # /docs
    (HERE, {"host": "LOCALHOST", "sec-fetch-site": "none"}),
])  # fmt: skip
def test_the_same_host_may_manage(address: str, headers: dict[str, str]) -> None:
    check_access(Settings(host="10.1.2.3"), address, headers)


@each("address, headers, words", [
    ("10.1.2.4", {}, "came from 10.1.2.4"), (None, {}, "an unknown address"), ("127.0.0.6", {}, "127.0.0.6"),
    ("::ffff:10.1.2.4", {}, "10.1.2.4"), ("fe80::1%eth0", {}, "fe80::1"), ("testclient", {}, "testclient"),
    *((HERE, {name: HERE}, f"a proxy, by its header {name}")
      for name in ("x-forwarded-for", "forwarded", "x-forwarded-proto", "x-real-ip", "via", "x-envoy-internal")),
    # A page of another site in a browser on this host; the last three reach it by a name of their own
    (HERE, {"host": "localhost:8080", "origin": "https://evil.example"}, 'a page from "https://evil.example"'),
    (HERE, {"host": "localhost:8080", "origin": "http://localhost:3000"}, "localhost:3000"),
    (HERE, {"host": "localhost:8080", "origin": "null"}, '"null"'),
    (HERE, {"host": "localhost:8080", "sec-fetch-site": "cross-site"}, "another site"),
    (HERE, {"host": "localhost:8080", "sec-fetch-site": "same-site"}, "another site"),
    (HERE, {"host": "evil.example:8080", "origin": "http://evil.example:8080"}, '"evil.example:8080"'),
    (HERE, {"host": "localhost.evil.example"}, "localhost.evil.example"),
    (HERE, {"host": "127.0.0.1.evil.example"}, "evil"), (HERE, {"host": "[::1"}, "[::1"), (HERE, {"host": ""}, '""'),
])  # fmt: skip
def test_every_other_request_is_refused_in_words(address: str | None, headers: dict[str, str], words: str) -> None:
    with pytest.raises(AccessDenied) as refusal:
        check_access(Settings(host="10.1.2.3"), address, headers)
    assert words in str(refusal.value)
    assert "--management=anywhere" in str(refusal.value)
    check_access(Settings(management="anywhere"), address, headers)


def test_off_refuses_everybody() -> None:
    with pytest.raises(AccessDenied, match="--management=off"):
        check_access(Settings(management="off"), HERE, {})
