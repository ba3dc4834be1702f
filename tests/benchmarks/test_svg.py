from xml.etree import ElementTree as Xml

from benchmarks.peers import svg
from benchmarks.peers.svg import Bar
from tests.cases import each

TEXT = "{http://www.w3.org/2000/svg}text"


def words(picture: str) -> list[str]:
    return [element.text or "" for element in Xml.fromstring(picture).iter(TEXT)]


def test_bars_are_named_and_labelled_with_their_values() -> None:
    panels = {"V2 <JSON>": [Bar("mpserve", [12_345.0], svg.OURS), Bar("kserve", [17.0], svg.OTHER)]}
    said = words(svg.bars("Title & more", "below", panels))
    assert {"Title & more", "V2 <JSON>", "mpserve", "12,300", "kserve", "17"} <= set(said)


@each("log", [True, False])
def test_lines_are_named_at_their_ends(log: bool) -> None:
    said = words(svg.lines("t", "s", ["1", "4"], {"ours": [1.0, 4.0], "theirs": [2.0, 40.0]}, "ms", log=log))
    assert {"ours  4", "theirs  40"} <= set(said)
