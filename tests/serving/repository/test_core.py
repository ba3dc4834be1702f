"""One server's models put together: preload, load, serve, stop, and what is told about them meanwhile."""

import asyncio
import logging
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mpserve.config.settings import Settings
from mpserve.errors import AcceleratorInArbiter, ConfigurationError, ModelLoadError, ModelNotFound, ServerNotReady
from mpserve.serving.models.model import Model
from mpserve.serving.models.tensor_model import TensorModel
from mpserve.serving.repository.core import ServerCore
from mpserve.serving.repository.host import own_directory
from mpserve.serving.repository.loader import ModelSource, from_target
from mpserve.state.scoreboard import Row, Scoreboard, State
from mpserve.telemetry.logging import model as model_in_log
from tests.asgi import core_of, loaded
from tests.asking import ask
from tests.cases import each
from tests.running import PATIENCE
from tests.serving.repository.gate import Gate


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

    async def start_engine(self) -> None:
        self.entries.append("start_engine")

    def stop(self) -> None:
        self.note("stop")

    def stop_engine(self) -> None:
        self.entries.append("stop_engine")


def having(**attributes: Any) -> Journal:
    model = Journal()
    vars(model).update(attributes)
    return model


def failing(stage: str, error: BaseException) -> Journal:
    def fail(*arguments: Any) -> None:
        raise error

    return having(**{stage: fail})


class Held(Journal):
    """Has two threads, and answers when its gate is opened."""

    concurrency = 2

    def __init__(self) -> None:
        super().__init__()
        self.gate = Gate()

    def predict(self, payload: Any, headers: Any = None) -> Any:
        self.gate.hold()
        self.note("predicted")


def load(core: ServerCore) -> None:
    asyncio.run(core.load())


def attached(
    core: ServerCore, slots: int = 1, on_thread: Callable[[], object] = lambda: None
) -> tuple[Scoreboard, Row]:
    """Put the core under a shared scoreboard, as a worker of ours does."""
    board = Scoreboard(slots)
    core.attach(board, board.row(0), "cuda:3", on_thread, own_directory())
    return board, board.row(0)


@each("engine", [False, True])
async def test_a_models_life_runs_in_order_and_in_one_thread(engine: bool) -> None:
    model = having(engine=engine)
    core = core_of(model)
    attached(core)

    await core.load()
    await core.stop()
    loaded = ["preload", "load on cuda:3, logged as m", "warmup", "start"]
    assert model.entries == [*loaded, *(["start_engine", "stop", "stop_engine"] if engine else ["stop"])]
    assert model.threads == {"mpserve-m-0"}
    assert model.ready
    assert model_in_log.get() == "-"


@each("reaches, entry", [(False, "load on cpu, logged as -"), (True, "load on cpu, logged as m")])
def test_a_load_in_the_arbiter_is_not_repeated_unless_it_was_put_off(reaches: bool, entry: str) -> None:
    class Reaching(Journal):
        def load(self) -> None:
            if reaches and model_in_log.get() == "-":
                raise AcceleratorInArbiter("here")
            super().load()

    model = Reaching()
    model.load()
    load(core_of(model))
    assert [entry for entry in model.entries if entry.startswith("load")] == [entry]
    assert (model.loaded, model.deferred) == (True, None)


def test_code_that_reaches_for_cuda_when_imported_is_imported_in_the_worker(caplog: pytest.LogCaptureFixture) -> None:
    outcomes = iter([AcceleratorInArbiter("service.py:3"), None])

    def find() -> list[ModelSource]:
        if outcome := next(outcomes):
            raise outcome
        return [ModelSource(model=Journal())]

    core = ServerCore(Settings(), find)
    with caplog.at_level(logging.WARNING):
        core.preload()
    assert "service.py:3" in caplog.text
    assert core.names == []
    load(core)
    assert core.names == ["m"]


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


class Renaming(Journal):
    def preload(self) -> None:
        self.name = "same"


@each("models, error, words", [
    ([having(load=lambda: False)], ModelLoadError, r"^model m: load\(\) returned False$"),
    ([having(concurrency=0)], ConfigurationError, "model m: concurrency is 0, expected None or a number"),
    ([having(concurrency=-1)], ConfigurationError, "model m: concurrency is -1, expected None or a number"),
    ([Renaming("a"), Renaming("b")], ConfigurationError,
     "two models are named 'same' and have version '1'; give each its own name or version"),
])  # fmt: skip
def test_models_that_cannot_be_served_are_refused(models: list[Model], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        load(core_of(*models))
    assert not models[0].ready


def test_a_constructor_that_exits_in_the_worker_is_a_failure_in_words() -> None:
    def build() -> Model:
        raise SystemExit(3)

    core = ServerCore(Settings(), lambda: [ModelSource(build=build)])
    with pytest.raises(ModelLoadError, match="constructor failed: SystemExit: 3"):
        load(core)


async def test_it_says_what_is_being_loaded_and_where_it_is() -> None:
    gate = Gate()
    core = core_of(having(load=gate.hold))

    loading = asyncio.ensure_future(core.load())
    await gate.reached()
    said, where = core.loading, core.where()
    gate.open()
    await loading
    assert said == "load() of model m"
    assert re.search(r"gate\.py:\d+ in hold", where)


def test_opening_tells_all_workers() -> None:
    core = core_of(Journal("a"), Journal("b"))
    board, row = attached(core)
    row.state, row.attempts = State.LOADING, 3
    load(core)
    assert (row.models, row.state, board.ever_ready) == (0, State.LOADING, False)
    core.follow()
    assert (core.is_ready(), board.any_ready(), row.is_live(), board.ever_ready) == (False, False, True, False)
    core.open()
    assert (row.models, row.state, row.attempts, board.ever_ready) == (0b11, State.READY, 3, True)


def ready_of(core: ServerCore) -> tuple[bool, list[bool]]:
    return core.is_ready(), [core.is_model_ready(instance) for group in core.models.values() for instance in group]


@each("ready_when, before", [("any", (True, [True])), ("all", (False, [True]))])
def test_another_worker_counts_and_all_are_waited_for_if_that_is_asked(
    ready_when: str, before: tuple[bool, list[bool]]
) -> None:
    model = Journal()
    core = core_of(model, ready_when=ready_when)
    board, _ = attached(core, slots=2)
    board.workers_wanted = 2
    load(core)
    core.open()
    assert ready_of(core) == before
    board.row(1).state, board.row(1).models = State.READY, 1
    assert ready_of(core) == (True, [True])
    model.ready = False
    assert ready_of(core) == (ready_when == "any", [True])


async def test_models_are_found_by_name_and_version() -> None:
    async with loaded(having(version="3")) as core:
        assert core.find("m") is core.find("m", "3")
        with pytest.raises(ModelNotFound, match=r"^Model with name other does not exist\. There are: m\.$"):
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


async def test_metadata_does_not_wait_for_a_predict() -> None:
    class Slow(Held):
        concurrency = 1

        def get_input_types(self) -> list[dict[str, Any]]:
            return [{"name": "x"}]

        async def get_output_types(self) -> list[dict[str, Any]]:  # type: ignore[override]
            return [{"name": "y"}]

    model = Slow()
    async with loaded(model) as core:
        predicting = ask(core, "m", {})
        await model.gate.reached()
        assert await core.describe(core.find("m")) == ([{"name": "x"}], [{"name": "y"}])
        model.gate.open()
        await predicting


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
    async with loaded(model := Held()) as core:
        predicting = ask(core, "m", {})
        await model.gate.reached()
        predicting.cancel()
        await asyncio.wait({predicting})
        asyncio.get_running_loop().call_later(0.05, model.gate.open)  # when the stop has begun
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


@each("batched", [None, 8])
async def test_an_async_model_is_stopped_after_the_call_whose_client_has_gone(batched: int | None) -> None:
    model = Cleaning()
    model.max_batch_size = batched
    async with loaded(model) as core:
        predicting = [ask(core, "m", {"instances": [1.0]}) for _ in range(2)]
        await model.begun.wait()
        for one in predicting:
            one.cancel()
        await asyncio.wait(predicting)
    assert model.entries[-1] == "stop"
    assert "cleaned" in model.entries


async def test_a_model_of_which_a_thread_is_stuck_is_stopped_in_another() -> None:
    model = Held()
    async with loaded(model, request_timeout=1.0) as core:
        instance = core.find("m")
        predicting = ask(core, "m", {})
        await model.gate.reached()
        predicting.cancel()
        assert [instance.find_stuck(now) for now in (0.0, 1e6)] == [False, True]
    assert model.entries[-1] == "stop"
    model.gate.open()


def test_each_model_thread_begins_as_the_worker_asks() -> None:
    begun: list[str] = []
    core = core_of(having(concurrency=2))
    attached(core, on_thread=lambda: begun.append(threading.current_thread().name))
    load(core)
    assert sorted(begun) == ["mpserve-m-0", "mpserve-m-1"]


def test_a_wrapped_method_that_gives_a_coroutine_is_awaited() -> None:
    """A decorator such as ``torch.no_grad()`` hides that the method is async."""
    awaited: list[str] = []
    load(core_of(having(warmup=lambda: asyncio.to_thread(awaited.append, "warmup"))))
    assert awaited == ["warmup"]


async def test_the_traceback_of_an_import_that_fails_in_a_worker_is_logged_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "model.py"
    file.write_text("import nowhere_to_be_found\n")
    core = ServerCore(Settings(preload=False), lambda: from_target(str(file), None))
    core.begin_alone()
    with pytest.raises(ModelLoadError, match=r"the import of .* failed: ModuleNotFoundError"):
        await core.load()
    await core.stop()
    assert caplog.text.count("Traceback (most recent call last)") == 1
    assert f'File "{file}", line 1, in <module>' in caplog.text
