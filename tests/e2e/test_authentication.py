"""Keys on real servers: what they let in, who sees them, and what happens when their file changes."""

import hashlib
import json
import os
import signal
import threading
import time
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest

from mpserve.protocol.protobuf import inference_pb2 as pb
from tests.cases import each
from tests.documents import ROOT, blocks
from tests.running import PATIENCE, eventually, free_port, serving

ALICE, BOB = "alice-0123456789abcdef", "bob-0123456789abcdef"
MODEL = """
import logging
from mpserve import Model

class Seeing(Model):
    name = "seeing"
    def predict(self, payload, headers=None):
        logging.getLogger("model").info("headers %s", headers)
        return {"predictions": [sorted({"authorization", "x-api-key", "x-own"} & set(headers))]}
"""
PREDICT = "/v1/models/seeing:predict"
BODY = '{"instances": [1]}'


def ask(url: str, key: str, client: httpx.Client | None = None) -> httpx.Response:
    post = httpx.post if client is None else client.post
    headers = {"authorization": f"Bearer {key}", "x-own": "mine"}
    return post(f"{url}{PREDICT}", content=BODY, headers=headers, timeout=PATIENCE)


def status_of(call: Any, key: str) -> int:
    """The HTTP status of the same meaning as that of a call with this key."""
    code = call.future(b"", metadata=(("x-api-key", key),), timeout=PATIENCE).code()
    return {grpc.StatusCode.OK: 200, grpc.StatusCode.UNAUTHENTICATED: 401}[code]


@pytest.mark.parametrize("lane", ["--fast_lane=yes", "--fast_lane=no"])
def test_a_key_lets_in_and_reaches_no_model_and_no_log(tmp_path: Path, lane: str) -> None:
    (tmp_path / "keys").write_text(f"alice {ALICE}\nbob sha256:{hashlib.sha256(BOB.encode()).hexdigest()}\n")
    grpc_port = free_port()
    flags = ("--api_keys_file=keys", "--access_log", lane, "--enable_grpc=yes", f"--grpc_port={grpc_port}")
    with serving(tmp_path, MODEL, *flags) as server, httpx.Client(timeout=PATIENCE) as client:
        server.wait_ready()
        for key in (ALICE, ALICE, BOB, BOB):
            answer = ask(server.url, key, client)
            assert (answer.status_code, answer.json()) == (200, {"predictions": [["x-own"]]})
        refused = ask(server.url, "carol-0123456789abcdef", client)
        assert (refused.status_code, refused.headers["www-authenticate"]) == (401, 'Bearer realm="mpserve"')
        assert ask(server.url, ALICE, client).status_code == 200
        with grpc.insecure_channel(f"127.0.0.1:{grpc_port}") as channel:
            live = channel.unary_unary("/inference.GRPCInferenceService/ServerMetadata")
            metadata = pb.ServerMetadataResponse.FromString(live(b"", metadata=(("x-api-key", BOB),), timeout=20))
            assert metadata.name == "mpserve"
            with pytest.raises(grpc.RpcError) as end:
                live(b"", timeout=20)
            assert end.value.code() == grpc.StatusCode.UNAUTHENTICATED  # type: ignore[attr-defined]
        lines = eventually(lambda: "UNAUTHENTICATED" in server.log and server.log)
        assert lines.count(f' alice "POST {PREDICT}" 200') == 3
        assert lines.count(f' bob "POST {PREDICT}" 200') == 2
        assert lines.count(f'"POST {PREDICT}" 401') == 1
        assert ' bob "ServerMetadata" OK' in lines
        assert '"ServerMetadata" UNAUTHENTICATED' in lines
        assert "'x-own': 'mine'" in lines
        assert "0123456789abcdef" not in lines
        assert "Traceback" not in lines


def test_changed_keys_count_within_a_second_under_load(tmp_path: Path) -> None:
    """In all workers, over HTTP and gRPC, on connections that stay open: a valid key is never refused, and a revoked key is not
    served after a second.
    """
    keys = tmp_path / "keys"
    keys.write_text(f"alice {ALICE}\nbob {BOB}\n")
    grpc_port = free_port()
    flags = ("--api_keys_file=keys", "--workers=2", "--enable_grpc=yes", f"--grpc_port={grpc_port}")
    with serving(tmp_path, MODEL, *flags) as server:
        server.wait_ready()
        workers = eventually(lambda: len(server.workers()) == 2 and server.workers())
        answered: dict[str, list[tuple[float, int]]] = {ALICE: [], BOB: []}
        over = threading.Event()

        def over_http(key: str) -> None:
            with httpx.Client(timeout=PATIENCE) as client:
                while not over.is_set():
                    sent = time.monotonic()
                    answered[key].append((sent, ask(server.url, key, client).status_code))
                    time.sleep(0.002)

        def over_grpc(key: str) -> None:
            own = (("grpc.use_local_subchannel_pool", 1),)  # else all channels share a connection, and so a worker
            with grpc.insecure_channel(f"127.0.0.1:{grpc_port}", options=own) as channel:
                call = channel.unary_unary("/inference.GRPCInferenceService/ServerMetadata")
                while not over.is_set():
                    sent = time.monotonic()
                    answered[key].append((sent, status_of(call, key)))
                    time.sleep(0.002)

        ways = (over_http, over_http, over_grpc, over_grpc)
        threads = [threading.Thread(target=load, args=(key,)) for key in (ALICE, BOB) for load in ways]
        for thread in threads:
            thread.start()
        try:
            eventually(lambda: len(answered[BOB]) > 20)
            keys.write_text(f"alice {ALICE}\nbob {BOB} oops\n")  # a broken file: all goes on
            eventually(
                lambda: server.log.count("the keys of before count on: api_keys_file: keys, line 2: expected") == 2
            )
            keys.unlink()
            eventually(lambda: server.log.count("keys cannot be read: No such file or directory") == 2)
            assert {status for _, status in answered[BOB]} == {200}
            fresh = tmp_path / "fresh"
            fresh.write_text(f"alice {ALICE}\n")
            fresh.rename(keys)
            changed = time.monotonic()
            eventually(lambda: time.monotonic() - changed > 2)
        finally:
            over.set()
            for thread in threads:
                thread.join(PATIENCE)
        assert {status for _, status in answered[ALICE]} == {200}
        assert {status for sent, status in answered[BOB] if sent > changed + 1} == {401}
        assert server.workers() == workers
        assert BOB not in server.log
        assert "oops" not in server.log


def test_a_worker_that_comes_later_has_the_keys_of_now(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text(f"alice {ALICE}\n")
    with serving(tmp_path, MODEL, "--api_keys_file=keys", "--max_requests=1") as server:
        server.wait_ready()
        eventually(lambda: "curl -H 'Authorization: Bearer KEY' http" in server.log)
        keys.write_text(f"bob {BOB}\n")
        eventually(lambda: ask(server.url, ALICE).status_code == 401)
        [worker] = server.workers()[:1]
        eventually(lambda: ask(server.url, BOB).status_code == 200 and worker not in server.workers())
        assert {ask(server.url, ALICE).status_code for _ in range(5)} == {401}


def test_a_worker_does_not_fall_back_to_the_keys_of_the_start(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text(f"alice {ALICE}\n")
    with serving(tmp_path, MODEL, "--api_keys_file=keys") as server:
        server.wait_ready()
        keys.write_text(f"bob {BOB}\n")
        eventually(lambda: ask(server.url, BOB).status_code == 200)
        keys.write_text("broken\n")
        eventually(lambda: "the keys of before count on" in server.log)
        assert ask(server.url, BOB).status_code == 200
        os.kill(server.workers()[0], signal.SIGKILL)
        eventually(lambda: "keys, line 1: expected NAME KEY" in server.log.partition("count on")[2].partition("\n")[2])
        keys.write_text(f"bob {BOB}\n")
        server.wait_ready()
        assert [ask(server.url, key).status_code for key in (ALICE, BOB)] == [401, 200]


@each("flags, words", [
    (("--api_keys_file=missing",), "api_keys_file: missing cannot be read: No such file or directory"),
    (("--authenticate=nowhere:check",), "no module named nowhere"),
    (("--authenticate=model.py:nothing",), "there is no 'nothing' in model"),
    (("--authenticate=model.py:__doc__",), "is of type NoneType, expected a function"),
])  # fmt: skip
def test_a_server_that_cannot_know_callers_ends_in_words(tmp_path: Path, flags: tuple[str, ...], words: str) -> None:
    with serving(tmp_path, MODEL, *flags) as server:
        assert server.wait_end() != 0
        assert words in server.log
        assert "Traceback" not in server.log


def test_the_documented_check_of_json_web_tokens(tmp_path: Path) -> None:
    """The example in ``docs/operate/security.md``, with keys that a server on loopback gives."""
    jwt = pytest.importorskip("jwt")
    from cryptography.hazmat.primitives.asymmetric import rsa

    own, other = (rsa.generate_private_key(public_exponent=65537, key_size=2048) for _ in range(2))
    public = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(own.public_key()))
    (tmp_path / "jwks.json").write_text(json.dumps({"keys": [{**public, "kid": "1", "use": "sig", "alg": "RS256"}]}))
    page = blocks(ROOT / "docs" / "operate" / "security.md")
    example = next(block.text for block in page if block.text.startswith("# auth.py"))

    def token(key: object = own, **claims: object) -> str:
        whole = {"sub": "bob@example.com", "aud": "mpserve", "exp": time.time() + 600, **claims}
        return str(jwt.encode({name: value for name, value in whole.items() if value}, key, "RS256", {"kid": "1"}))

    files = ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=tmp_path))
    threading.Thread(target=files.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{files.server_port}/jwks.json"
    (tmp_path / "auth.py").write_text(example.replace("https://login.example.com/.well-known/jwks.json", address))
    try:
        with serving(tmp_path, MODEL, "--authenticate=auth.py:check", "--access_log") as server:
            server.wait_ready()
            for bad in (
                "abc",
                "a.b.c",
                token(other),
                token(exp=time.time() - 60),
                token(aud="others"),
                token(sub=None),
            ):
                assert ask(server.url, bad).status_code == 401, bad
            good = ask(server.url, token())
            assert (good.status_code, good.json()) == (200, {"predictions": [["authorization", "x-own"]]})
            eventually(lambda: f' bob@example.com "POST {PREDICT}" 200' in server.log)
            assert "Traceback" not in server.log
    finally:
        files.shutdown()
        files.server_close()
