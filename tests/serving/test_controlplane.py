import os
from pathlib import Path

from mpserve.serving.controlplane import ControlPlane, Wanted, Wish


def test_before_the_first_change_nothing_is_wanted(tmp_path: Path) -> None:
    assert ControlPlane(tmp_path).read() == Wish(0, {})


def test_a_change_raises_the_generation_and_is_read_by_all(tmp_path: Path) -> None:
    plane = ControlPlane(tmp_path)
    wish = plane.change(lambda wish: wish.with_loaded("a"))
    assert wish.generation == 1
    assert ControlPlane(tmp_path).read() == wish


def test_a_model_keeps_its_bit_and_a_freed_bit_is_given_again(tmp_path: Path) -> None:
    plane = ControlPlane(tmp_path)
    for name in "abc":
        plane.change(lambda wish, name=name: wish.with_loaded(name))
    plane.change(lambda wish: wish.without("b"))
    wish = plane.change(lambda wish: wish.with_loaded("d"))
    assert {name: wanted.bit for name, wanted in wish.models.items()} == {"a": 0, "c": 2, "d": 1}


def test_loading_a_wanted_model_again_is_a_new_revision_in_the_same_bit(tmp_path: Path) -> None:
    plane = ControlPlane(tmp_path)
    first = plane.change(lambda wish: wish.with_loaded("a")).models["a"]
    again = plane.change(lambda wish: wish.with_loaded("a")).models["a"]
    assert again == Wanted(first.revision + 1, first.bit)


def test_a_model_that_comes_back_has_a_revision_that_no_worker_has_seen(tmp_path: Path) -> None:
    plane = ControlPlane(tmp_path)
    seen = set()
    for _ in range(3):
        seen.add(plane.change(lambda wish: wish.with_loaded("a")).models["a"].revision)
        seen.add(plane.change(lambda wish: wish.with_loaded("a")).models["a"].revision)
        plane.change(lambda wish: wish.without("a"))
    assert len(seen) == 6


def test_changes_of_several_processes_follow_one_another_and_none_is_lost(tmp_path: Path) -> None:
    children = []
    for child in range(4):
        pid = os.fork()
        if pid == 0:
            plane = ControlPlane(tmp_path)
            for number in range(25):
                plane.change(lambda wish, name=f"{child}-{number}": wish.with_loaded(name))
            os._exit(0)
        children.append(pid)
    assert [os.waitpid(pid, 0)[1] for pid in children] == [0] * 4
    wish = ControlPlane(tmp_path).read()
    assert wish.generation == len(wish.models) == 100
    assert {wanted.bit for wanted in wish.models.values()} == set(range(100))


def test_a_report_says_what_failed_in_a_slot(tmp_path: Path) -> None:
    plane = ControlPlane(tmp_path)
    assert plane.failures(0) == {}
    plane.report(0, 3, {"a": "no such file"})
    plane.report(1, 3, {})
    assert (plane.failures(0), plane.failures(1)) == ({"a": "no such file"}, {})
