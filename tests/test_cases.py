import asyncio
import os

import pytest

from tests.cases import call, each


def test_every_case_runs_and_every_failing_one_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, int]] = []

    @each("letter", "ab")
    @each("number, even", [(1, False), (2, True), (3, True), (4, False)])
    def test(letter: str, number: int, even: bool, monkeypatch: pytest.MonkeyPatch) -> None:
        assert "LETTER" not in os.environ
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


async def test_a_test_may_be_a_coroutine(monkeypatch: pytest.MonkeyPatch) -> None:
    await asyncio.sleep(0)
    monkeypatch.setenv("RUNS", "1")


@each("seconds", [0, 0.001])
async def test_cases_may_be_coroutines(seconds: float) -> None:
    await asyncio.sleep(seconds)


def test_a_coroutine_that_fails_is_a_failure() -> None:
    async def fails(number: int) -> None:
        await asyncio.sleep(0)
        assert number != 2

    with pytest.raises(AssertionError, match="1 of 3 cases fail:\nnumber=2: "):
        each("number", [1, 2, 3])(fails)()
    with pytest.raises(AssertionError):
        call(fails, {"number": 2})
