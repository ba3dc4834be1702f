"""Workers that have had their share of requests or memory are replaced one by one, and no client notices."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest

from mpserve.protocol.protobuf import inference_pb2 as pb
from tests.e2e.calls import speaking
from tests.e2e.steered import SOURCE, Traffic, ask, let, pids_of, reached, steered, waiting_request
from tests.e2e.test_grpc_under_signals import SHORT_LIVED, Calls
from tests.running import PATIENCE, Server, eventually, serving

ALL_READY = "--ready_when=all"
SHARE = ("--max_requests=100", "--max_requests_jitter=50")


@contextmanager
def never_more_workers_than(server: Server, workers: int) -> Iterator[None]:
    """Look all the time how many workers there are, as long as the block lasts."""
    most, over = 0, threading.Event()

    def look() -> None:
        nonlocal most
        while not over.wait(0.02):
            most = max(most, len(server.workers()))

    looking = threading.Thread(target=look)
    looking.start()
    try:
        yield
    finally:
        over.set()
        looking.join()
    assert most == workers


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_with_max_requests_all_workers_are_replaced_and_no_request_and_no_call_is_lost(
    tmp_path: Path, workers: int
) -> None:
    with speaking(tmp_path, f"--workers={workers}", *SHARE, SHORT_LIVED) as (server, address):
        old = set(server.wait_ready(workers=workers).workers())
        with (
            never_more_workers_than(server, workers + 1),
            Calls(address) as calls,
            Traffic(server, what=0.0) as traffic,
        ):
            eventually(lambda: not old & set(server.workers()))
            calls.flow()
            traffic.flow()
        assert not calls.losses
        assert not traffic.losses
        assert server.metric("mpserve_worker_restarts_total") == 0


def call(address: str) -> None:
    """Three requests in one stream."""
    request = pb.ModelInferRequest(model_name="m")
    request.inputs.add(name="seconds", datatype="FP64", shape=[1]).contents.fp64_contents.append(0.0)
    with grpc.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        stream = channel.stream_stream(
            "/inference.GRPCInferenceService/ModelStreamInfer",
            request_serializer=pb.ModelInferRequest.SerializeToString,
            response_deserializer=pb.ModelStreamInferResponse.FromString,
        )
        assert [answer.error_message for answer in stream(iter([request] * 3), timeout=PATIENCE)] == ["", "", ""]


def test_the_requests_of_a_grpc_stream_count(tmp_path: Path) -> None:
    with speaking(tmp_path, "--max_requests=6", env={"MPSERVE_ENABLE_GRPC": "yes"}) as (server, address):
        old = set(server.wait_ready().workers())  # by one answer over HTTP, or a few
        call(address)
        call(address)
        eventually(lambda: old.isdisjoint(server.workers()))


def test_a_worker_serves_on_while_its_successor_loads_and_finishes_what_it_answers(tmp_path: Path) -> None:
    with steered(tmp_path, "--max_requests=50", ALL_READY, workers=1) as server:
        [old] = server.workers()
        request = waiting_request(server, tmp_path)
        (tmp_path / "load").unlink()
        with Traffic(server) as traffic:
            reached(server, tmp_path, "loading", 2)
            traffic.flow()
            assert set(traffic.answers) == {old}
            assert server.is_ready()
            let(tmp_path, "load")
            eventually(lambda: set(traffic.answers) - {old})
        assert not traffic.losses
        assert not request.done()
        let(tmp_path, "release")
        assert request.result().json()["predictions"] == [old]
        eventually(lambda: old not in server.workers())


def test_a_worker_serves_on_if_its_successor_cannot_load_until_one_can(tmp_path: Path) -> None:
    with steered(tmp_path, "--max_requests=50", ALL_READY) as server, Traffic(server) as traffic:
        (tmp_path / "broken").touch()
        old = set(server.workers())
        eventually(lambda: server.log.count("its successor will try again") == 2)  # after a pause the second time
        assert old <= set(server.workers())
        assert server.is_ready()
        (tmp_path / "broken").unlink()
        eventually(lambda: not old & set(server.workers()))
        assert not traffic.losses


LEAK = """
kept = []
class Leaking(Steered):
    def predict(self, payload, headers=None):
        if payload["instances"][0] == "leak":
            kept.append(b"x" * (64 << 20))
        return super().predict(payload, headers)
"""


def leak(server: Server) -> None:
    ask(server, "leak").raise_for_status()


def test_with_max_rss_a_worker_that_grows_is_replaced(tmp_path: Path) -> None:
    with steered(tmp_path, "--max_rss=500MiB", workers=1, source=SOURCE + LEAK, target="model.py:Leaking") as server:
        [old] = server.workers()
        with Traffic(server) as traffic:
            eventually(lambda: leak(server) or old not in server.workers())
        assert not traffic.losses
        assert "(--max_rss)" in server.log


def test_a_max_rss_that_a_new_worker_exceeds_is_told_and_replaces_nobody(tmp_path: Path) -> None:
    with steered(tmp_path, "--max_rss=1MiB", "--max_requests=30", workers=1) as server:
        old = set(server.workers())
        assert "before its first request, and --max_rss is 1 MiB" in server.log
        assert pids_of(server, 20) == old
        eventually(lambda: ask(server).json()["predictions"][0] not in old)  # for its requests
        assert "(--max_rss)" not in server.log


WHERE = """
import os
from mpserve import Model

class Where(Model):
    name = "m"
    def predict(self, payload, headers=None):
        return {"predictions": [os.environ["CUDA_VISIBLE_DEVICES"]]}
"""


def test_workers_with_a_gpu_each_end_first_and_leave_it_to_their_successors(tmp_path: Path) -> None:
    gpus = {"CUDA_VISIBLE_DEVICES": "GPU-a,GPU-b"}  # no driver is asked, so no GPU is needed to see them dealt
    with serving(tmp_path, WHERE, "--workers=2", *SHARE, env=gpus) as server:
        old = set(server.wait_ready(workers=2).workers())
        with never_more_workers_than(server, 2), Traffic(server) as traffic:
            eventually(lambda: not old & set(server.workers()))
            server.wait_ready(workers=2)
            traffic.answers.clear()
            eventually(lambda: len(traffic.answers) == 2)
        assert not traffic.losses
        assert set(traffic.answers) == {"GPU-a", "GPU-b"}
