"""The libraries of model files keep to the threads that a worker may have, so that workers do not compete for the CPUs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mpserve.prefork.worker.threads import NATIVE_POOLS
from tests.documents import ROOT
from tests.runtimes.model_files import ROWS, lgb, xgb_booster

KEPT = (xgb_booster, lgb)
"""Files whose libraries keep the threads that they have started, so that these can be counted afterwards."""

SCRIPT = """
import json, os, sys, threading
import numpy as np
from mpserve.config.settings import Settings
from mpserve.prefork.worker import threads
from mpserve.serving.repository.loader import from_target

threads.hold_to_one(os.environ)
allowed, rows = int(sys.argv[1]), np.load(sys.argv[2])
models = {file: from_target(file, None, Settings())[0].obtain() for file in sys.argv[3:]}
threads.release(allowed, os.environ)
more = {}

def serve(file, model):
    threads.limit_this_thread()
    before = len(os.listdir("/proc/self/task"))
    model.native_threads = allowed
    model.load()
    for method in model.methods.values():
        method(rows)
    more[file] = len(os.listdir("/proc/self/task")) - before
    counted.release()
    over.wait()  # a library's threads end with the thread for which they work

counted, over = threading.Semaphore(0), threading.Event()
for file, model in models.items():
    threading.Thread(target=serve, args=(file, model), daemon=True).start()
    counted.acquire(timeout=60)
print(json.dumps(more))
"""


@pytest.mark.parametrize("allowed", [1, 2])
def test_a_library_has_as_many_threads_as_a_worker_may_have(tmp_path: Path, allowed: int) -> None:
    files = [str(tmp_path / make(tmp_path).file) for make in KEPT]
    np.save(tmp_path / "rows.npy", np.tile(ROWS, (20, 1)))
    command = [sys.executable, "-c", SCRIPT, str(allowed), str(tmp_path / "rows.npy"), *files]
    environ = {name: value for name, value in os.environ.items() if name not in NATIVE_POOLS}
    done = subprocess.run(command, env=environ, cwd=ROOT, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stderr
    more = json.loads(done.stdout.splitlines()[-1])
    assert set(more.values()) == {allowed - 1}, more
