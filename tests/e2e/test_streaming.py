"""Answers in parts from real workers: they arrive one by one, and whatever ends them early closes the generator.

The model waits for a file of the test's before each part but the first, so nothing here depends on how fast anything is.
"""

import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import httpx
import pytest

from mpserve.protocol.protobuf import inference_pb2 as pb
from tests.e2e.steered import HOOKS, pids
from tests.running import PATIENCE, Server, eventually, free_port
from tests.running import serving as serving_source

SOURCE = """
import asyncio, time
from pathlib import Path
from mpserve import Model

class Sync(Model):
    def predict(self, payload, headers=None):
        try:
            for number in range(3):
                while number and not Path(f"go-{number}").exists():
                    time.sleep(0.01)
                yield f"part {number}\\n"
        finally:
            Path("closed").touch()

class Async(Model):
    async def predict(self, payload, headers=None):
        try:
            for number in range(3):
                while number and not Path(f"go-{number}").exists():
                    await asyncio.sleep(0.01)
                yield f"part {number}\\n"
        finally:
            Path("closed").touch()

models = [Sync("sync"), Async("async")]
"""
PARTS = ["part 0", "part 1", "part 2"]


@contextmanager
def serving(folder: Path, *flags: str, workers: int = 1) -> Iterator[Server]:
    """A server of both models, ready, whose workers leave word that they came to their end by themselves."""
    (folder / "hooks.py").write_text(HOOKS)
    env = {"GUNICORN_CMD_ARGS": "-c hooks.py"}
    with serving_source(folder, SOURCE, f"--workers={workers}", *flags, target="model.py:models", env=env) as server:
        yield server.wait_ready(workers=workers)


def go(folder: Path, *numbers: int) -> None:
    for number in numbers:
        (folder / f"go-{number}").touch()


@contextmanager
def reading(server: Server, model: str) -> Iterator[tuple[httpx.Response, Iterator[str]]]:
    """An answer, and its lines as they arrive; the first has arrived."""
    url = f"{server.url}/v1/models/{model}:predict"
    with httpx.stream("POST", url, json={"instances": []}, timeout=PATIENCE, verify=False) as response:
        lines = response.iter_lines()
        assert next(lines) == PARTS[0]
        yield response, lines


@pytest.mark.parametrize(("model", "loop"), [("sync", "uvloop"), ("async", "asyncio")])
def test_each_part_arrives_before_the_next_is_made_also_in_a_drain(tmp_path: Path, model: str, loop: str) -> None:
    with serving(tmp_path, f"--event-loop={loop}", workers=2) as server:
        with reading(server, model) as (response, lines):
            assert response.headers["transfer-encoding"] == "chunked"
            assert server.metric("mpserve_requests_in_flight") == 1
            go(tmp_path, 1)
            assert next(lines) == PARTS[1]
            server.signal(signal.SIGTERM)
            eventually(server.refuses)
            go(tmp_path, 2)
            assert list(lines) == PARTS[2:]
        assert server.wait_end(within=20) == 0


def test_a_client_that_goes_away_has_the_generator_closed(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        with reading(server, "sync"):
            pass
        go(tmp_path, 1)  # the step that was under way is the last
        eventually((tmp_path / "closed").exists)
        eventually(lambda: server.metric("mpserve_requests_in_flight") == 0)
        assert "Traceback" not in server.log


@pytest.mark.parametrize("model", ["async", "sync"])
def test_one_that_does_not_get_on_is_cut_off_when_the_time_to_drain_is_over(tmp_path: Path, model: str) -> None:
    with serving(tmp_path, "--graceful_timeout=3") as server:
        with reading(server, model) as (_, lines):
            server.signal(signal.SIGTERM)
            with pytest.raises(httpx.RemoteProtocolError):
                list(lines)
        assert server.wait_end(within=20) == 0
        assert pids(tmp_path, "exited")  # so gunicorn's SIGKILL was not needed
        assert (tmp_path / "closed").exists() or model == "sync"
        if model == "async":
            [line] = [line for line in server.log.splitlines() if "an answer was cut off" in line]
            # Neither is "-", though another task sends it.
            assert re.search(r"slot 0 model async req \S+-\S+-\S+]", line)


def test_over_grpc_a_drain_finishes_it(tmp_path: Path) -> None:
    port = free_port()
    request = pb.ModelInferRequest(model_name="sync")
    request.inputs.add(name="x", datatype="INT64", shape=[1]).contents.int64_contents.append(1)
    with (
        serving(tmp_path, "--enable_grpc=yes", f"--grpc_port={port}", workers=2) as server,
        grpc.insecure_channel(f"127.0.0.1:{port}") as channel,
    ):
        responses = channel.stream_stream(
            "/inference.GRPCInferenceService/ModelStreamInfer",
            request_serializer=pb.ModelInferRequest.SerializeToString,
            response_deserializer=pb.ModelStreamInferResponse.FromString,
        )(iter([request]), timeout=PATIENCE)
        assert next(responses).error_message == ""
        # It goes the same way behind the end of the requests, so that the server knows of that before it ends.
        channel.unary_unary("/inference.GRPCInferenceService/ServerLive")(b"", timeout=PATIENCE)
        server.signal(signal.SIGTERM)
        eventually(server.refuses)
        go(tmp_path, 1, 2)
        assert [each.error_message for each in responses] == ["", ""]
        assert server.wait_end(within=20) == 0
    assert (tmp_path / "closed").exists()
