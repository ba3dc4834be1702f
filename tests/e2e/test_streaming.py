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

PARTS = 3

class Sync(Model):
    name = "sync"

    def predict(self, payload, headers=None):
        Path("begun").touch()
        try:
            for number in range(PARTS):
                while number and not Path(f"go-{number}").exists():
                    time.sleep(0.01)
                yield f"part {number}\\n"
        finally:
            Path("closed").touch()

    def stop(self):
        Path("stopped").touch()

class Async(Sync):
    name = "async"

    async def predict(self, payload, headers=None):
        Path("begun").touch()
        try:
            for number in range(PARTS):
                while number and not Path(f"go-{number}").exists():
                    await asyncio.sleep(0.01)
                yield f"part {number}\\n"
        finally:
            Path("closed").touch()

models = [Sync(), Async()]
"""


@contextmanager
def serving(folder: Path, *flags: str) -> Iterator[Server]:
    """A server of both models, whose workers leave word that they came to their end by themselves."""
    (folder / "hooks.py").write_text(HOOKS)
    env = {"GUNICORN_CMD_ARGS": "-c hooks.py"}
    with serving_source(folder, SOURCE, *flags, target="model.py:models", env=env) as server:
        yield server


def go(folder: Path, *numbers: int) -> None:
    for number in numbers:
        (folder / f"go-{number}").touch()


def there(folder: Path, name: str) -> None:
    eventually((folder / name).exists)


@contextmanager
def reading(server: Server, model: str) -> Iterator[tuple[httpx.Response, Iterator[str]]]:
    """An answer, and its lines as they arrive; the first has arrived."""
    url = f"{server.url}/v1/models/{model}:predict"
    with httpx.stream("POST", url, json={"instances": []}, timeout=PATIENCE, verify=False) as response:
        lines = response.iter_lines()
        assert next(lines) == "part 0"
        yield response, lines


@pytest.mark.parametrize(("model", "loop"), [("sync", "uvloop"), ("async", "asyncio")])
def test_each_part_arrives_before_the_next_is_made(tmp_path: Path, model: str, loop: str) -> None:
    with serving(tmp_path, "--workers=2", f"--event-loop={loop}") as server:
        server.wait_ready(workers=2)
        with reading(server, model) as (response, lines):
            assert response.headers["transfer-encoding"] == "chunked"
            assert server.metric("mpserve_requests_in_flight") == 1
            for number in (1, 2):
                go(tmp_path, number)
                assert next(lines) == f"part {number}"
            assert list(lines) == []
        eventually(lambda: server.metric("mpserve_requests_in_flight") == 0)
        route = 'route="/v1/models/{model}:predict",status="200"'
        eventually(lambda: server.metric(f"mpserve_requests_total{{{route}}}") == 1)


def test_a_client_that_goes_away_has_the_generator_closed(tmp_path: Path) -> None:
    with serving(tmp_path, "--workers=2") as server:
        server.wait_ready(workers=2)
        with reading(server, "sync"):
            pass
        go(tmp_path, 1)  # the step that was under way is the last
        there(tmp_path, "closed")
        eventually(lambda: server.metric("mpserve_requests_in_flight") == 0)
        assert "Traceback" not in server.log


def test_a_drain_finishes_it(tmp_path: Path) -> None:
    with serving(tmp_path, "--workers=2") as server:
        server.wait_ready(workers=2)
        with reading(server, "async") as (_, lines):
            server.signal(signal.SIGTERM)
            eventually(server.refuses)
            go(tmp_path, 1, 2)
            assert list(lines) == ["part 1", "part 2"]
        assert server.wait_end(within=20) == 0


def test_a_generator_that_waits_is_closed_when_the_time_to_drain_is_over(tmp_path: Path) -> None:
    with serving(tmp_path, "--graceful_timeout=3") as server:
        server.wait_ready()
        with reading(server, "async") as (_, lines):
            server.signal(signal.SIGTERM)
            with pytest.raises(httpx.RemoteProtocolError):
                list(lines)
        assert server.wait_end(within=20) == 0
        assert (tmp_path / "closed").exists()
        [line] = [line for line in server.log.splitlines() if "an answer was cut off" in line]
        assert re.search(r"slot 0 model async req \S+-\S+-\S+]", line)  # neither is "-", though another task sends it


def test_a_generator_that_never_gets_on_does_not_keep_the_worker(tmp_path: Path) -> None:
    with serving(tmp_path, "--graceful_timeout=3") as server:
        server.wait_ready()
        with reading(server, "sync") as (_, lines):
            server.signal(signal.SIGTERM)
            assert server.wait_end(within=20) == 0
            with pytest.raises(httpx.RemoteProtocolError):
                list(lines)
        assert pids(tmp_path, "exited")  # so gunicorn's SIGKILL was not needed


@contextmanager
def asked_over_grpc(
    folder: Path, *flags: str
) -> Iterator[tuple[Server, Iterator[pb.ModelStreamInferResponse], grpc.Channel]]:
    """The synchronous model's responses as they arrive, of which the first has arrived, and their channel."""
    port = free_port()
    with serving(folder, "--enable_grpc=yes", f"--grpc_port={port}", *flags) as server:
        server.wait_ready()
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            call = channel.stream_stream(
                "/inference.GRPCInferenceService/ModelStreamInfer",
                request_serializer=lambda message: message.SerializeToString(),
                response_deserializer=pb.ModelStreamInferResponse.FromString,
            )
            request = pb.ModelInferRequest(model_name="sync")
            request.inputs.add(name="x", datatype="INT64", shape=[1]).contents.int64_contents.append(1)
            responses = call(iter([request]), timeout=PATIENCE)
            assert next(responses).error_message == ""
            yield server, responses, channel


def test_over_grpc_a_drain_finishes_it(tmp_path: Path) -> None:
    with asked_over_grpc(tmp_path, "--workers=2") as (server, responses, channel):
        # It goes the same way behind the end of the requests, so that the server knows of that before it ends.
        channel.unary_unary("/inference.GRPCInferenceService/ServerLive")(b"", timeout=PATIENCE)
        server.signal(signal.SIGTERM)
        eventually(server.refuses)
        go(tmp_path, 1, 2)
        assert [each.error_message for each in responses] == ["", ""]
        assert server.wait_end(within=20) == 0
    assert (tmp_path / "closed").exists()
