"""Workers are killed, replaced, added and retired under traffic, and the traffic does not notice."""

import signal
from collections import Counter
from pathlib import Path

import psutil

from tests.e2e.steered import Traffic, kill, let, pids, reached, steered, waiting_request
from tests.running import Server, eventually


def settle(server: Server, workers: int = 2) -> None:
    """Wait until so many workers are there, all are ready, and nothing else is left."""
    states = {"ready": workers, "loading": 0, "draining": 0}
    eventually(lambda: len(server.workers()) == workers and server.states() == states)


def pid_in(file: Path) -> int | None:
    return int(file.read_text()) if file.exists() else None


def test_a_killed_worker_takes_only_its_own_connections_with_it(tmp_path: Path) -> None:
    with steered(tmp_path) as server:
        request = waiting_request(server, tmp_path)  # one that is in flight in the worker that will be killed
        (killed,) = pids(tmp_path, "waiting")
        with Traffic(server) as traffic:
            assert server.metric("mpserve_requests_in_flight") >= 1
            kill(killed)
            traffic.flow(100)
            settle(server)
            traffic.flow(20)
        assert isinstance(request.result(), Exception)
        # A client has one request under way at most. A kept-alive connection is its worker's; of a new one nobody knows
        # whose it would have been, so each client that opens new ones may have lost the one that it had just opened.
        assert all(count == 1 for count in Counter(loss.client for loss in traffic.losses).values()), traffic.losses
        assert {loss.pid for loss in traffic.losses} <= {killed, None}
        assert killed not in server.workers()
        assert server.metric("mpserve_worker_restarts_total") == 1
        assert server.metric("mpserve_requests_in_flight") == 0


def test_after_hup_the_old_workers_serve_until_the_new_ones_are_ready(tmp_path: Path) -> None:
    with steered(tmp_path, "--graceful_timeout=3", "--ready_when=all") as server:
        old = set(server.workers())
        with Traffic(server) as traffic:
            (tmp_path / "broken").touch()  # those of the first HUP never are
            server.signal(signal.SIGHUP)
            eventually(lambda: server.log.count("it goes on serving") == 2)
            settle(server)
            assert set(server.workers()) == old
            server.wait_ready()
            (tmp_path / "broken").unlink()
            request = waiting_request(server, tmp_path)
            (tmp_path / "load").unlink()
            before = len(pids(tmp_path, "loading"))
            server.signal(signal.SIGHUP)
            reached(server, tmp_path, "loading", before + 2)
            traffic.flow(50)
            assert set(traffic.answers) <= old
            assert server.is_ready()
            let(tmp_path, "load")
            eventually(lambda: set(traffic.answers) - old)
            let(tmp_path, "release")
            settle(server)
            traffic.flow()
        assert not traffic.losses
        assert request.result().json()["predictions"][0] in old
        assert not old & set(server.workers())
        assert old <= pids(tmp_path, "stopped")
        assert "configured logging" not in server.log  # gunicorn itself has done it again


def test_a_worker_killed_after_a_hup_that_failed_is_replaced(tmp_path: Path) -> None:
    with steered(tmp_path, "--graceful_timeout=300") as server:
        (tmp_path / "broken").touch()
        server.signal(signal.SIGHUP)
        eventually(lambda: server.log.count("it goes on serving") == 2)
        (tmp_path / "broken").unlink()
        killed, other = server.workers()
        kill(killed)
        settle(server)
        assert other in server.workers()


def test_a_worker_killed_while_the_old_ones_of_a_hup_drain_is_replaced(tmp_path: Path) -> None:
    with steered(tmp_path, "--graceful_timeout=300") as server:
        old = set(server.workers())
        request = waiting_request(server, tmp_path)
        server.signal(signal.SIGHUP)
        eventually(lambda: server.states() == {"ready": 2, "loading": 0, "draining": 1})
        killed, other = set(server.workers()) - old
        kill(killed)
        eventually(lambda: len(server.workers()) == 4 - 1 and killed not in server.workers())
        eventually(lambda: server.states() == {"ready": 2, "loading": 0, "draining": 1})
        let(tmp_path, "release")
        assert request.result().status_code == 200
        settle(server)
        assert other in server.workers()


def test_sigterm_ends_a_server_whose_hup_is_still_waiting_for_a_load(tmp_path: Path) -> None:
    with steered(tmp_path, "--graceful_timeout=30") as server:
        old = set(server.workers())
        (tmp_path / "load").unlink()
        server.signal(signal.SIGHUP)
        reached(server, tmp_path, "loading", 4)
        server.signal(signal.SIGTERM)  # gunicorn's arbiter itself would hear of it after graceful_timeout
        assert server.wait_end(within=15) == 0
        assert pids(tmp_path, "stopped") == old


def test_ttin_adds_a_worker_and_ttou_retires_the_oldest(tmp_path: Path) -> None:
    with steered(tmp_path) as server:
        eventually(lambda: server.log.count("worker ready") == 2)
        oldest = server.workers()[0]
        with Traffic(server) as traffic:
            server.signal(signal.SIGTTIN)
            settle(server, 3)
            eventually(lambda: len(traffic.answers) == 3)
            server.signal(signal.SIGTTOU)
            settle(server)
            traffic.flow()
        assert not traffic.losses
        assert oldest not in server.workers()
        assert pids(tmp_path, "stopped") == {oldest}


def test_usr2_starts_a_second_server_on_the_same_socket_that_takes_over_if_it_can_load(tmp_path: Path) -> None:
    with steered(tmp_path, gunicorn="--pid server.pid") as server:
        old = set(server.workers())
        with Traffic(server) as traffic:
            (tmp_path / "broken").touch()
            server.signal(signal.SIGUSR2)
            eventually(lambda: "Reason: A worker could not load its models" in server.log)
            eventually(lambda: set(server.workers()) == old)
            (tmp_path / "broken").unlink()
            (tmp_path / "load").unlink()
            before = len(pids(tmp_path, "loading"))
            server.signal(signal.SIGUSR2)
            reached(server, tmp_path, "loading", before + 2)
            second = psutil.Process(pid_in(tmp_path / "server.pid.2"))
            assert second.ppid() == server.pid
            traffic.flow(50)
            assert set(traffic.answers) <= old  # the second server lets nobody wait
            let(tmp_path, "load")
            eventually(lambda: set(traffic.answers) - old)
            server.signal(signal.SIGTERM)
            assert server.wait_end(within=20) == 0
            traffic.answers.clear()
            traffic.flow()
            assert not set(traffic.answers) & old
            eventually(lambda: pid_in(tmp_path / "server.pid") == second.pid)  # promoted
        assert not traffic.losses
        assert old <= pids(tmp_path, "stopped")
        second.terminate()
        eventually(lambda: not server.family(), within=20)
        assert server.refuses()
