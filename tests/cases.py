"""Many cases in one test: all of them run, and the failure names each that fails. A test may be a coroutine."""

import asyncio
import functools
import inspect
import itertools
import time
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from tests.running import PATIENCE


def each(names: str, cases: Iterable[Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Run a test with every case, as ``pytest.mark.parametrize`` does, but as one item.

    ``names`` are the arguments that a case gives a value to, separated by commas. Two tables above one test give every
    combination. Each case has a ``monkeypatch`` of its own; all cases share the other fixtures.
    """
    arguments = [name.strip() for name in names.split(",")]
    table = [dict(zip(arguments, case if len(arguments) > 1 else [case], strict=True)) for case in cases]
    assert table, "a table without cases shows nothing"

    def decorate(test: Callable[..., None]) -> Callable[..., None]:
        tables = [table, *getattr(test, "tables", [])]
        body = getattr(test, "body", test)

        @functools.wraps(test)
        def run(**fixtures: Any) -> None:
            combinations = [functools.reduce(dict.__or__, rows, {}) for rows in itertools.product(*tables)]
            failures = [(case, error) for case in combinations if (error := _failure(body, fixtures, case))]
            if failures:
                words = "".join(f"\n{_named(case)}: {_named_error(error)}" for case, error in failures)
                raise AssertionError(f"{len(failures)} of {len(combinations)} cases fail:{words}") from failures[0][1]

        signature = inspect.signature(test)
        others = [parameter for name, parameter in signature.parameters.items() if name not in arguments]
        vars(run).update(tables=tables, body=body, __signature__=signature.replace(parameters=others))
        return run

    return decorate


def call(test: Callable[..., Any], arguments: dict[str, Any]) -> None:
    """Run a test, on an event loop of its own if it is a coroutine."""
    result = test(**arguments)
    if inspect.iscoroutine(result):
        asyncio.run(asyncio.wait_for(result, PATIENCE))


async def until(condition: Callable[[], Any]) -> Any:
    """The first true value of ``condition``; fails the test when there is none in time. The event loop goes on meanwhile."""
    deadline = time.monotonic() + PATIENCE / 2
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {PATIENCE / 2} s: {condition}"
        await asyncio.sleep(0.001)
    return value


def _failure(test: Callable[..., None], fixtures: dict[str, Any], case: dict[str, Any]) -> BaseException | None:
    try:
        if "monkeypatch" in fixtures:
            with fixtures["monkeypatch"].context() as own:
                call(test, {**fixtures, **case, "monkeypatch": own})
        else:
            call(test, {**fixtures, **case})
    except (Exception, pytest.fail.Exception) as error:
        return error
    return None


def _named(case: dict[str, Any]) -> str:
    return ", ".join(f"{name}={_shortened(repr(value), 120)}" for name, value in case.items())


def _named_error(error: BaseException) -> str:
    return f"{type(error).__name__}: {_shortened(str(error), 400)}"


def _shortened(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[:length]} ..."
