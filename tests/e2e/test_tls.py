"""TLS, by our options or by gunicorn's own."""

import signal
import ssl
import subprocess
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest

from tests.e2e.steered import SOURCE, ask, let, waiting_request
from tests.e2e.wire import LIVE, wire
from tests.running import Server, eventually, serving


class Pair(NamedTuple):
    certificate: Path
    key: Path


def make_pair(folder: Path, name: str) -> Pair:
    pair = Pair(folder / f"{name}.crt", folder / f"{name}.key")
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    files = ["-addext", "subjectAltName=IP:127.0.0.1", "-out", str(pair.certificate), "-keyout", str(pair.key)]
    subprocess.run([*command, *files], check=True, capture_output=True)
    return pair


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return make_pair(tmp_path_factory.mktemp("tls"), "ours")


def verified(server: Server, pair: Pair) -> httpx.Client:
    return httpx.Client(base_url=server.url, verify=ssl.create_default_context(cafile=str(pair.certificate)))


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_a_client_that_trusts_the_certificate_is_served_and_drained(tmp_path: Path, pair: Pair, loop: str) -> None:
    flags = [f"--ssl_certfile={pair.certificate}", f"--ssl_keyfile={pair.key}", f"--event-loop={loop}"]
    let(tmp_path, "load")
    with serving(tmp_path, SOURCE, "--workers=2", *flags, scheme="https") as server:
        server.wait_ready(workers=2)
        with verified(server, pair) as client:
            assert [client.get("/v2/health/live").status_code for _ in range(2)] == [200, 200]
        request = waiting_request(server, tmp_path)
        server.signal(signal.SIGTERM)
        eventually(server.refuses)
        let(tmp_path, "release")
        assert request.result().status_code == 200
        assert server.wait_end(within=20) == 0
        assert "Traceback" not in server.log


def test_a_client_that_speaks_plain_http_is_hung_up_on_and_nobody_else(tmp_path: Path, pair: Pair) -> None:
    flags = [f"--ssl_certfile={pair.certificate}", f"--ssl_keyfile={pair.key}"]
    let(tmp_path, "load")
    with serving(tmp_path, SOURCE, *flags, scheme="https") as server:
        server.wait_ready()
        with wire(server) as conn:
            conn.send(LIVE)
            assert conn.is_closed()
        assert ask(server).status_code == 200


def test_gunicorn_s_own_options_do_as_well(tmp_path: Path, pair: Pair) -> None:
    env = {"GUNICORN_CMD_ARGS": f"--certfile {pair.certificate} --keyfile {pair.key}"}
    let(tmp_path, "load")
    with serving(tmp_path, SOURCE, env=env, scheme="https") as server:
        server.wait_ready()
        with verified(server, pair) as client:
            assert client.get("/v2/health/live").status_code == 200


def test_a_key_that_does_not_fit_ends_the_server_with_the_reason(tmp_path: Path, pair: Pair) -> None:
    other = make_pair(tmp_path, "other")
    flags = [f"--ssl_certfile={pair.certificate}", f"--ssl_keyfile={other.key}"]
    with serving(tmp_path, SOURCE, *flags, scheme="https") as server:
        assert server.wait_end() == 3
        assert "TLS cannot be set up with the certificate and key" in server.log
        assert "KEY_VALUES_MISMATCH" in server.log.upper().replace(" ", "_")


def test_a_certificate_that_is_missing_ends_the_server_with_the_reason(tmp_path: Path) -> None:
    with serving(tmp_path, SOURCE, "--ssl_certfile=missing.pem", scheme="https") as server:
        assert server.wait_end() != 0
        assert "there is no file missing.pem (--ssl_certfile)" in server.log
