"""TLS, by our options or by gunicorn's own."""

import signal
import ssl
import subprocess
from pathlib import Path
from typing import NamedTuple

import grpc
import httpx
import pytest

from tests.e2e.steered import SOURCE, let, steered, waiting_request
from tests.e2e.wire import LIVE, wire
from tests.running import eventually, free_port, serving


class Pair(NamedTuple):
    certificate: Path
    key: Path

    @property
    def flags(self) -> tuple[str, str]:
        return f"--ssl_certfile={self.certificate}", f"--ssl_keyfile={self.key}"


def make_pair(folder: Path, name: str) -> Pair:
    pair = Pair(folder / f"{name}.crt", folder / f"{name}.key")
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    files = ["-addext", "subjectAltName=IP:127.0.0.1", "-out", str(pair.certificate), "-keyout", str(pair.key)]
    subprocess.run([*command, *files], check=True, capture_output=True)
    return pair


HOOK = """
import ssl
def ssl_context(config, default):
    context = default()
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    return context
"""


@pytest.mark.parametrize("whose", ["ours", "gunicorn's"])
def test_a_client_that_trusts_the_certificate_is_served_and_drained(tmp_path: Path, whose: str) -> None:
    pair = make_pair(tmp_path, "ours")
    flags = (*pair.flags, "--event-loop=asyncio") if whose == "ours" else ()
    (tmp_path / "hook.py").write_text(HOOK)
    gunicorn = "" if flags else f"-c hook.py --certfile {pair.certificate} --keyfile {pair.key}"
    with steered(tmp_path, *flags, gunicorn=gunicorn, scheme="https") as server:
        trusting = ssl.create_default_context(cafile=str(pair.certificate))
        with httpx.Client(base_url=server.url, verify=trusting) as client:
            assert [client.get("/v2/health/live").status_code for _ in range(2)] == [200, 200]
        trusting.maximum_version = ssl.TLSVersion.TLSv1_2  # which a hook of gunicorn's may refuse
        with httpx.Client(base_url=server.url, verify=trusting) as old:
            if whose == "ours":
                assert old.get("/v2/health/live").status_code == 200
            else:
                with pytest.raises(httpx.ConnectError):
                    old.get("/v2/health/live")
        with wire(server) as plain:  # whoever speaks plain HTTP is hung up on
            plain.send(LIVE)
            assert plain.is_closed()
        request = waiting_request(server, tmp_path)
        server.signal(signal.SIGTERM)
        eventually(server.refuses)
        let(tmp_path, "release")
        assert request.result().status_code == 200
        assert server.wait_end(within=20) == 0
        assert "Traceback" not in server.log


def test_a_key_that_does_not_fit_ends_the_server_with_the_reason(tmp_path: Path) -> None:
    pair = make_pair(tmp_path, "ours")._replace(key=make_pair(tmp_path, "other").key)
    with serving(tmp_path, SOURCE, *pair.flags, scheme="https") as server:
        assert server.wait_end() == 3
        assert "TLS cannot be set up with the certificate and key" in server.log
        assert "KEY_VALUES_MISMATCH" in server.log.upper().replace(" ", "_")


def test_a_renewed_certificate_is_taken_up_and_a_broken_one_is_refused(tmp_path: Path) -> None:
    """By every running worker, over HTTP and gRPC, as cert-manager renews the files."""
    pair, renewed, other = (make_pair(tmp_path, name) for name in ("ours", "renewed", "other"))
    certificates = [each.certificate.read_text() for each in (pair, renewed)]
    grpc_port = free_port()
    flags = ("--workers=2", "--enable_grpc=yes", f"--grpc_port={grpc_port}", *pair.flags)

    def seen() -> set[str]:
        ports = (server.port, grpc_port)
        return {ssl.get_server_certificate(("127.0.0.1", port), timeout=20) for port in ports for _ in range(8)}

    with serving(tmp_path, "def predict(x):\n    return x\n", *flags, scheme="https") as server:
        server.wait_ready(workers=2)
        workers = server.workers()
        assert seen() == {certificates[0]}
        with httpx.Client(base_url=server.url, verify=False) as client:
            assert client.get("/v2/health/live").status_code == 200
            pair.key.write_bytes(other.key.read_bytes())
            eventually(lambda: server.log.count("cannot be used, and the certificate of before serves on") == 2)
            assert seen() == {certificates[0]}
            for new, old in zip(renewed, pair, strict=True):
                new.rename(old)
            eventually(lambda: seen() == {certificates[1]})
            assert client.get("/v2/health/live").status_code == 200
        assert server.workers() == workers
        assert "Traceback" not in server.log


def test_a_handshake_that_is_not_completed_ends(tmp_path: Path) -> None:
    pair = make_pair(tmp_path, "ours")
    with steered(tmp_path, *pair.flags, "--header_timeout=1", scheme="https") as server:
        for begun in (b"", b"\x16\x03\x01\x02\x00\x01"):
            with wire(server) as client:
                client.sock.settimeout(20)
                client.send(begun)
                assert client.is_closed()


def make_client(folder: Path, authority: Pair, name: str, *, subject: str, alternative: str) -> Pair:
    """A certificate that the authority has signed."""
    pair = Pair(folder / f"{name}.crt", folder / f"{name}.key")
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", subject]
    signed = [
        "-CA",
        str(authority.certificate),
        "-CAkey",
        str(authority.key),
        "-addext",
        f"subjectAltName={alternative}",
    ]
    files = ["-out", str(pair.certificate), "-keyout", str(pair.key)]
    subprocess.run([*command, *signed, *files], check=True, capture_output=True)
    return pair


@pytest.mark.parametrize("lane", ["--fast_lane=yes", "--fast_lane=no"])
def test_clients_show_certificates_and_their_names_are_logged(tmp_path: Path, lane: str) -> None:
    pair, authority = make_pair(tmp_path, "ours"), make_pair(tmp_path, "authority")
    alice = make_client(tmp_path, authority, "alice", subject="/CN=alice a", alternative="DNS:a.example")
    mesh = make_client(tmp_path, authority, "mesh", subject="/", alternative="URI:spiffe://example/bob")
    grpc_port = free_port()
    flags = (*pair.flags, f"--ssl_ca_certs={authority.certificate}", "--access_log", "--enable_grpc=yes")
    source = "def predict(x):\n    return x\n"
    with serving(tmp_path, source, *flags, f"--grpc_port={grpc_port}", lane, scheme="https") as server:
        eventually(lambda: "worker ready" in server.log)
        for client in (alice, mesh):
            shown = ssl.create_default_context(cafile=str(pair.certificate))
            shown.load_cert_chain(client.certificate, client.key)
            with httpx.Client(base_url=server.url, verify=shown) as known:
                assert known.get("/v2/health/live").status_code == 200
                answer = known.post("/v1/models/model:predict", json={"instances": [1]})
                assert answer.json() == {"predictions": [1]}
            own = [file.read_bytes() for file in (pair.certificate, client.key, client.certificate)]
            with grpc.secure_channel(f"127.0.0.1:{grpc_port}", grpc.ssl_channel_credentials(*own)) as channel:
                assert channel.unary_unary("/inference.GRPCInferenceService/ServerLive")(b"", timeout=20)
        stranger = make_pair(tmp_path, "stranger")
        for context in (ssl.create_default_context(cafile=str(pair.certificate)) for _ in range(2)):
            with httpx.Client(base_url=server.url, verify=context) as unknown, pytest.raises(httpx.TransportError):
                unknown.get("/v2/health/live")
            context.load_cert_chain(stranger.certificate, stranger.key)
            with httpx.Client(base_url=server.url, verify=context) as unknown, pytest.raises(httpx.TransportError):
                unknown.get("/v2/health/live")
        for line in ("GET /v2/health/live", "POST /v1/models/model:predict", "ServerLive"):
            for name in ("alice%20a", "spiffe://example/bob"):
                eventually(lambda asked=f' {name} "{line}"': asked in server.log)
        assert "Traceback" not in server.log
