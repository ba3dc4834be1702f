"""A model that says itself when it is ready is believed; one that never names it is ready once it is loaded."""

import asyncio
import threading
from functools import wraps
from typing import Any

import pytest

from mpserve.serving.models.model import Model
from mpserve.serving.models.readiness import sets_ready
from tests.asgi import loaded, serving
from tests.running import eventually


class Answering(Model):
    warm = False

    def warmup(self) -> None:
        self.warm = True

    def predict(self, payload: Any, headers: Any = None) -> Any:
        return {"predictions": [self.name]}


class Silent(Answering):
    def load(self) -> None:
        pass


class SaysNo(Answering):
    def load(self) -> None:
        self.ready = False


class SaysNoByAnotherName(Answering):
    def load(self) -> None:
        setattr(self, "ready", False)  # noqa: B010


class Unset(Answering):
    """As an SDK model that the constructor makes not ready, with a load() of our kind."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.ready = False

    def load(self) -> None:
        pass


class InThread(Answering):
    """Loads in a thread of its own until it is let go."""

    def __init__(self, name: str = "m") -> None:
        super().__init__(name)
        self.go = threading.Event()

    def load(self) -> None:
        self.thread = threading.Thread(target=self.fill)
        self.thread.start()

    def fill(self) -> None:
        self.go.wait(30)
        self.ready = True

    def stop(self) -> None:
        self.go.set()
        self.thread.join()


class Nested(InThread):
    def load(self) -> None:
        def work() -> None:
            self.fill()

        threading.Thread(target=work).start()


class Above(InThread):
    def load(self) -> None:
        super().load()


class Replaced(InThread):
    def load(self) -> None:
        pass


class InStart(InThread):
    def load(self) -> None:
        pass

    def start(self) -> None:
        threading.Thread(target=self.fill).start()


def decorated(function: Any) -> Any:
    @wraps(function)
    def run(*args: Any) -> Any:
        return function(*args)

    return run


class Decorated(InThread):
    @decorated
    def load(self) -> None:
        self.fill()


class Async(InThread):
    async def load(self) -> None:  # type: ignore[override]
        self.fill()


class Computed(Answering):
    def load(self) -> None:
        self.ready = self.name != ""


class Retires(Answering):
    """Clears ``ready`` in predict, which it also calls in load(): that says nothing of how it is loaded."""

    def load(self) -> None:
        self.seen = self.ready
        self.predict([])

    def predict(self, payload: Any, headers: Any = None) -> Any:
        if payload == ["broken"]:
            self.ready = False
        return {}


@pytest.mark.parametrize(("model", "sets"), [
    (Model, False), (Silent, False), (Retires, False), (Replaced, False), (SaysNo, False), (Computed, True),
    (InThread, True), (Nested, True), (Above, True), (InStart, True), (Decorated, True), (Async, True),
])  # fmt: skip
def test_that_a_model_will_set_it_is_read_from_what_brings_it_up(model: type[Model], sets: bool) -> None:
    assert sets_ready(model) is sets


@pytest.mark.parametrize(
    ("model", "ready"),
    [
        (Model("m"), True),
        (Answering("m"), True),
        (Silent("m"), True),
        (Unset("m"), True),
        (Retires("m"), True),
        (SaysNo("m"), False),
        (SaysNoByAnotherName("m"), False),
        (InThread("m"), False),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Model) else value,
)
def test_a_load_that_has_returned_leaves_it_ready_unless_it_says_otherwise(model: Model, ready: bool) -> None:
    async def main() -> tuple[bool, bool]:
        async with loaded(model) as core:
            return model.ready, core.is_ready()

    assert asyncio.run(main()) == (ready, ready)
    assert getattr(model, "warm", True) is ready


def test_the_other_models_serve_until_it_is_ready() -> None:
    late, other = InThread("late"), Silent("other")

    async def main() -> list[list[int]]:
        async with serving(late, other) as client:

            async def statuses() -> list[int]:
                body = {"instances": []}
                predicts = [await client.post(f"/v1/models/{name}:predict", json=body) for name in ("late", "other")]
                routes = ("/v2/models/late/ready", "/v2/models/other/ready", "/v2/health/ready", "/v2/health/live")
                return [answer.status_code for answer in [*predicts, *[await client.get(route) for route in routes]]]

            seen = [await statuses()]
            late.go.set()
            eventually(lambda: late.ready)
            return [*seen, await statuses()]

    assert asyncio.run(main()) == [[503, 200, 503, 200, 503, 200], [200] * 6]


def test_an_engine_may_say_it_last() -> None:
    class Engine(Answering):
        engine = True

        def load(self) -> None:
            self.ready = False

        async def start_engine(self) -> None:
            self.ready = True

    model = Engine("m")

    async def main() -> bool:
        async with loaded(model):
            return model.ready

    assert asyncio.run(main())


def test_a_script_that_has_begun_to_load_in_a_thread_loads_again_in_each_worker() -> None:
    model = InThread()
    model.load()
    assert not model.loaded
    model.go.set()
    model.thread.join()
    silent = Silent("m")
    silent.load()
    assert silent.loaded
