"""Other servers under the same attacks: gunicorn with uvicorn's worker, and the kserve SDK. Each in an environment of its own.

``make bench-peers`` makes the environments (benchmarks/peers). A peer whose environment is missing is left out.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from benchmarks.peers.environments import is_installed
from benchmarks.peers.servers import APPS, BARE, KSERVE, Server, Setup
from tests.chaos.clients import PeerClient
from tests.chaos.harness import WORKERS, Start, Target
from tests.running import eventually, free_port, running

START_SECONDS = 180
OWN_NAMES = {"bare": "gunicorn + uvicorn", "kserve": "kserve SDK"}


class Peer(NamedTuple):
    """Another server, and the attacks that it can run: the functions of test_attacks.py by name."""

    server: Server
    attacks: frozenset[str]

    @property
    def name(self) -> str:
        return OWN_NAMES[self.server.name]

    @property
    def is_installed(self) -> bool:
        return is_installed(self.server.environment)

    @property
    def start(self) -> Start:
        return lambda folder: peer_target(self.server, folder)


# The kserve SDK has no signals but those that end it.
PEERS = [
    Peer(BARE, frozenset(["term", "hup", "ttin_ttou", "usr2", "kill"])),
    Peer(KSERVE, frozenset(["term", "kill"])),
]


@contextlib.contextmanager
def peer_target(server: Server, folder: Path) -> Iterator[Target]:
    """A peer with the identity as its model, ready to be attacked."""
    port = free_port()
    setup = Setup(port, free_port(), free_port(), str(folder), workers=WORKERS)
    env = setup.environment() | {"PYTHONPATH": str(APPS), "GUNICORN_CMD_ARGS": f"--pid {folder}/server.pid"}
    with running(server.command(setup), folder, port, env, slow_stop="a peer takes its own time") as process:
        target = Target(process, "", folder, (PeerClient,), tells_states=False, patience=20)

        def answers() -> bool:
            process.check_alive()
            with contextlib.closing(PeerClient(port, "", 1)) as client, contextlib.suppress(Exception):
                return client.ask("", [1]) == ("", [[1]])
            return False

        eventually(lambda: answers() and len(target.workers()) == WORKERS, START_SECONDS)
        yield target
