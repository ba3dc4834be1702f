"""The seed of this project: kserve's `ModelServer(workers=2)` broke on `multiprocessing`'s start method.

Here none is used: the script sets one, as such scripts do, and from then on no function of `multiprocessing` is called,
neither in the arbiter nor in a worker.
"""

import shutil
import sys
from pathlib import Path

import psutil
import pytest

from tests.e2e.workers import predictions_of_each_worker
from tests.running import free_port, running

MODELS = Path(__file__).parents[1] / "models"

SCRIPT = """
import {module}
{module}.set_start_method({method!r})
import watched_multiprocessing
watched_multiprocessing.watch()

from pid import Pid
from mpserve import ModelServer
model = Pid("m")
ModelServer(workers=2).start([model])
"""


@pytest.mark.parametrize(("module", "method"), [
    ("multiprocessing", "fork"), ("multiprocessing", "forkserver"), ("torch.multiprocessing", "spawn"),
])  # fmt: skip
def test_a_script_serves_on_two_processes_whatever_start_method_was_set(
    tmp_path: Path, module: str, method: str
) -> None:
    for file in ("pid.py", "watched_multiprocessing.py"):
        shutil.copy(MODELS / file, tmp_path)
    (tmp_path / "script.py").write_text(SCRIPT.format(module=module, method=method))
    port = free_port()
    with running([sys.executable, "script.py", f"--http_port={port}"], tmp_path, port) as server:
        answering = predictions_of_each_worker(server.wait_ready(workers=2))
        family = psutil.Process(server.pid).children(recursive=True)
        assert {process.pid for process in family} == set(answering), "something else than the workers was started"
        assert server.stop() == 0
    watched = (tmp_path / "watched").read_text().split()
    assert {f"{module}.Pipe", f"{module}.get_context", "BaseContext.Lock", "BaseProcess.start"} <= set(watched)
    called = tmp_path / "called"
    assert not called.exists(), called.read_text()


def test_a_use_of_multiprocessing_would_have_been_seen(tmp_path: Path) -> None:
    """The watch itself works: a script that makes a lock is caught."""
    shutil.copy(MODELS / "watched_multiprocessing.py", tmp_path)
    script = "import watched_multiprocessing as w\nw.watch()\ndef f(): w.multiprocessing.Lock()\nf()\n"
    with running([sys.executable, "-c", script], tmp_path, free_port()) as process:
        assert process.wait_end() == 0
    assert (tmp_path / "called").read_text().startswith("multiprocessing.Lock in ")
