import os
from pathlib import Path

import pytest

from mpserve.serving.repository.desired_state import AT_START, ControlPlane, DesiredState, ModelSpec

DEAD = 2**22 + 1
"""A pid that Linux never gives (it stops at 2**22)."""


@pytest.fixture(name="plane")
def one_workers_plane(tmp_path: Path) -> ControlPlane:
    return ControlPlane(tmp_path)


def try_load(plane: ControlPlane, name: str, asker: int = 7) -> DesiredState:
    return plane.change(lambda desired: desired.with_candidate(name, asker))


def settle(plane: ControlPlane, name: str) -> DesiredState:
    """Let a load of ``name`` be tried and succeed."""
    try_load(plane, name, os.getpid())
    return plane.change(lambda desired: desired.committed(name))


def unload(plane: ControlPlane, name: str) -> DesiredState:
    return plane.change(lambda desired: desired.without(name))


def test_the_first_worker_writes_down_what_was_found_and_later_ones_find_the_newest_wish(plane: ControlPlane) -> None:
    assert plane.read() == DesiredState(0, {})
    desired = plane.begin(["a", "b"])
    assert desired == DesiredState(1, {"a": ModelSpec(AT_START, 0), "b": ModelSpec(AT_START, 1)})
    later = ControlPlane(plane.directory)
    assert later.begin(["a", "b"]) == desired == later.read()
    desired = unload(plane, "a")
    assert later.begin(["a", "b"]) == desired
    assert list(desired.models) == ["b"]


def test_a_trial_is_wanted_when_it_is_settled_and_not_before(plane: ControlPlane) -> None:
    desired = try_load(plane, "a")
    assert (desired.models, desired.candidates) == ({}, {"a": ModelSpec(1, 0, 7)})
    assert ControlPlane(plane.directory).read() == desired
    desired = plane.change(lambda desired: desired.committed("a"))
    assert (desired.models, desired.candidates) == ({"a": ModelSpec(1, 0)}, {})


def test_a_trial_that_failed_leaves_what_was_wanted_and_an_unload_ends_both(plane: ControlPlane) -> None:
    before = settle(plane, "a").models
    try_load(plane, "a")
    assert plane.change(lambda desired: desired.without_candidate("a"))[1:] == (before, {})
    try_load(plane, "a")
    assert unload(plane, "a")[1:] == ({}, {})


def test_a_trial_whose_asker_has_died_is_dropped_by_the_next_to_start(plane: ControlPlane) -> None:
    try_load(plane, "orphan", DEAD)
    before = try_load(plane, "a", os.getpid())
    desired = plane.begin([])
    assert list(desired.candidates) == ["a"]
    assert desired.generation == before.generation + 1


def test_each_change_and_each_start_announces_its_generation(tmp_path: Path) -> None:
    announced: list[int] = []
    plane = ControlPlane(tmp_path, announced.append)
    plane.begin(["a"])
    settle(plane, "b")
    plane.begin(["a"])
    assert announced == [1, 2, 3, 3]


def test_a_model_keeps_its_bit_and_a_freed_bit_is_given_again(plane: ControlPlane) -> None:
    for name in "abc":
        settle(plane, name)
    unload(plane, "b")
    desired = settle(plane, "d")
    assert {name: spec.bit for name, spec in desired.models.items()} == {"a": 0, "c": 2, "d": 1}


@pytest.mark.parametrize("unloaded", [False, True])
def test_every_load_is_a_revision_that_no_worker_has_seen(plane: ControlPlane, unloaded: bool) -> None:
    seen = {plane.begin(["a"]).models["a"].revision}
    for _ in range(5):
        seen.add(settle(plane, "a").models["a"].revision)
        if unloaded:
            unload(plane, "a")
    assert len(seen) == 6


def test_changes_of_several_processes_follow_one_another_and_none_is_lost(plane: ControlPlane) -> None:
    children = []
    for child in range(4):
        pid = os.fork()
        if pid == 0:
            for number in range(25):
                try_load(plane, f"{child}-{number}")
            os._exit(0)
        children.append(pid)
    assert [os.waitpid(pid, 0)[1] for pid in children] == [0] * 4
    desired = plane.read()
    assert desired.generation == len(desired.candidates) == 100
    assert {spec.bit for spec in desired.candidates.values()} == set(range(100))


def test_a_report_says_what_failed_in_a_slot(plane: ControlPlane) -> None:
    assert plane.failures(0) == {}
    plane.report(0, 3, {"a": "no such file"})
    plane.report(1, 3, {})
    assert (plane.failures(0), plane.failures(1)) == ({"a": "no such file"}, {})
