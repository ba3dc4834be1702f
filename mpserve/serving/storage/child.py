"""The short-lived process that fetches a model.

The packages for object storage start threads and event loops, which must not live in the arbiter at a fork. The process ends
with its parent. It tells of its progress and its end in lines of JSON.
"""

import ctypes
import json
import os
import signal
import time
from pathlib import Path
from typing import NoReturn

from mpserve.errors import MPServeError, text_of
from mpserve.serving.storage.address import BUCKETS, Address, parse
from mpserve.serving.storage.buckets import Bucket
from mpserve.serving.storage.cache import default, keep
from mpserve.serving.storage.https import WebFile
from mpserve.serving.storage.hub import snapshot
from mpserve.serving.storage.remote import Storage

PROGRAM = (
    "import json, sys; job = json.load(sys.stdin); sys.path[:] = job.pop('path');"
    " from mpserve.serving.storage.child import main; main(**job)"
)
"""What ``python -I -c`` runs: it imports what its parent would import, and nothing from the working directory."""

PER_SECOND = 10  # reports at most
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


class _Teller:
    """Writes to the parent, where standard output was before; what a package prints goes to standard error."""

    def __init__(self) -> None:
        self._pipe = os.dup(1)
        os.dup2(2, 1)
        self._next = 0.0

    def tell(self, **message: object) -> None:
        os.write(self._pipe, f"{json.dumps(message)}\n".encode())  # at once, since huggingface_hub reports in threads

    def report(self, done: int, total: int | None) -> None:
        now = time.monotonic()
        if now >= self._next:
            self._next = now + 1 / PER_SECOND
            self.tell(done=done, total=total)


def main(address: str, cache_dir: str | None) -> NoReturn:
    """Fetch, tell of it, and end without the exit handlers of packages."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    teller = _Teller()
    known = parse(address)
    try:
        teller.tell(path=str(_bring(known, Path(cache_dir) if cache_dir else default(), teller)))
    except KeyboardInterrupt:  # the parent ends too
        pass
    except MPServeError as error:
        teller.tell(error=known.hide(str(error)))
    except Exception as error:
        teller.tell(error=known.hide(f"{known.shown} cannot be fetched: {type(error).__name__}: {text_of(error)}"))
    os._exit(0)


def _bring(address: Address, cache: Path, teller: _Teller) -> Path:
    if address.scheme == "hf":
        return snapshot(address, cache, teller.report)
    storage: Storage = Bucket(address) if address.scheme in BUCKETS else WebFile(address)
    return keep(address, storage, cache, teller.report, lambda: teller.tell(waiting=True))
