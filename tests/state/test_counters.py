"""Blocks of counters in shared memory: whose they are, and what is left of them."""

import os

from mpserve.state.counters import BLOCKS, KEY, REVISION, SLOT, Counters
from mpserve.state.scoreboard import Scoreboard

COUNT = REVISION + 1
A, B, C = 11, 13, 15


def private(slots: int) -> Counters:
    return Counters(memoryview(bytearray(slots * SLOT * 8)).cast("q"))


def counts(counters: Counters, key: int, slots: int = 1) -> list[int]:
    return [cells[COUNT] for cells in counters.of(range(slots), key)]


def test_each_slot_has_its_own_block_for_a_key_which_is_found_again_as_it_was_left() -> None:
    counters = private(2)
    for slot, count in ((0, 3), (1, 4)):
        block = counters.claim(slot, A, 7, {7})
        assert block.tolist()[: COUNT + 1] == [A, 7, 0]
        block[COUNT] += count
        counters.claim(slot, B, 8, {7, 8})[COUNT] = 10 * count
        assert counters.claim(slot, A, 7, {7})[COUNT] == count
    assert [counts(counters, key, 2) for key in (A, B, C)] == [[3, 4], [30, 40], []]


def test_the_block_of_a_revision_that_lives_no_more_is_given_to_another_key() -> None:
    counters = private(1)
    old = counters.claim(0, A, 1, {1})
    old[COUNT] = 5
    counters.claim(0, B, 2, {1, 2})[COUNT] = 6
    new = counters.claim(0, C, 3, {2, 3})
    assert new[COUNT] == 0
    assert old[KEY] == C
    assert [counts(counters, key) for key in (A, B, C)] == [[], [6], [0]]


def test_what_comes_when_all_blocks_are_taken_is_counted_nowhere() -> None:
    counters = private(1)
    for key in range(BLOCKS):
        counters.claim(0, 2 * key + 3, 1, {1})
    counters.claim(0, 1, 1, {1})[COUNT] = 5
    assert counts(counters, 1) == []
    assert len(counts(counters, 2 * BLOCKS + 1)) == 1


def test_what_a_child_counted_is_there_when_it_has_died() -> None:
    counters = Scoreboard(2).counters
    child = os.fork()
    if child == 0:
        counters.claim(1, A, 1, {1})[COUNT] = 9
        os._exit(0)
    os.waitpid(child, 0)
    assert counts(counters, A, 2) == [9]
