"""Who gives connections up, and how many: by the numbers alone."""

import pytest

from mpserve.prefork.listener import rebalancer as rules
from mpserve.prefork.listener.rebalancer import MIN_ENDED, TOLERANCE, WINDOW, Load, Rebalancer, Turnover, surplus
from mpserve.state.scoreboard import Scoreboard, State


@pytest.mark.parametrize(("mine", "others", "expected"), [
    pytest.param((64, 9), [], 0, id="alone"), pytest.param((17, 0), [(16, 0), (16, 0), (15, 0)], 0, id="even"),
    pytest.param((TOLERANCE, TOLERANCE), [(0, 0)], 0, id="few"),
    pytest.param((22, 0), [(0, 0), (21, 0), (21, 0)], 6, id="one was replaced"),
    pytest.param((0, 0), [(22, 0), (21, 0), (21, 0)], 0, id="the successor"),
    pytest.param((24, 0), [(16, 0), (12, 0), (12, 0)], 8, id="far above"),
    pytest.param((20, 0), [(16, 0), (16, 0), (12, 0)], 0, id="not far above"),
    pytest.param((16, 16), [(16, 0), (16, 0), (16, 0)], 12, id="same connections, all the requests"),
    pytest.param((24, 1), [(4, 6), (4, 6), (4, 6)], 0, id="who has fewer connections has more to answer"),
    pytest.param((24, 1), [(4, 5), (16, 6), (16, 6)], 9, id="one of the others has hardly more to answer"),
    pytest.param((8, 8), [(24, 0), (0, 0)], 5, id="requests before connections"),
])  # fmt: skip
def test_a_worker_gives_up_what_it_has_above_the_mean_when_that_is_far_more_than_another_has(
    mine: tuple[int, int], others: list[tuple[int, int]], expected: int
) -> None:
    assert surplus(Load(*mine), [Load(*other) for other in others], begun=False) == expected


def test_a_worker_that_has_begun_goes_on_to_the_mean() -> None:
    others = [Load(14, 0), Load(16, 0), Load(16, 0)]
    assert surplus(Load(18, 0), others, begun=False) == 0
    assert surplus(Load(18, 0), others, begun=True) == 2
    assert surplus(Load(16, 0), [Load(16, 0)], begun=True) == 0


def test_what_does_not_last_changes_nothing() -> None:
    rebalancer = Rebalancer()
    for _ in range(3):
        for held in [64] * (rules.MIN_LOOKS - 1) + [32] * (rules.MIN_LOOKS - 1):
            rebalancer.look(Load(held, 0), [Load(64 - held, 0)])
            assert not rebalancer.takes_one()


def test_what_lasts_is_given_up_a_few_at_a_time_until_it_is_even() -> None:
    rebalancer, mine, looks = Rebalancer(), 640, 0
    while mine > 321:
        rebalancer.look(Load(mine, 0), [Load(640 - mine, 0)])
        given = sum(rebalancer.takes_one() for _ in range(mine))
        assert given <= rules.MAX_DUE
        mine -= given
        looks += 1
        assert looks < 200
    rebalancer.look(Load(mine, 0), [Load(640 - mine, 0)])
    rebalancer.look(Load(320, 0), [Load(320, 0)])
    assert not rebalancer.takes_one()


def test_only_workers_that_are_ready_are_compared_with() -> None:
    assert Load(3, 9) < Load(4, 0) < Load(4, 1)  # the lighter has fewer connections, or of as many less to answer
    board = Scoreboard(5)
    for slot, state in enumerate((State.READY, State.LOADING, State.READY, State.DRAINING)):
        board.row(slot).state = state
    assert [row.slot for row in rules.ready_others(board, board.row(0))] == [2]


@pytest.mark.parametrize(("taken", "held", "elapsed", "expected"), [
    pytest.param(200, 8, WINDOW, True, id="one for each request"),
    pytest.param(200, 200, WINDOW, False, id="they stay"), pytest.param(MIN_ENDED + 8, 8, WINDOW, False, id="not so many"),
    pytest.param(200, 8, 20 * WINDOW, False, id="not so often"), pytest.param(200, 120, WINDOW, False, id="most stay"),
    pytest.param(200, 8, WINDOW / 2, False, id="too soon to tell"),
])  # fmt: skip
def test_connections_are_not_worth_spreading_when_more_end_within_a_window_than_are_open(
    taken: int, held: int, elapsed: float, expected: bool
) -> None:
    turnover = Turnover(now=0)
    for _ in range(taken):
        turnover.count()
    turnover.look(elapsed, held)
    assert turnover.is_brisk == expected
