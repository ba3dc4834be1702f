"""gRPC from every worker: the port, readiness, and the drain that it shares with HTTP."""

import signal
import socket
from pathlib import Path

import grpc
import pytest

from mpserve.protocol.protobuf import inference_pb2 as pb
from tests.e2e.calls import PID, call, infer, speaking
from tests.e2e.steered import Background
from tests.running import eventually, free_port, serving


def test_a_port_that_is_taken_is_refused_although_it_could_be_shared(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with serving(tmp_path, PID, "--enable_grpc=yes", f"--grpc_port={port}") as server:
            assert server.wait_end() != 0
            assert f"{port}" in server.log
            assert "Traceback" not in server.log


SLOW = f"""{PID}
    def load(self):
        open("loading", "a").close()
        while not os.path.exists("go"):
            time.sleep(0.05)
"""


def test_a_loading_worker_takes_no_calls(tmp_path: Path) -> None:
    with speaking(tmp_path, source=SLOW) as (server, address):
        eventually((tmp_path / "loading").is_file)
        with pytest.raises(grpc.RpcError) as refused:
            call(address, "ServerLive", pb.ServerLiveRequest(), pb.ServerLiveResponse)
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
        (tmp_path / "go").touch()
        server.wait_ready()
        assert call(address, "ServerReady", pb.ServerReadyRequest(), pb.ServerReadyResponse).ready


def test_a_hup_moves_calls_to_the_new_workers_and_a_drain_finishes_those_in_hand(tmp_path: Path) -> None:
    with speaking(tmp_path) as (server, address):
        [old] = server.wait_ready().workers()
        server.signal(signal.SIGHUP)
        eventually(lambda: old not in server.workers() and server.states().get("ready") == 1)
        [new] = server.workers()
        asking = Background(lambda: infer(address, 1.0))
        eventually((tmp_path / "begun").is_file)
        server.signal(signal.SIGTERM)
        assert asking.result() == new
        assert server.wait_end() == 0


def test_without_grpc_its_port_is_closed(tmp_path: Path) -> None:
    port = free_port()
    with serving(tmp_path, PID, "--enable_grpc=no", f"--grpc_port={port}") as server:
        server.wait_ready()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), timeout=5)
