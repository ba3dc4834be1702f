"""Metrics and management at an address of their own, on real servers."""

import os
import signal
import time
from pathlib import Path

import grpc
import httpx
import pytest

from tests.running import PATIENCE, Server, eventually, free_port, serving

MODEL = """
import time
from pathlib import Path
from mpserve import Model

class Patient(Model):
    name = "model"

    def load(self):
        while Path("slow").exists():
            time.sleep(0.01)
        self.ready = True
        return True

    def predict(self, payload, headers=None):
        return {"predictions": payload["instances"]}
"""
ADMIN = ("GET /metrics", "GET /status", "GET /v2/logging", "POST /v2/repository/models/model/load")
OPEN = ("GET /", "GET /v2/health/ready", "GET /v2/models/model", "POST /v2/repository/index")


def client_at(address: str, folder: Path) -> httpx.Client:
    path = address.removeprefix("unix:")
    transport = httpx.HTTPTransport(verify=False, uds=None if path == address else str(folder / path))
    url = "http://localhost" if path != address else f"http://127.0.0.1:{address}"
    return httpx.Client(transport=transport, base_url=url, timeout=PATIENCE)


def statuses(client: httpx.Client, lines: tuple[str, ...]) -> list[int]:
    return [client.request(*line.split()).status_code for line in lines]


def check(server: Server, address: str, folder: Path) -> None:
    """Each is answered where it is to be, and by each worker: every request is on a connection of its own."""
    for _ in range(3):
        with client_at(address, folder) as admin, httpx.Client(base_url=server.url, timeout=PATIENCE) as public:
            assert statuses(admin, (*ADMIN, *OPEN)) == [200] * len((*ADMIN, *OPEN))
            assert statuses(public, (*ADMIN, *OPEN)) == [404] * len(ADMIN) + [200] * len(OPEN)
            assert admin.get("/", headers={"accept": "text/html"}).text.startswith("<!doctype html>")
            assert public.get("/", headers={"accept": "text/html"}).json() == {"status": "alive"}
            assert "/metrics" in admin.get("/openapi.json").json()["paths"]
            assert "/metrics" not in public.get("/openapi.json").json()["paths"]
            for client in (admin, public):
                body = {"instances": [[1, 2]]}
                assert client.post("/v1/models/model:predict", json=body).json() == {"predictions": [[1, 2]]}


@pytest.mark.parametrize("kind", ["port", "unix"])
def test_what_is_managed_there_is_nowhere_else_through_hup_and_a_killed_worker(tmp_path: Path, kind: str) -> None:
    address = str(free_port()) if kind == "port" else "unix:admin.sock"
    grpc_port = free_port()
    flags = (f"--admin_bind={address}", "--workers=2", "--enable_grpc=yes", f"--grpc_port={grpc_port}")
    with serving(tmp_path, MODEL, *flags) as server:
        server.wait_ready()
        before = eventually(lambda: len(server.workers()) == 2 and server.workers())
        check(server, address, tmp_path)
        with grpc.insecure_channel(f"127.0.0.1:{grpc_port}") as channel:
            with pytest.raises(grpc.RpcError) as refused:
                channel.unary_unary("/inference.GRPCInferenceService/LogSettings")(b"", timeout=PATIENCE)
            assert refused.value.code() == grpc.StatusCode.PERMISSION_DENIED  # type: ignore[attr-defined]
            assert "--admin_bind" in refused.value.details()  # type: ignore[attr-defined]
        os.kill(before[0], signal.SIGKILL)
        eventually(lambda: len(server.workers()) == 2 and before[0] not in server.workers())
        server.signal(signal.SIGHUP)
        eventually(lambda: len(server.workers()) == 2 and not set(before) & set(server.workers()))
        check(server, address, tmp_path)
        with (
            client_at(address, tmp_path) as admin,
            admin.stream("GET", "/status", headers={"accept": "text/event-stream"}) as events,
        ):
            lines = events.iter_lines()
            next(lines)
            server.signal(signal.SIGTERM)
            list(lines)  # whole, or httpx would raise
        assert server.wait_end() == 0
    assert kind == "port" or not (tmp_path / "admin.sock").exists()


def test_a_unix_socket_is_answered_while_the_models_load_and_the_port_still_refuses(tmp_path: Path) -> None:
    (tmp_path / "slow").touch()
    with serving(tmp_path, MODEL, "--admin_bind=unix:admin.sock", "--workers=2") as server:
        eventually((tmp_path / "admin.sock").exists)

        def asked(path: str) -> int:
            with client_at("unix:admin.sock", tmp_path) as admin:
                return admin.get(path).status_code

        assert asked("/v2/health/ready") == 503
        assert asked("/metrics") == 200
        for _ in range(5):
            assert server.refuses()
            time.sleep(0.1)
        (tmp_path / "slow").unlink()
        server.wait_ready()
        assert asked("/v2/health/ready") == 200
