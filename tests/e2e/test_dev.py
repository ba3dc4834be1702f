"""`mpserve dev`: a saved file is what answers next, and a mistake in it stops nothing."""

import signal
import sys
import threading
import time
from pathlib import Path

import httpx

from tests.running import Server, eventually, free_port, running

MODEL = """
import helper
from mpserve import Model

class One(Model):
    name = "one"

    def predict(self, payload, headers=None):
        return {{"predictions": [{answer}, helper.FACTOR]}}
"""


def asked(server: Server) -> object:
    """The answer on a connection of its own; None if nobody listens."""
    try:
        answer = httpx.post(f"{server.url}/v1/models/one:predict", json={"instances": [1]}, timeout=30)
    except httpx.ConnectError:
        return None
    return answer.json().get("predictions")


def told(server: Server) -> list[str]:
    """What the status page says of it."""
    notices: list[str] = httpx.get(f"{server.url}/status", verify=False).json()["notices"]
    return notices


def write(folder: Path, answer: str) -> None:
    (folder / "model.py").write_text(MODEL.format(answer=answer))


def test_what_is_saved_answers_next_and_the_old_model_answers_until_then(tmp_path: Path) -> None:
    write(tmp_path, "1")
    (tmp_path / "helper.py").write_text("FACTOR = 10\n")
    port = free_port()
    command = [sys.executable, "-m", "mpserve", "dev", "model.py", f"--http_port={port}"]
    with running(command, tmp_path, port) as server:
        eventually(lambda: asked(server) == [1, 10])
        answers: list[object] = []
        stop = threading.Event()

        def ask_on() -> None:
            while not stop.is_set():
                answers.append(asked(server))
                time.sleep(0.01)

        asking = threading.Thread(target=ask_on)
        asking.start()
        try:
            write(tmp_path, "2")
            eventually(lambda: asked(server) == [2, 10])
            (tmp_path / "helper.py").write_text("FACTOR = 20\n")  # what the model imports is watched, and imported anew
            eventually(lambda: asked(server) == [2, 20])
            write(tmp_path, "3 +")
            eventually(
                lambda: "the model could not be loaded; the old model serves on until a file changes" in server.log
            )
            assert "SyntaxError: invalid syntax" in server.log
            assert asked(server) == [2, 20]
            [notice] = told(server)
            assert notice.startswith("What was saved is not served: the import of model.py failed: SyntaxError: ")
            write(tmp_path, "1 / 1")
            eventually(lambda: asked(server) == [1, 20])
            assert told(server) == []
        finally:
            stop.set()
            asking.join()
        seen = [answer for number, answer in enumerate(answers) if number == 0 or answer != answers[number - 1]]
        changes = [[1, 10], [2, 10], [2, 20], [1, 20]]
        assert [answer for answer in changes if answer in seen] == changes
        assert None not in seen, "no connection was refused"
        assert all(answer in changes for answer in seen)
        (tmp_path / "model.log").write_text("not watched\n")
        assert eventually(lambda: len(server.workers()) == 2), "the old servers have ended: one serves, one stands by"


def test_a_model_that_never_loaded_is_loaded_when_it_is_mended(tmp_path: Path) -> None:
    (tmp_path / "helper.py").write_text("FACTOR = 1 / 0\n")
    write(tmp_path, "1")
    port = free_port()
    command = [sys.executable, "-m", "mpserve", "dev", "model.py:One", f"--http_port={port}"]
    with running(command, tmp_path, port) as server:
        eventually(lambda: "the model could not be loaded; nothing is served until a file changes" in server.log)
        assert server.refuses()
        (tmp_path / "helper.py").write_text("FACTOR = 5\n")
        eventually(lambda: asked(server) == [1, 5])
        server.signal(signal.SIGTERM)
        assert server.wait_end() == 0
        assert server.family() == []
