"""Load, unload and index as one worker sees them; what several do together is in ``tests/e2e/test_repository.py``."""

import asyncio
import shutil
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from mpserve.config.settings import Settings
from mpserve.errors import ModelLoadError, ModelNotFound, ModelNotReady, NotSupported, ServerNotReady
from mpserve.serving.models.model import Model
from mpserve.serving.repository.core import ServerCore
from mpserve.serving.repository.desired_state import AT_START, ControlPlane, ModelSpec
from mpserve.serving.repository.loader import ModelSource
from mpserve.serving.repository.model_directory import find_all
from mpserve.serving.repository.repository import Entry, Repository
from mpserve.state.scoreboard import MODELS, Scoreboard, State
from tests.asgi import loaded
from tests.asking import Asker
from tests.cases import each

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


@asynccontextmanager
async def started(
    settings: Settings, find: Callable[[], list[ModelSource]]
) -> AsyncIterator[tuple[ServerCore, Repository]]:
    """A worker that serves what is found."""
    core = ServerCore(settings, find)
    core.preload()
    core.begin_alone()
    await core.load()
    core.open()
    try:
        yield core, Repository(core)
    finally:
        await core.stop()


def serving(kind: type[Counted], **options: Any) -> AbstractAsyncContextManager[tuple[ServerCore, Repository]]:
    """A worker that serves a model that can be constructed anew."""
    return started(Settings(**options), lambda: [ModelSource(build=kind)])


async def test_a_load_constructs_and_loads_another_and_stops_the_one_before(kind: type[Counted]) -> None:
    async with serving(kind) as (core, repository):
        first = core.find("m").model
        await repository.load("m", {})
        second = core.find("m").model
        assert isinstance(first, Counted)
        assert isinstance(second, Counted)
        assert (first.number, first.stopped, second.number, second.stopped) == (1, True, 2, False)
        assert core.is_ready()


async def decided(plane: ControlPlane) -> None:
    while plane.read().candidates:
        await asyncio.sleep(0.01)


async def test_a_load_goes_on_when_who_asked_for_it_goes_away(
    kind: type[Counted], monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, finish = threading.Event(), threading.Event()

    def load(self: Counted) -> None:
        begun.set()
        assert finish.wait(PATIENCE)

    async with serving(kind) as (core, repository):
        assert core.plane is not None
        monkeypatch.setattr(kind, "load", load)
        asking = asyncio.ensure_future(repository.load("m", {}))
        assert await asyncio.to_thread(begun.wait, PATIENCE)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        finish.set()
        await asyncio.wait_for(decided(core.plane), PATIENCE)
        assert core.plane.read().models["m"].revision != AT_START


async def test_an_unloaded_model_is_stopped_and_unknown_and_can_be_loaded_again(kind: type[Counted]) -> None:
    async with serving(kind) as (core, repository):
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


async def test_a_load_that_fails_changes_nothing_and_says_why(kind: type[Counted]) -> None:
    async with serving(kind) as (core, repository):
        instance, spec = core.find("m"), core.desired.models
        kind.fails = True
        reason = (
            r"^Model with name m was not loaded, and nothing has changed: in slot 0: load\(\) of model m failed: Value"
        )
        with pytest.raises(ModelLoadError, match=reason):
            await repository.load("m", {})
        assert core.find("m") is instance
        assert core.plane is not None
        assert core.plane.read()[1:] == (spec, {})
        assert core.is_ready()
        kind.fails = False
        await repository.load("m", {})
        assert core.find("m") is not instance


async def test_a_load_that_hangs_is_given_up_with_the_line_it_is_at(kind: type[Counted]) -> None:
    released = threading.Event()
    async with serving(kind, load_timeout=0.5) as (core, repository):
        instance = core.find("m")
        kind.load = lambda self: released.wait(PATIENCE)  # type: ignore[assignment, method-assign, return-value]
        with pytest.raises(
            ModelLoadError, match=r"did not finish within the 0.5 s of --load_timeout; it is at .*lambda"
        ):
            await repository.load("m", {})
        released.set()
        assert core.find("m") is instance


async def test_a_request_in_flight_is_answered_by_the_model_that_began_it(kind: type[Counted]) -> None:
    begun, released = threading.Event(), threading.Event()

    def answer(self: Counted) -> Any:
        begun.set()
        assert released.wait(PATIENCE)
        return {"predictions": [self.number, self.stopped]}

    async with serving(kind) as (core, repository):
        kind.answer = answer  # type: ignore[method-assign]
        asking = asyncio.ensure_future(Asker(core).run("predict", "m", None, {}, {}))
        await asyncio.to_thread(begun.wait, PATIENCE)
        unloading = asyncio.ensure_future(repository.unload("m"))
        while "m" in core.models:
            await asyncio.sleep(0)
        assert [entry.state for entry in await repository.index()] == ["UNLOADING"]
        released.set()
        await unloading
        assert (await asking)[0] == {"predictions": [1, False]}
        assert [entry.state for entry in await repository.index()] == ["UNAVAILABLE"]


async def test_a_model_that_is_not_there_is_unknown_and_those_that_are_there_are_named(kind: type[Counted]) -> None:
    async with serving(kind) as (_, repository):
        for attempt in (repository.load("other", {}), repository.unload("other"), repository.load("../m", {})):
            with pytest.raises(ModelNotFound, match=r"does not exist\. There are: m\."):
                await attempt


@each("parameter", ["config", "file:1/model.pt"])
async def test_a_load_from_the_request_itself_is_refused_in_words(kind: type[Counted], parameter: str) -> None:
    async with serving(kind) as (_, repository):
        with pytest.raises(NotSupported, match=f"the parameter '{parameter}' is not supported"):
            await repository.load("m", {parameter: "x"})


async def test_a_load_gives_way_to_an_unload_that_comes_meanwhile(kind: type[Counted]) -> None:
    begun, released = threading.Event(), threading.Event()

    def load(self: Counted) -> None:
        begun.set()
        assert released.wait(PATIENCE)

    async with serving(kind) as (core, repository):
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
        assert (core.models, core.names) == ({}, [])


async def test_a_worker_that_is_ending_takes_no_load(kind: type[Counted]) -> None:
    async with serving(kind) as (core, repository):
        core.row.state = State.DRAINING
        with pytest.raises(ServerNotReady):
            await repository.load("m", {})


async def test_more_models_than_there_are_bits_are_refused(kind: type[Counted]) -> None:
    async with serving(kind) as (core, repository):
        await repository.unload("m")
        assert core.plane is not None
        others = {str(bit): ModelSpec(AT_START, bit) for bit in range(MODELS)}
        core.plane.change(lambda desired: desired._replace(models=others))
        with pytest.raises(NotSupported, match=f"{MODELS} models are loaded"):
            await repository.load("m", {})


async def test_the_index_tells_what_is_ready_and_what_could_be_loaded(kind: type[Counted], tmp_path: Path) -> None:
    for name in ("a", "empty"):
        (tmp_path / name).mkdir()
    (tmp_path / "a" / "model.py").write_text(CODE.format(answer="payload['instances']"))
    (tmp_path / "notes.txt").touch()
    not_loaded = Entry("a", "", "UNAVAILABLE", "it is not loaded")
    async with serving(kind, model_dir=str(tmp_path)) as (core, repository):
        assert await repository.index() == [Entry("m", "1", "READY", ""), not_loaded]
        assert await repository.index(ready_only=True) == [Entry("m", "1", "READY", "")]
        core.find("m").model.ready = False
        core.publish()
        assert (await repository.index())[0] == Entry("m", "1", "UNAVAILABLE", "it is not ready in any worker")
        await repository.load("a", {})
        assert await repository.index(ready_only=True) == [Entry("a", "1", "READY", "")]
        assert (await Asker(core).run("predict", "a", None, {"instances": [3]}, {}))[0] == {"predictions": [3]}


async def test_the_code_of_a_model_directory_is_read_anew(kind: type[Counted], tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    file = tmp_path / "a" / "model.py"
    async with serving(kind, model_dir=str(tmp_path)) as (core, repository):
        for answer in (1, 22):  # of another length: Python looks at time and size of a file
            file.write_text(CODE.format(answer=[answer]))
            await repository.load("a", {})
            got, _ = await Asker(core).run("predict", "a", None, {"instances": []}, {})
            assert got == {"predictions": [answer]}


ANSWERING = """
from mpserve import Model
class A(Model):
    version = {version!r}
    def load(self):
        if {answer!r} == "broken":
            raise ValueError("no weights")
    def predict(self, payload, headers=None):
        return {{"predictions": {answer!r}}}
    def stop(self):
        with open({stops!r}, "a") as file:
            file.write({answer!r} + "\\n")
"""


class Shelf:
    """A model directory, and what a server of it answers."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory / "models"
        self.directory.mkdir()
        self.stops = directory / "stops"
        self.stops.touch()

    def put(self, title: str, answer: str, version: str = "1") -> None:
        (self.directory / title).mkdir(exist_ok=True)
        code = ANSWERING.format(version=version, answer=answer, stops=str(self.stops))
        (self.directory / title / "model.py").write_text(code)

    def remove(self, title: str) -> None:
        shutil.rmtree(self.directory / title)

    def stopped(self) -> list[str]:
        return sorted(self.stops.read_text().split())

    def serving(self, **options: Any) -> AbstractAsyncContextManager[tuple[ServerCore, Repository]]:
        """A worker that was started with this directory alone."""
        settings = Settings(model_dir=str(self.directory), **options)
        return started(settings, lambda: find_all(settings))


async def answer_of(core: ServerCore, name: str, version: str | None = None) -> Any:
    return (await Asker(core).run("predict", name, version, {"instances": []}, {}))[0]["predictions"]


@pytest.fixture(name="models")
def empty_shelf(tmp_path: Path) -> Shelf:
    return Shelf(tmp_path)


async def test_a_load_serves_the_versions_that_lie_there_now(models: Shelf) -> None:
    models.put("m@1", "one")
    models.put("m@2", "two")
    models.put("other", "else", version="5")
    async with models.serving() as (core, repository):
        assert (core.names, core.versions("m")) == (["m", "other"], ["1", "2"])
        assert (await answer_of(core, "m"), await answer_of(core, "m", "1")) == ("two", "one")
        models.put("m@10", "ten")
        models.remove("m@1")
        assert core.versions("m") == ["1", "2"]
        await repository.load("m", {})
        assert core.versions("m") == ["2", "10"]
        assert (await answer_of(core, "m"), await answer_of(core, "other")) == ("ten", "else")
        assert models.stopped() == ["one", "two"]
        with pytest.raises(ModelNotFound, match=r"m@1 does not exist\. There are: m@2, m@10\.$"):
            core.find("m", "1")
        await repository.unload("m")
        assert core.names == ["other"]
        assert models.stopped() == ["one", "ten", "two", "two"]


async def test_the_index_has_a_line_for_each_version(models: Shelf) -> None:
    models.put("m@1", "one")
    models.put("m@2", "two")
    models.put("other", "else", version="5")
    async with models.serving() as (core, repository):
        other = Entry("other", "5", "READY", "")
        assert await repository.index() == [Entry("m", "1", "READY", ""), Entry("m", "2", "READY", ""), other]
        core.find("m", "1").model.ready = False
        assert (core.is_ready(), core.is_model_ready(core.find("m", "1")), core.is_model_ready(core.find("m"))) == (
            False,
            False,
            True,
        )
        assert await repository.index(ready_only=True) == [Entry("m", "2", "READY", ""), other]
        await repository.unload("m")
        await repository.unload("other")
        assert await repository.index() == [
            Entry(name, version, "UNAVAILABLE", "it is not loaded")
            for name, version in [("m", "1"), ("m", "2"), ("other", "")]
        ]


async def test_if_one_version_fails_none_is_loaded_and_what_was_served_is_served_on(models: Shelf) -> None:
    models.put("m@1", "one")
    async with models.serving() as (core, repository):
        models.put("m@1", "uno")
        models.put("m@2", "broken")
        with pytest.raises(ModelLoadError, match=r"in slot 0: load\(\) of model m@2 failed: ValueError: no weights"):
            await repository.load("m", {})
        assert (core.versions("m"), await answer_of(core, "m")) == (["1"], "one")
        assert models.stopped() == ["uno"]
        assert core.is_ready()


@pytest.mark.parametrize(("title", "version", "words"), [
    ("m", "1", "two models are named 'm' and have version '1'; give each its own name or version"),
    ("m@", "1", "'m@' names no model: expected NAME or NAME@VERSION"),
])  # fmt: skip
async def test_versions_that_cannot_be_told_apart_are_not_loaded(
    models: Shelf, title: str, version: str, words: str
) -> None:
    models.put("m@1", "one")
    async with models.serving() as (core, repository):
        models.put(title, "more", version)
        with pytest.raises(ModelLoadError, match=words):
            await repository.load("m", {})
        assert await answer_of(core, "m") == "one"


async def test_a_model_that_was_renamed_is_loaded_from_where_it_lies(models: Shelf) -> None:
    models.put("m@1", "one")
    async with models.serving(model_name="iris") as (core, repository):
        models.put("m@2", "two")
        models.put("other", "else")
        await repository.load("iris", {})
        assert (core.names, core.versions("iris"), await answer_of(core, "iris")) == (["iris"], ["1", "2"], "two")
        assert [entry.name for entry in await repository.index()] == ["iris", "iris", "other"]


async def test_a_model_whose_folders_are_gone_can_be_unloaded_but_not_loaded(models: Shelf) -> None:
    models.put("m@1", "one")
    models.put("other", "else")
    async with models.serving() as (core, repository):
        models.remove("m@1")
        with pytest.raises(ModelNotFound, match=r"does not exist\. There are: other\."):
            await repository.load("m", {})
        assert await answer_of(core, "m") == "one"
        await repository.unload("m")
        assert [entry.name for entry in await repository.index()] == ["other"]


async def test_a_worker_that_starts_later_has_the_versions_that_were_loaded_and_no_others(models: Shelf) -> None:
    models.put("m@1", "one")
    async with models.serving() as (core, repository):
        models.put("m@2", "two")
        await repository.load("m", {})
        models.put("m@3", "three")
        assert core.plane is not None
        board = Scoreboard(2)
        later = ServerCore(core.settings, lambda: find_all(core.settings))
        later.attach(board, board.row(1), "cpu", lambda: None, core.plane.directory)
        await later.load()
        assert (later.versions("m"), await answer_of(later, "m")) == (["1", "2"], "two")
        await later.stop()


async def test_objects_of_one_name_are_loaded_in_place_each() -> None:
    old, new = Counted(), Counted()
    old.version, new.version = "9", "10"

    async with loaded(new, old) as core:
        repository = Repository(core)
        assert (core.find("m").model, core.versions("m")) == (new, ["9", "10"])
        await repository.load("m", {})
        assert [(model.loads, model.stopped) for model in (old, new)] == [(2, False), (2, False)]
        new.fails = True
        with pytest.raises(ModelLoadError, match=r"load\(\) of model m@10 failed: ValueError: no weights"):
            await repository.load("m", {})
        assert (old.stopped, old.ready, new.stopped, new.ready) == (False, True, False, True)
        assert core.is_ready()
        await repository.unload("m")
        assert old.stopped
        assert new.stopped
