import pytest

from tests.cases import each


def test_every_case_runs_and_every_failing_one_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, int]] = []

    @each("letter", "ab")
    @each("number, even", [(1, False), (2, True), (3, True), (4, False)])
    def test(letter: str, number: int, even: bool, monkeypatch: pytest.MonkeyPatch) -> None:
        assert "LETTER" not in __import__("os").environ
        monkeypatch.setenv("LETTER", letter)
        seen.append((letter, number))
        if number == 4:
            pytest.fail("four")
        assert even == (number % 2 == 0), "wrong"

    with pytest.raises(AssertionError) as failure:
        test(monkeypatch=monkeypatch)
    assert seen == [(letter, number) for letter in "ab" for number in (1, 2, 3, 4)]
    head, *lines = str(failure.value).splitlines()
    assert head == "4 of 8 cases fail:"
    assert [line.partition(": ")[0] for line in lines if line.startswith("letter=")] == [
        f"letter={letter!r}, number={number}, even={even}"
        for letter in "ab"
        for number, even in ((3, True), (4, False))
    ]
