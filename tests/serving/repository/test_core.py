"""One server's models put together: preload, load, serve, stop, and what is told about them meanwhile."""

import asyncio
import logging
import re
import threading
from collections.abc import Callable
from typing import Any

import pytest

from mpserve.config.settings import Settings
from mpserve.errors import AcceleratorInArbiter, ConfigurationError, ModelLoadError, ModelNotFound, ServerNotReady
from mpserve.serving.models.model import Model
from mpserve.serving.models.tensor_model import TensorModel
from mpserve.serving.repository.core import ServerCore
from mpserve.serving.repository.host import own_directory
from mpserve.serving.repository.loader import ModelSource
from mpserve.state.scoreboard import Row, Scoreboard, State
from mpserve.telemetry.logging import model as model_in_log
from tests.asgi import core_of, loaded
from tests.asking import ask
from tests.cases import each

PATIENCE = 30.0


class Journal(Model):
    """Writes down what is called, with the thread and the device at the time."""

    def __init__(self, name: str = "m") -> None:
        super().__init__(name)
        self.entries: list[str] = []
        self.threads: set[str] = set()

    def note(self, entry: str) -> None:
        self.entries.append(entry)
        self.threads.add(threading.current_thread().name)

    def preload(self) -> None:
        self.entries.append("preload")

    def load(self) -> None:
        self.note(f"load on {self.device}, logged as {model_in_log.get()}")

    def warmup(self) -> None:
        self.note("warmup")

    def start(self) -> None:
        self.note("start")

    def stop(self) -> None:
        self.note("stop")


def load(core: ServerCore) -> None:
    asyncio.run(core.load())


def attached(core: ServerCore, slots: int = 1) -> tuple[Scoreboard, Row]:
    """Put the core under a shared scoreboard, as a worker of ours does."""
    board = Scoreboard(slots)
    core.attach(board, board.row(0), "cuda:3", lambda: None, own_directory())
    return board, board.row(0)


async def test_a_models_life_runs_in_order_and_in_one_thread() -> None:
    model = Journal()
    core = core_of(model)
    attached(core)

    await core.load()
    await core.stop()
    assert model.entries == ["preload", "load on cuda:3, logged as m", "warmup", "start", "stop"]
    assert model.threads == {"mpserve-m-0"}
    assert model.ready
    assert model_in_log.get() == "-"


async def test_an_engine_is_started_and_stopped_after_the_model() -> None:
    class Engine(Journal):
        engine = True

        async def start_engine(self) -> None:
            self.note("start_engine")

        def stop_engine(self) -> None:
            self.note("stop_engine")

    model = Engine()

    async with loaded(model):
        pass
    assert model.entries[-4:] == ["start", "start_engine", "stop", "stop_engine"]


def test_a_model_loaded_in_the_arbiter_is_not_loaded_again() -> None:
    model = Journal()
    model.load()
    core = core_of(model)
    load(core)
    assert [entry for entry in model.entries if entry.startswith("load")] == ["load on cpu, logged as -"]


def test_a_load_that_was_put_off_in_the_arbiter_is_made_up_for() -> None:
    class Reaching(Journal):
        def load(self) -> None:
            if not self.entries:
                raise AcceleratorInArbiter("here")
            super().load()

    model = Reaching()
    assert model.load() is False
    load(core_of(model))
    assert (model.loaded, model.deferred) == (True, None)
    assert "load on cpu, logged as m" in model.entries


def test_code_that_reaches_for_cuda_when_imported_is_imported_in_the_worker(caplog: pytest.LogCaptureFixture) -> None:
    calls: list[str] = []

    def find() -> list[ModelSource]:
        calls.append("find")
        if len(calls) == 1:
            raise AcceleratorInArbiter("service.py:3")
        return [ModelSource(model=Journal())]

    core = ServerCore(Settings(), find)
    with caplog.at_level(logging.WARNING):
        core.preload()
    assert "service.py:3" in caplog.text
    assert core.names == []
    load(core)
    assert core.names == ["m"]


def failing(stage: str, error: BaseException) -> Model:
    def fail(*arguments: Any) -> None:
        raise error

    model = Journal()
    setattr(model, stage, fail)
    return model


@each("stage", ["load", "warmup", "start"])
@each("error, words", [
    (ValueError("no weights"), "ValueError: no weights"), (SystemExit(3), "RuntimeError: SystemExit: 3"),
])  # fmt: skip
def test_a_failing_step_is_named_with_its_reason_and_logged(
    stage: str, error: BaseException, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    core = core_of(failing(stage, error))
    with pytest.raises(ModelLoadError, match=rf"^{stage}\(\) of model m failed: {words}$"):
        load(core)
    assert f"{stage}() of model m failed" in caplog.text
    assert "Traceback" in caplog.text
    assert core.models == {}


def test_a_load_that_returns_false_is_a_failure() -> None:
    model = Journal()
    model.load = lambda: False  # type: ignore[assignment, method-assign, return-value]
    with pytest.raises(ModelLoadError, match=r"^model m: load\(\) returned False$"):
        load(core_of(model))
    assert not model.ready


def test_a_constructor_that_exits_in_the_worker_is_a_failure_in_words() -> None:
    def build() -> Model:
        raise SystemExit(3)

    core = ServerCore(Settings(), lambda: [ModelSource(build=build)])
    core.sources = core._find()
    with pytest.raises(ModelLoadError, match="the construction of a model failed: RuntimeError: SystemExit: 3"):
        load(core)


@each("concurrency", [0, -1])
def test_a_concurrency_of_none_at_all_is_refused(concurrency: int) -> None:
    model = Journal()
    model.concurrency = concurrency
    with pytest.raises(ConfigurationError, match=f"model m: concurrency is {concurrency}, expected None or a number"):
        load(core_of(model))


def test_two_models_of_one_name_are_refused_also_if_they_take_it_late() -> None:
    class Renaming(Journal):
        def preload(self) -> None:
            self.name = "same"

    with pytest.raises(
        ConfigurationError, match="two models are named 'same' and have version '1'; give each its own name or version"
    ):
        load(core_of(Renaming("a"), Renaming("b")))


async def test_it_says_what_is_being_loaded_and_where_it_is() -> None:
    begun, released = threading.Event(), threading.Event()

    class Hanging(Journal):
        def load(self) -> None:
            begun.set()
            released.wait(PATIENCE)

    core = core_of(Hanging())

    loading = asyncio.ensure_future(core.load())
    await asyncio.to_thread(begun.wait, PATIENCE)
    said, where = core.loading, core.where()
    released.set()
    await loading
    assert said == "load() of model m"
    assert re.search(rf"{re.escape(__file__)}:\d+ in load", where)


def test_opening_tells_all_workers() -> None:
    core = core_of(Journal("a"), Journal("b"))
    board, row = attached(core)
    row.state, row.attempts = State.LOADING, 3
    load(core)
    assert (row.models, row.state, board.ever_ready) == (0, State.LOADING, False)
    core.open()
    assert (row.models, row.state, row.attempts, board.ever_ready) == (0b11, State.READY, 0, True)


def ready_of(core: ServerCore) -> tuple[bool, list[bool]]:
    return core.is_ready(), [core.is_model_ready(instance) for group in core.models.values() for instance in group]


def test_a_model_that_takes_itself_out_of_service_makes_the_server_not_ready() -> None:
    first, second = Journal("a"), Journal("b")

    async def main() -> list[tuple[bool, list[bool]]]:
        async with loaded(first, second) as core:
            seen = [ready_of(core)]
            second.ready = False
            seen.append(ready_of(core))
            second.ready = True
            return [*seen, ready_of(core)]

    assert asyncio.run(main()) == [(True, [True, True]), (False, [True, False]), (True, [True, True])]


def test_what_another_worker_can_answer_counts() -> None:
    model = Journal()
    core = core_of(model)
    board, _ = attached(core, slots=2)
    board.row(1).state, board.row(1).models = State.READY, 1
    load(core)
    core.open()
    model.ready = False
    assert ready_of(core) == (True, [True])


def test_all_workers_are_waited_for_if_that_is_asked() -> None:
    core = core_of(Journal(), ready_when="all")
    board, _ = attached(core, slots=2)
    board.workers_wanted = 2
    load(core)
    core.open()
    assert not core.is_ready()
    board.row(1).state, board.row(1).models = State.READY, 1
    assert core.is_ready()


async def test_models_are_found_by_name_and_version() -> None:
    model = Journal()
    model.version = "3"

    async with loaded(model) as core:
        assert core.find("m") is core.find("m", "3")
        with pytest.raises(ModelNotFound, match=r"^Model with name other does not exist\.$"):
            core.find("other")
        with pytest.raises(ModelNotFound, match=r"^Model with name m@4 does not exist\. There are: m@3\.$"):
            core.find("m", "4")


def test_a_model_that_is_still_being_loaded_is_not_ready_rather_than_unknown() -> None:
    core = core_of(Journal())
    core.begin_alone()
    with pytest.raises(ServerNotReady, match="Model with name m is not ready: it is being loaded"):
        core.find("m")
    with pytest.raises(ModelNotFound):
        core.find("other")


def test_before_a_fork_two_cores_share_nothing_that_one_alone_would_write() -> None:
    core = core_of(Journal())
    made_before_the_fork = core.board
    core.begin_alone()
    assert core.board is not made_before_the_fork
    assert made_before_the_fork.row(0).state == State.EMPTY


def test_metadata_does_not_wait_for_a_predict() -> None:
    begun, released = threading.Event(), threading.Event()

    class Slow(Journal):
        def predict(self, payload: Any, headers: Any = None) -> Any:
            begun.set()
            return released.wait(PATIENCE)

        def get_input_types(self) -> list[dict[str, Any]]:
            return [{"name": "x"}]

        async def get_output_types(self) -> list[dict[str, Any]]:  # type: ignore[override]
            return [{"name": "y"}]

    async def main() -> tuple[Any, Any]:
        async with loaded(Slow()) as core:
            instance = core.find("m")
            predicting = ask(core, "m", {})
            await asyncio.to_thread(begun.wait, PATIENCE)
            described = await core.describe(instance)
            released.set()
            return described, await predicting

    assert asyncio.run(main()) == (([{"name": "x"}], [{"name": "y"}]), True)


async def test_a_model_whose_stop_fails_does_not_keep_the_others_from_stopping(
    caplog: pytest.LogCaptureFixture,
) -> None:
    healthy = Journal("healthy")

    async with loaded(failing("stop", ValueError("stuck")), healthy):
        pass
    assert healthy.entries[-1] == "stop"
    assert "stop() of model m failed" in caplog.text


async def test_a_model_is_stopped_after_the_call_whose_client_has_gone() -> None:
    """Also where another of its threads is free for ``stop``."""
    begun, released = threading.Event(), threading.Event()

    class Slow(Journal):
        concurrency = 2

        def predict(self, payload: Any, headers: Any = None) -> Any:
            begun.set()
            released.wait(PATIENCE)
            self.note("predicted")

    model = Slow()
    async with loaded(model) as core:
        predicting = ask(core, "m", {})
        await asyncio.to_thread(begun.wait, PATIENCE)
        predicting.cancel()
        await asyncio.wait({predicting})
        asyncio.get_running_loop().call_later(0.05, released.set)  # when the stop has begun
    assert model.entries[-2:] == ["predicted", "stop"]


class Cleaning(TensorModel):
    """Cleans up after a call, which takes a while, and notes when it has done so."""

    def __init__(self) -> None:
        super().__init__("m")
        self.begun = asyncio.Event()
        self.entries: list[str] = []

    async def predict(self, x: Any) -> Any:
        self.begun.set()
        try:
            await asyncio.sleep(PATIENCE)
        finally:
            await asyncio.sleep(0.05)
            self.entries.append("cleaned")

    def stop(self) -> None:
        self.entries.append("stop")


class CleaningInBatch(Cleaning):
    max_batch_size = 8


@each("kind", [Cleaning, CleaningInBatch])
async def test_an_async_model_is_stopped_after_the_call_whose_client_has_gone(kind: type[Cleaning]) -> None:
    model = kind()
    async with loaded(model) as core:
        predicting = [ask(core, "m", {"instances": [1.0]}) for _ in range(2)]
        await model.begun.wait()
        for one in predicting:
            one.cancel()
        await asyncio.wait(predicting)
    assert model.entries[-1] == "stop"
    assert "cleaned" in model.entries


async def test_a_model_of_which_a_thread_is_stuck_is_stopped_in_another() -> None:
    begun, released = threading.Event(), threading.Event()

    class Slow(Journal):
        concurrency = 2

        def predict(self, payload: Any, headers: Any = None) -> Any:
            begun.set()
            released.wait(PATIENCE)

    model = Slow()
    async with loaded(model, request_timeout=1.0) as core:
        instance = core.find("m")
        predicting = ask(core, "m", {})
        await asyncio.to_thread(begun.wait, PATIENCE)
        predicting.cancel()
        assert [instance.find_stuck(now) for now in (0.0, 1e6)] == [False, True]
    assert model.entries[-1] == "stop"
    released.set()


def test_each_model_thread_begins_as_the_worker_asks() -> None:
    begun: list[str] = []
    model = Journal()
    model.concurrency = 2
    core = core_of(model)
    board = Scoreboard(1)
    core.attach(board, board.row(0), "cpu", lambda: begun.append(threading.current_thread().name), own_directory())
    load(core)
    assert sorted(begun) == ["mpserve-m-0", "mpserve-m-1"]


def test_a_wrapped_method_that_gives_a_coroutine_is_awaited() -> None:
    """A decorator such as ``torch.no_grad()`` hides that the method is async."""

    def hidden(method: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def wrapper(*arguments: Any) -> Any:
            return method(*arguments)

        return wrapper

    class Wrapped(Journal):
        @hidden
        async def warmup(self) -> None:  # type: ignore[misc]
            self.note("warmup")

    model = Wrapped()
    load(core_of(model))
    assert "warmup" in model.entries
