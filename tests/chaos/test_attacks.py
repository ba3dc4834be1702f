"""The attacks: signals to the server, death of a worker, loads under traffic. `make chaos` writes docs/operate/reliability.md.

``CHAOS_ROUNDS`` says how often each attack is repeated.
"""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from mpserve.state.scoreboard import STEADY
from tests.chaos.harness import CLIENTS, WORKERS, Attack, Row, Target, attacked, report, settled
from tests.chaos.peers import PEERS, Peer
from tests.running import PATIENCE, eventually

ROUNDS = int(os.environ.get("CHAOS_ROUNDS", "20"))
PEER_ROUNDS = min(ROUNDS, 2)  # the kserve SDK takes long to start


def term(target: Target) -> None:
    target.server.signal(signal.SIGTERM)
    status = target.server.wait_end()
    assert status == 0 or not target.tells_states  # only mpserve is under test


def hup(target: Target) -> None:
    old = target.workers()
    target.server.signal(signal.SIGHUP)
    settled(target, gone=old)


def ttin_ttou(target: Target) -> None:
    target.server.signal(signal.SIGTTIN)
    settled(target, WORKERS + 1)
    target.server.signal(signal.SIGTTOU)
    settled(target)


def usr2(target: Target) -> None:
    """A second server takes over the sockets, and the first one ends."""
    server, second = target.server, target.folder / "server.pid.2"
    server.signal(signal.SIGUSR2)
    successor = psutil.Process(int(eventually(lambda: second.exists() and second.read_text())))
    eventually(lambda: len(successor.children()) == WORKERS)
    eventually(lambda: not target.tells_states or server.log.count("worker ready") == 2 * WORKERS)
    server.signal(signal.SIGTERM)
    assert server.wait_end() == 0
    assert len(successor.children()) == WORKERS


def kill(target: Target) -> None:
    worker = target.workers()[0]
    # Sooner deaths in a row would count as a crash loop, and a successor would wait for up to a minute.
    eventually(lambda: time.time() - psutil.Process(worker).create_time() > 2 * STEADY)
    os.kill(worker, signal.SIGKILL)
    settled(target, gone=[worker])


def load(target: Target) -> None:
    """The models that are asked are loaded anew."""
    change(target, "served", "load")
    change(target, "streamed", "load")


def unload(target: Target) -> None:
    """The model beside the one that is asked goes and comes."""
    change(target, "other", "unload")
    change(target, "other", "load")


def change(target: Target, model: str, what: str) -> None:
    # On a connection of its own: a kept-alive one may belong to a worker that was killed.
    url = f"{target.server.url}/v2/repository/models/{model}/{what}"
    answer = httpx.post(url, timeout=PATIENCE, verify=False)
    assert answer.status_code == 200, answer.text


def recycle(target: Target) -> None:
    """All workers have had their share, and are replaced one by one."""
    old = set(target.workers())
    eventually(lambda: not old & set(target.workers()))


ATTACKS = [
    Attack("TERM: the server ends", term, ends=True, leaves=False),
    Attack("HUP: all workers are replaced", hup),
    Attack("TTIN, TTOU: a worker more, a worker less", ttin_ttou),
    Attack("USR2, TERM: a new server takes over", usr2, ends=True),
    Attack("SIGKILL of a worker", kill, loses=1),
    Attack("max_requests: all workers are replaced", recycle, flags=("--max_requests=100",)),
    Attack("load of the models that are asked", load),
    Attack("unload and load of another model", unload),
]


@pytest.fixture(scope="module")
def rows() -> Iterator[list[Row]]:
    found: list[Row] = []
    yield found
    report(found, [attack.name for attack in ATTACKS])


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.strike.__name__)
def test_an_attack_costs_no_request_and_no_answer_is_wrong(attack: Attack, tmp_path: Path, rows: list[Row]) -> None:
    found = attacked(attack, tmp_path, ROUNDS)
    rows += found
    for row in found:
        assert row.wrong == 0, row
        assert row.lost <= attack.loses * CLIENTS * ROUNDS, row


PEER_ATTACKS = [
    pytest.param(peer, attack, id=f"{peer.server.name}-{attack.strike.__name__}")
    for peer in PEERS
    for attack in ATTACKS
    if attack.strike.__name__ in peer.attacks
]


@pytest.mark.parametrize(("peer", "attack"), PEER_ATTACKS)
def test_another_server_runs_the_same_attack_for_the_table(
    peer: Peer, attack: Attack, tmp_path: Path, rows: list[Row]
) -> None:
    if not peer.is_installed:
        pytest.skip(f"the environment {peer.server.environment} of benchmarks/peers is not there")
    found = attacked(attack, tmp_path, PEER_ROUNDS, peer.start, peer.name)
    rows += found
    assert all(row.sent for row in found)
