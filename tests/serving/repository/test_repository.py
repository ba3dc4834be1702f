"""Load, unload and index as one worker sees them; what several do together is in ``tests/e2e/test_repository.py``."""

import asyncio
import shutil
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
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
from tests.asking import ask
from tests.cases import each, until
from tests.running import PATIENCE
from tests.serving.repository.gate import Gate


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
        return {"predictions": self.answer()}

    def answer(self) -> Any:
        return self.number

    def stop(self) -> None:
        assert threading.current_thread().name.startswith("mpserve-")
        self.stopped = True


@pytest.fixture(name="kind")
def fresh_kind() -> type[Counted]:
    return type("Kind", (Counted,), {})


Worker = tuple[ServerCore, Repository, ControlPlane]


@asynccontextmanager
async def started(settings: Settings, find: Callable[[], list[ModelSource]]) -> AsyncIterator[Worker]:
    """A worker that serves what is found."""
    core = ServerCore(settings, find)
    core.preload()
    core.begin_alone()
    await core.load()
    core.open()
    assert core.plane is not None
    try:
        yield core, Repository(core), core.plane
    finally:
        await core.stop()


def serving(kind: type[Counted], **options: Any) -> AbstractAsyncContextManager[Worker]:
    """A worker that serves a model that can be constructed anew."""
    return started(Settings(**options), lambda: [ModelSource(build=kind)])


def model_of(core: ServerCore) -> Counted:
    model = core.find("m").model
    assert isinstance(model, Counted)
    return model


async def test_a_load_constructs_and_loads_another_and_stops_the_one_before(kind: type[Counted]) -> None:
    async with serving(kind) as (core, repository, _):
        first = model_of(core)
        await repository.load("m", {})
        second = model_of(core)
        assert (first.number, first.stopped, second.number, second.stopped) == (1, True, 2, False)
        assert core.is_ready()
        for _ in range(2):
            await repository.unload("m")
            assert (second.stopped, core.names, core.row.models) == (True, [], 0)
            with pytest.raises(ModelNotFound):
                core.find("m")
        await repository.load("m", {})
        assert (model_of(core).number, core.names, core.row.models) == (3, ["m"], 1)


async def test_a_load_goes_on_when_who_asked_for_it_goes_away(kind: type[Counted]) -> None:
    gate = Gate()
    async with serving(kind) as (_, repository, plane):
        kind.load = gate.hold  # type: ignore[method-assign]
        asking = asyncio.ensure_future(repository.load("m", {}))
        await gate.reached()
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        gate.open()
        await until(lambda: not plane.read().candidates)
        assert plane.read().models["m"].revision != AT_START


async def test_a_load_that_fails_changes_nothing_and_says_why(kind: type[Counted]) -> None:
    async with serving(kind) as (core, repository, plane):
        instance, spec = core.find("m"), core.desired.models
        kind.fails = True
        reason = r"m was not loaded, and nothing has changed: in slot 0: load\(\) of model m failed: ValueError: no"
        with pytest.raises(ModelLoadError, match=rf"^Model with name {reason} weights$"):
            await repository.load("m", {})
        assert core.find("m") is instance
        assert plane.read()[1:] == (spec, {})
        assert core.is_ready()
        kind.fails = False
        await repository.load("m", {})
        assert core.find("m") is not instance


@each("step", ["__init__", "preload", "load", "warmup", "start", "get_input_types"])
async def test_a_load_that_hangs_is_given_up_with_the_line_it_is_at_and_hinders_no_other(step: str) -> None:
    kind = type("Kind", (Counted,), {})
    gate = Gate()
    async with serving(kind) as (core, repository, _):
        patient, instance = core.settings, core.find("m")
        setattr(kind, step, gate.hold)
        # A busy machine may take the first times for the steps before the one that hangs.
        for seconds in (0.4, 4.0, PATIENCE):
            core.settings = replace(patient, load_timeout=seconds)
            words = rf"not finish within the {seconds:g} s of --load_timeout; it is at "
            with pytest.raises(ModelLoadError, match=words) as caught:
                await repository.load("m", {})
            if " in hold" in str(caught.value):
                break
        else:
            pytest.fail(str(caught.value))
        core.settings = patient
        assert core.find("m") is instance
        delattr(kind, step)
        await asyncio.wait_for(repository.load("m", {}), PATIENCE)
        assert core.find("m") is not instance
        await asyncio.wait_for(repository.unload("m"), PATIENCE)
        gate.open()


async def test_a_request_in_flight_is_answered_by_the_model_that_began_it(kind: type[Counted]) -> None:
    gate = Gate()

    def answer(self: Counted) -> Any:
        gate.hold()
        return [self.number, self.stopped]

    async with serving(kind) as (core, repository, _):
        kind.answer = answer  # type: ignore[method-assign]
        asking = ask(core, "m", {})
        await gate.reached()
        unloading = asyncio.ensure_future(repository.unload("m"))
        await until(lambda: "m" not in core.models)
        assert [entry.state for entry in await repository.index()] == ["UNLOADING"]
        gate.open()
        await unloading
        assert await asking == {"predictions": [1, False]}
        assert [entry.state for entry in await repository.index()] == ["UNAVAILABLE"]


@each("name, parameters, error, words", [
    ("other", {}, ModelNotFound, r"does not exist\. There are: m\."),
    ("../m", {}, ModelNotFound, r"does not exist\. There are: m\."),
    ("m", {"config": "x"}, NotSupported, "the parameter 'config' is not supported"),
    ("m", {"file:1/model.pt": "x"}, NotSupported, "the parameter 'file:1/model.pt' is not supported"),
])  # fmt: skip
async def test_what_cannot_be_loaded_is_refused_in_words(
    kind: type[Counted], name: str, parameters: dict[str, Any], error: type[Exception], words: str
) -> None:
    async with serving(kind) as (_, repository, _):
        with pytest.raises(error, match=words):
            await repository.load(name, parameters)
        with pytest.raises(ModelNotFound, match=r"does not exist\. There are: m\."):
            await repository.unload("other")


async def test_a_load_gives_way_to_an_unload_that_comes_meanwhile(kind: type[Counted]) -> None:
    gate = Gate()
    async with serving(kind) as (core, repository, plane):
        kind.load = gate.hold  # type: ignore[method-assign]
        loading = asyncio.ensure_future(repository.load("m", {}))
        await gate.reached()
        unloading = asyncio.ensure_future(repository.unload("m"))
        await until(lambda: not plane.read().models)
        gate.open()
        await unloading
        with pytest.raises(ModelNotReady, match="Another load or unload of it came in between"):
            await loading
        assert (core.models, core.names) == ({}, [])


async def test_a_worker_that_is_ending_takes_no_load(kind: type[Counted]) -> None:
    async with serving(kind) as (core, repository, _):
        core.row.state = State.DRAINING
        with pytest.raises(ServerNotReady):
            await repository.load("m", {})


async def test_more_models_than_there_are_bits_are_refused(kind: type[Counted]) -> None:
    async with serving(kind) as (_, repository, plane):
        await repository.unload("m")
        others = {str(bit): ModelSpec(AT_START, bit) for bit in range(MODELS)}
        plane.change(lambda desired: desired._replace(models=others))
        with pytest.raises(NotSupported, match=f"{MODELS} models are loaded"):
            await repository.load("m", {})


CODE = """
from mpserve import Model
class A(Model):
    version = {version!r}
    def load(self):
        if {answer!r} == "broken":
            raise ValueError("no weights")
    def predict(self, payload, headers=None):
        return {answer!r}
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

    def put(self, version: str = "1", **answers: str) -> None:
        """A folder for each model; ``m_2`` is version 2 of ``m``."""
        for title, answer in answers.items():
            folder = self.directory / title.replace("_", "@")
            folder.mkdir(exist_ok=True)
            (folder / "model.py").write_text(CODE.format(version=version, answer=answer, stops=str(self.stops)))

    def stopped(self) -> list[str]:
        return sorted(self.stops.read_text().split())

    def serving(self, **options: Any) -> AbstractAsyncContextManager[Worker]:
        """A worker that was started with this directory alone."""
        settings = Settings(model_dir=str(self.directory), **options)
        return started(settings, lambda: find_all(settings))


@pytest.fixture(name="models")
def empty_shelf(tmp_path: Path) -> Shelf:
    return Shelf(tmp_path)


async def test_the_index_tells_what_is_ready_and_what_could_be_loaded(kind: type[Counted], models: Shelf) -> None:
    models.put(a="a")
    (models.directory / "empty").mkdir()
    (models.directory / "notes.txt").touch()
    ready = Entry("m", "1", "READY", "")
    async with serving(kind, model_dir=str(models.directory)) as (core, repository, _):
        assert await repository.index() == [ready, Entry("a", "", "UNAVAILABLE", "it is not loaded")]
        assert await repository.index(ready_only=True) == [ready]
        core.find("m").model.ready = False
        core.publish()
        assert (await repository.index())[0] == Entry("m", "1", "UNAVAILABLE", "it is not ready in any worker")
        await repository.load("a", {})
        assert await repository.index(ready_only=True) == [Entry("a", "1", "READY", "")]
        assert await ask(core, "a", {}) == "a"


async def test_a_load_reads_the_versions_and_the_code_that_lie_there_now(models: Shelf) -> None:
    models.put(m_1="one", m_2="two")
    models.put(other="else", version="5")
    async with models.serving() as (core, repository, _):
        assert (core.names, core.versions("m")) == (["m", "other"], ["1", "2"])
        assert await ask(core, "m", {}) == "two"
        models.put(m_2="zwei", m_10="ten")
        shutil.rmtree(models.directory / "m@1")
        assert core.versions("m") == ["1", "2"]
        await repository.load("m", {})
        assert core.versions("m") == ["2", "10"]
        assert [await ask(core, name, {}) for name in ("m", "other")] == ["ten", "else"]
        assert core.find("m", "2").model.predict({}) == "zwei"
        assert models.stopped() == ["one", "two"]
        with pytest.raises(ModelNotFound, match=r"m@1 does not exist\. There are: m@2, m@10\.$"):
            core.find("m", "1")
        await repository.unload("m")
        assert core.names == ["other"]
        assert models.stopped() == ["one", "ten", "two", "zwei"]


async def test_the_index_has_a_line_for_each_version(models: Shelf) -> None:
    models.put(m_1="one", m_2="two")
    models.put(other="else", version="5")
    first, second, other = (Entry(*title, "READY", "") for title in (("m", "1"), ("m", "2"), ("other", "5")))
    async with models.serving() as (core, repository, _):
        assert await repository.index() == [first, second, other]
        core.find("m", "1").model.ready = False
        ready = core.is_ready(), core.is_model_ready(core.find("m", "1")), core.is_model_ready(core.find("m"))
        assert ready == (False, False, True)
        assert await repository.index(ready_only=True) == [second, other]
        await repository.unload("m")
        await repository.unload("other")
        left = [(entry.name, entry.version, entry.state) for entry in await repository.index()]
        assert left == [(*title, "UNAVAILABLE") for title in (("m", "1"), ("m", "2"), ("other", ""))]


@pytest.mark.parametrize(("answers", "words", "stopped"), [
    ({"m_1": "uno", "m_2": "broken"}, r"in slot 0: load\(\) of model m@2 failed: ValueError: no weights", ["uno"]),
    ({"m": "more"}, "two models are named 'm' and have version '1'; give each its own name or version", []),
    ({"m_": "more"}, "'m@' names no model: expected NAME or NAME@VERSION", []),
])  # fmt: skip
async def test_if_one_version_cannot_be_loaded_none_is_and_what_was_served_is_served_on(
    models: Shelf, answers: dict[str, str], words: str, stopped: list[str]
) -> None:
    models.put(m_1="one")
    async with models.serving() as (core, repository, _):
        models.put(**answers)
        with pytest.raises(ModelLoadError, match=words):
            await repository.load("m", {})
        assert (core.versions("m"), await ask(core, "m", {}), core.is_ready()) == (["1"], "one", True)
        assert models.stopped() == stopped


async def test_a_model_that_was_renamed_is_loaded_from_where_it_lies(models: Shelf) -> None:
    models.put(m_1="one")
    async with models.serving(model_name="iris") as (core, repository, _):
        models.put(m_2="two", other="else")
        await repository.load("iris", {})
        assert (core.names, core.versions("iris"), await ask(core, "iris", {})) == (["iris"], ["1", "2"], "two")
        assert [entry.name for entry in await repository.index()] == ["iris", "iris", "other"]


async def test_a_model_whose_folders_are_gone_can_be_unloaded_but_not_loaded(models: Shelf) -> None:
    models.put(m_1="one", other="else")
    async with models.serving() as (core, repository, _):
        shutil.rmtree(models.directory / "m@1")
        with pytest.raises(ModelNotFound, match=r"does not exist\. There are: other\."):
            await repository.load("m", {})
        assert await ask(core, "m", {}) == "one"
        await repository.unload("m")
        assert [entry.name for entry in await repository.index()] == ["other"]


async def test_a_worker_that_starts_later_has_the_versions_that_were_loaded_and_no_others(models: Shelf) -> None:
    models.put(m_1="one")
    async with models.serving() as (core, repository, plane):
        models.put(m_2="two")
        await repository.load("m", {})
        models.put(m_3="three")
        board = Scoreboard(2)
        later = ServerCore(core.settings, lambda: find_all(core.settings))
        later.attach(board, board.row(1), "cpu", lambda: None, plane.directory)
        await later.load()
        assert (later.versions("m"), await ask(later, "m", {})) == (["1", "2"], "two")
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
        assert (old.stopped, new.stopped) == (True, True)
