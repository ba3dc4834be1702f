"""The last lines of each process in shared memory."""

from hypothesis import given
from hypothesis import strategies as st

from mpserve.state.error_lines import LINES, PLACE, ROOM, ErrorLines

PLACES = 3


@given(st.lists(st.tuples(st.integers(0, PLACES - 1), st.binary(max_size=ROOM)), max_size=3 * LINES))
def test_every_place_has_its_last_lines_in_order(added: list[tuple[int, bytes]]) -> None:
    cells = memoryview(bytearray(PLACES * PLACE * 8)).cast("q")
    for place, line in added:
        ErrorLines(cells).add(place, line)  # each time as a successor, which goes on where the last worker ended
    for place in range(PLACES):
        assert ErrorLines(cells).of(place) == [line for at, line in added if at == place][-LINES:]


def test_a_line_that_is_being_written_is_left_out() -> None:
    cells = memoryview(bytearray(PLACE * 8)).cast("q")
    lines = ErrorLines(cells)
    lines.add(0, b"whole")
    lines.add(0, b"half")
    cells[PLACE // LINES] = 0  # its writer was killed
    assert lines.of(0) == [b"whole"]
    lines.add(0, b"next")
    assert lines.of(0) == [b"whole", b"next"]
