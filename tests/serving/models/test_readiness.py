"""A model that says itself when it is ready is believed; one that never names it is ready once it is loaded."""

import threading
from functools import wraps
from typing import Any

from mpserve.serving.models.model import Model
from mpserve.serving.models.readiness import sets_ready
from tests.asgi import loaded, serving
from tests.cases import each


class Silent(Model):
    warm = False

    def load(self) -> None:
        pass

    def warmup(self) -> None:
        self.warm = True

    def predict(self, payload: Any, headers: Any = None) -> Any:
        return {"predictions": [self.name]}


class Inherits(Model):
    warmup, predict = Silent.warmup, Silent.predict


class SaysNo(Silent):
    def load(self) -> None:
        self.ready = False


class SaysNoByAnotherName(Silent):
    def load(self) -> None:
        setattr(self, "ready", False)  # noqa: B010


class Unset(Silent):
    """As an SDK model that the constructor makes not ready, with a load() of our kind."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.ready = False


class InThread(Silent):
    """Loads in a thread of its own until it is let go."""

    def __init__(self, name: str) -> None:
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
    load = Silent.load


class InStart(Replaced):
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


class Computed(Silent):
    def load(self) -> None:
        self.ready = self.name != ""


class Retires(Silent):
    """Clears ``ready`` in predict, which it also calls in load(): that says nothing of how it is loaded."""

    def load(self) -> None:
        self.seen = self.ready
        self.predict([])

    def predict(self, payload: Any, headers: Any = None) -> Any:
        if payload == ["broken"]:
            self.ready = False


class Engine(SaysNo):
    """Says in its last moment that it is ready."""

    engine = True

    async def start_engine(self) -> None:
        self.ready = True


@each("kind, sets", [
    (Model, False), (Silent, False), (Retires, False), (Replaced, False), (SaysNo, False), (Computed, True),
    (InThread, True), (Nested, True), (Above, True), (InStart, True), (Decorated, True), (Async, True),
])  # fmt: skip
def test_that_a_model_will_set_it_is_read_from_what_brings_it_up(kind: type[Model], sets: bool) -> None:
    assert sets_ready(kind) is sets


@each("kind, ready", [
    (Model, True), (Inherits, True), (Silent, True), (Unset, True), (Retires, True), (SaysNo, False),
    (SaysNoByAnotherName, False), (InThread, False),
])  # fmt: skip
async def test_a_load_that_has_returned_leaves_it_ready_unless_it_says_otherwise(
    kind: type[Model], ready: bool
) -> None:
    model = kind("m")
    async with loaded(model) as core:
        assert (model.ready, core.is_ready()) == (ready, ready)
    assert getattr(model, "warm", True) is ready


async def test_the_other_models_serve_until_it_is_ready() -> None:
    late = InThread("late")
    async with serving(late, Silent("other")) as client:

        async def statuses() -> list[int]:
            body = {"instances": []}
            predicts = [await client.post(f"/v1/models/{name}:predict", json=body) for name in ("late", "other")]
            routes = ("/v2/models/late/ready", "/v2/models/other/ready", "/v2/health/ready", "/v2/health/live")
            return [answer.status_code for answer in [*predicts, *[await client.get(route) for route in routes]]]

        assert await statuses() == [503, 200, 503, 200, 503, 200]
        late.go.set()
        late.thread.join()
        assert await statuses() == [200] * 6


async def test_an_engine_may_say_it_last() -> None:
    model = Engine("m")
    async with loaded(model):
        assert model.ready


def test_a_script_that_has_begun_to_load_in_a_thread_loads_again_in_each_worker() -> None:
    model, silent = InThread("m"), Silent("m")
    model.load()
    silent.load()
    assert (model.loaded, silent.loaded) == (False, True)
    model.stop()
