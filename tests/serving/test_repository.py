"""Load, unload and index as one worker sees them; what several do together is in ``tests/e2e/test_repository.py``."""

import asyncio
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mpserve.errors import ModelLoadError, ModelNotFound, ModelNotReady, NotSupported, ServerNotReady
from mpserve.scoreboard import MODELS, State
from mpserve.serving.controlplane import AT_START, Wanted
from mpserve.serving.core import ServerCore
from mpserve.serving.dataplane import Dataplane
from mpserve.serving.loader import ModelSource
from mpserve.serving.model import Model
from mpserve.serving.repository import Entry, Repository
from mpserve.settings import Settings
from tests.asgi import loaded

PATIENCE = 30.0


@pytest.fixture(autouse=True)
def leaves_no_modules(tmp_path: Path) -> Iterator[None]:
    """What a test imports from its folder is not found by the next one that has a `model.py`."""
    yield
    for name, module in list(sys.modules.items()):
        if str(tmp_path) in str(getattr(module, "__file__", None)):
            del sys.modules[name]


class Counted(Model):
    """Knows which of its kind it is, and what has happened to it."""

    made = 0
    fails = False

    def __init__(self, name: str = "m") -> None:
        super().__init__(name)
        type(self).made += 1
        self.number = self.made
        self.loads = 0
        self.stopped = False

    def load(self) -> None:
        self.loads += 1
        if self.fails:
            raise ValueError("no weights")

    def predict(self, payload: Any, headers: Any = None) -> Any:
        return self.answer()

    def answer(self) -> Any:
        return {"predictions": [self.number]}

    def stop(self) -> None:
        assert threading.current_thread().name.startswith("mpserve-")
        self.stopped = True


@pytest.fixture(name="kind")
def fresh_kind() -> type[Counted]:
    class Kind(Counted):
        made = 0

    return Kind


CODE = """
from mpserve import Model
class A(Model):
    def predict(self, payload, headers=None):
        return {{"predictions": {answer}}}
"""


def run(kind: type[Counted], act: Callable[[ServerCore, Repository], Awaitable[None]], **options: Any) -> None:
    """Act on a worker that serves a model that can be constructed anew."""

    async def main() -> None:
        core = ServerCore(Settings(**options), lambda: [ModelSource(build=kind)])
        core.preload()
        core.begin_alone()
        await core.load()
        core.open()
        try:
            await act(core, Repository(core))
        finally:
            await core.stop()

    asyncio.run(main())


def test_a_load_constructs_and_loads_another_and_stops_the_one_before(kind: type[Counted]) -> None:
    async def act(core: ServerCore, repository: Repository) -> None:
        first = core.find("m").model
        await repository.load("m", {})
        second = core.find("m").model
        assert isinstance(first, Counted)
        assert isinstance(second, Counted)
        assert (first.number, first.stopped, second.number, second.stopped) == (1, True, 2, False)
        assert core.is_ready()

    run(kind, act)


def test_an_unloaded_model_is_stopped_and_unknown_and_can_be_loaded_again(kind: type[Counted]) -> None:
    async def act(core: ServerCore, repository: Repository) -> None:
        model = core.find("m").model
        await repository.unload("m")
        assert isinstance(model, Counted)
        assert model.stopped
        assert (core.names, core.row.models) == ([], 0)
        with pytest.raises(ModelNotFound):
            core.find("m")
        await repository.unload("m")
        await repository.load("m", {})
        assert core.find("m").model is not model
        assert (core.names, core.row.models) == (["m"], 1)

    run(kind, act)


def test_an_object_that_a_script_has_made_is_loaded_in_place_and_not_stopped() -> None:
    model = Counted()

    async def main() -> None:
        async with loaded(model) as core:
            repository = Repository(core)
            for loads in (2, 3):
                await repository.load("m", {})
                assert (core.find("m").model, model.loads, model.stopped) == (model, loads, False)
            model.fails = True
            with pytest.raises(ModelLoadError, match="no weights"):
                await repository.load("m", {})
            assert core.find("m").model.ready
            model.fails = False
            await repository.unload("m")
            assert model.stopped
            await repository.load("m", {})
            assert (core.find("m").model, model.loads) == (model, 5)

    asyncio.run(main())


def test_a_load_that_fails_changes_nothing_and_says_why(kind: type[Counted]) -> None:
    async def act(core: ServerCore, repository: Repository) -> None:
        served, wanted = core.find("m"), core.wish.models
        kind.fails = True
        reason = (
            r"^Model with name m was not loaded, and nothing has changed: in slot 0: load\(\) of model m failed: Value"
        )
        with pytest.raises(ModelLoadError, match=reason):
            await repository.load("m", {})
        assert core.find("m") is served
        assert core.plane is not None
        assert core.plane.read()[1:] == (wanted, {})
        assert core.is_ready()
        kind.fails = False
        await repository.load("m", {})
        assert core.find("m") is not served

    run(kind, act)


def test_a_load_that_hangs_is_given_up_with_the_line_it_is_at(kind: type[Counted]) -> None:
    released = threading.Event()

    async def act(core: ServerCore, repository: Repository) -> None:
        served = core.find("m")
        kind.load = lambda self: released.wait(PATIENCE)  # type: ignore[assignment, method-assign, return-value]
        with pytest.raises(
            ModelLoadError, match=r"did not finish within the 0.5 s of --load_timeout; it is at .*lambda"
        ):
            await repository.load("m", {})
        released.set()
        assert core.find("m") is served

    run(kind, act, load_timeout=0.5)


def test_a_request_in_flight_is_answered_by_the_model_that_began_it(kind: type[Counted]) -> None:
    begun, released = threading.Event(), threading.Event()

    def answer(self: Counted) -> Any:
        begun.set()
        assert released.wait(PATIENCE)
        return {"predictions": [self.number, self.stopped]}

    async def act(core: ServerCore, repository: Repository) -> None:
        kind.answer = answer  # type: ignore[method-assign]
        asking = asyncio.ensure_future(Dataplane(core).run("predict", "m", None, {}, {}))
        await asyncio.to_thread(begun.wait, PATIENCE)
        unloading = asyncio.ensure_future(repository.unload("m"))
        while "m" in core.served:
            await asyncio.sleep(0)
        assert [entry.state for entry in await repository.index()] == ["UNLOADING"]
        released.set()
        await unloading
        assert (await asking)[0] == {"predictions": [1, False]}
        assert [entry.state for entry in await repository.index()] == ["UNAVAILABLE"]

    run(kind, act)


def test_a_model_that_is_not_there_is_unknown_and_those_that_are_there_are_named(kind: type[Counted]) -> None:
    async def act(core: ServerCore, repository: Repository) -> None:
        for attempt in (repository.load("other", {}), repository.unload("other"), repository.load("../m", {})):
            with pytest.raises(ModelNotFound, match=r"does not exist\. There are: m\."):
                await attempt

    run(kind, act)


@pytest.mark.parametrize("parameter", ["config", "file:1/model.pt"])
def test_a_load_from_the_request_itself_is_refused_in_words(kind: type[Counted], parameter: str) -> None:
    async def act(core: ServerCore, repository: Repository) -> None:
        with pytest.raises(NotSupported, match=f"the parameter '{parameter}' is not supported"):
            await repository.load("m", {parameter: "x"})

    run(kind, act)


def test_a_load_gives_way_to_an_unload_that_comes_meanwhile(kind: type[Counted]) -> None:
    begun, released = threading.Event(), threading.Event()

    def load(self: Counted) -> None:
        begun.set()
        assert released.wait(PATIENCE)

    async def act(core: ServerCore, repository: Repository) -> None:
        kind.load = load  # type: ignore[method-assign]
        loading = asyncio.ensure_future(repository.load("m", {}))
        await asyncio.to_thread(begun.wait, PATIENCE)
        unloading = asyncio.ensure_future(repository.unload("m"))
        assert core.plane is not None
        while core.plane.read().models:
            await asyncio.sleep(0)
        released.set()
        await unloading
        with pytest.raises(ModelNotReady, match="Another load or unload of it came in between"):
            await loading
        assert (core.served, core.names) == ({}, [])

    run(kind, act)


def test_a_worker_that_is_ending_takes_no_load(kind: type[Counted]) -> None:
    async def act(core: ServerCore, repository: Repository) -> None:
        core.row.state = State.DRAINING
        with pytest.raises(ServerNotReady):
            await repository.load("m", {})

    run(kind, act)


def test_more_models_than_there_are_bits_are_refused(kind: type[Counted]) -> None:
    async def act(core: ServerCore, repository: Repository) -> None:
        await repository.unload("m")
        assert core.plane is not None
        others = {str(bit): Wanted(AT_START, bit) for bit in range(MODELS)}
        core.plane.change(lambda wish: wish._replace(models=others))
        with pytest.raises(NotSupported, match=f"{MODELS} models are loaded"):
            await repository.load("m", {})

    run(kind, act)


def test_the_index_tells_what_is_ready_and_what_could_be_loaded(kind: type[Counted], tmp_path: Path) -> None:
    for name in ("a", "empty"):
        (tmp_path / name).mkdir()
    (tmp_path / "a" / "model.py").write_text(CODE.format(answer="payload['instances']"))
    (tmp_path / "notes.txt").touch()
    not_loaded = Entry("a", "", "UNAVAILABLE", "it is not loaded")

    async def act(core: ServerCore, repository: Repository) -> None:
        assert await repository.index() == [Entry("m", "1", "READY", ""), not_loaded]
        assert await repository.index(ready_only=True) == [Entry("m", "1", "READY", "")]
        core.find("m").model.ready = False
        core.publish()
        assert (await repository.index())[0] == Entry("m", "1", "UNAVAILABLE", "it is not ready in any worker")
        await repository.load("a", {})
        assert await repository.index(ready_only=True) == [Entry("a", "1", "READY", "")]
        assert (await Dataplane(core).run("predict", "a", None, {"instances": [3]}, {}))[0] == {"predictions": [3]}

    run(kind, act, model_dir=str(tmp_path))


def test_the_code_of_a_model_directory_is_read_anew(kind: type[Counted], tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    file = tmp_path / "a" / "model.py"

    async def act(core: ServerCore, repository: Repository) -> None:
        for answer in (1, 22):  # of another length: Python looks at time and size of a file
            file.write_text(CODE.format(answer=[answer]))
            await repository.load("a", {})
            got, _ = await Dataplane(core).run("predict", "a", None, {"instances": []}, {})
            assert got == {"predictions": [answer]}

    run(kind, act, model_dir=str(tmp_path))
