import os
from pathlib import Path

import pytest

from mpserve.serving.repository.desired_state import AT_START, ControlPlane, Wanted, Wish

DEAD = 2**22 + 1
"""A pid that Linux never gives (it stops at 2**22)."""


def settle(plane: ControlPlane, name: str) -> Wish:
    """Let a load of ``name`` be tried and succeed."""
    plane.change(lambda wish: wish.with_trial(name, os.getpid()))
    return plane.change(lambda wish: wish.settled(name))


def test_before_the_first_change_nothing_is_wanted(tmp_path: Path) -> None:
    assert ControlPlane(tmp_path).read() == Wish(0, {})


def test_the_first_worker_to_start_writes_down_what_was_found(tmp_path: Path) -> None:
    wish = ControlPlane(tmp_path).begin(["a", "b"])
    assert wish == Wish(1, {"a": Wanted(AT_START, 0), "b": Wanted(AT_START, 1)})
    assert ControlPlane(tmp_path).begin(["a", "b"]) == wish == ControlPlane(tmp_path).read()


def test_who_starts_later_finds_the_newest_wish_and_adds_nothing(tmp_path: Path) -> None:
    plane = ControlPlane(tmp_path)
    plane.begin(["a", "b"])
    wish = plane.change(lambda wish: wish.without("a"))
    assert plane.begin(["a", "b"]) == wish
    assert list(wish.models) == ["b"]


def test_a_trial_is_wanted_when_it_is_settled_and_not_before(tmp_path: Path) -> None:
    plane = ControlPlane(tmp_path)
    wish = plane.change(lambda wish: wish.with_trial("a", 7))
    assert (wish.models, wish.trials) == ({}, {"a": Wanted(1, 0, 7)})
    assert ControlPlane(tmp_path).read() == wish
    wish = plane.change(lambda wish: wish.settled("a"))
    assert (wish.models, wish.trials) == ({"a": Wanted(1, 0)}, {})


def test_a_trial_that_failed_leaves_what_was_wanted(tmp_path: Path) -> None:
    plane = ControlPlane(tmp_path)
    before = settle(plane, "a").models
    plane.change(lambda wish: wish.with_trial("a", 7))
    assert plane.change(lambda wish: wish.without_trial("a"))[1:] == (before, {})


def test_a_trial_whose_asker_has_died_is_dropped_by_the_next_to_start(tmp_path: Path) -> None:
    plane = ControlPlane(tmp_path)
    plane.change(lambda wish: wish.with_trial("orphan", DEAD))
    before = plane.change(lambda wish: wish.with_trial("a", os.getpid()))
    wish = plane.begin([])
    assert list(wish.trials) == ["a"]
    assert wish.generation == before.generation + 1


def test_each_change_and_each_start_announces_its_generation(tmp_path: Path) -> None:
    announced: list[int] = []
    plane = ControlPlane(tmp_path, announced.append)
    plane.begin(["a"])
    settle(plane, "b")
    plane.begin(["a"])
    assert announced == [1, 2, 3, 3]


def test_a_model_keeps_its_bit_and_a_freed_bit_is_given_again(tmp_path: Path) -> None:
    plane = ControlPlane(tmp_path)
    for name in "abc":
        settle(plane, name)
    plane.change(lambda wish: wish.without("b"))
    wish = settle(plane, "d")
    assert {name: wanted.bit for name, wanted in wish.models.items()} == {"a": 0, "c": 2, "d": 1}


def test_trials_of_two_models_have_two_bits(tmp_path: Path) -> None:
    plane = ControlPlane(tmp_path)
    plane.change(lambda wish: wish.with_trial("a", 7))
    wish = plane.change(lambda wish: wish.with_trial("b", 7))
    assert [trial.bit for trial in wish.trials.values()] == [0, 1]


@pytest.mark.parametrize("unloaded", [False, True])
def test_every_load_is_a_revision_that_no_worker_has_seen(tmp_path: Path, unloaded: bool) -> None:
    plane = ControlPlane(tmp_path)
    seen = {plane.begin(["a"]).models["a"].revision}
    for _ in range(5):
        seen.add(settle(plane, "a").models["a"].revision)
        if unloaded:
            plane.change(lambda wish: wish.without("a"))
    assert len(seen) == 6


def test_an_unload_ends_a_trial_too(tmp_path: Path) -> None:
    plane = ControlPlane(tmp_path)
    settle(plane, "a")
    plane.change(lambda wish: wish.with_trial("a", 7))
    assert plane.change(lambda wish: wish.without("a"))[1:] == ({}, {})


def test_changes_of_several_processes_follow_one_another_and_none_is_lost(tmp_path: Path) -> None:
    children = []
    for child in range(4):
        pid = os.fork()
        if pid == 0:
            plane = ControlPlane(tmp_path)
            for number in range(25):
                plane.change(lambda wish, name=f"{child}-{number}": wish.with_trial(name, 7))
            os._exit(0)
        children.append(pid)
    assert [os.waitpid(pid, 0)[1] for pid in children] == [0] * 4
    wish = ControlPlane(tmp_path).read()
    assert wish.generation == len(wish.trials) == 100
    assert {wanted.bit for wanted in wish.trials.values()} == set(range(100))


def test_a_report_says_what_failed_in_a_slot(tmp_path: Path) -> None:
    plane = ControlPlane(tmp_path)
    assert plane.failures(0) == {}
    plane.report(0, 3, {"a": "no such file"})
    plane.report(1, 3, {})
    assert (plane.failures(0), plane.failures(1)) == ({"a": "no such file"}, {})
