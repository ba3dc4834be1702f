"""From what the user names to models: directories, objects, classes, and how far a model has got before the fork."""

import sys
import types
from pathlib import Path
from typing import Any

import pytest

from mpserve import Model
from mpserve.errors import AcceleratorInArbiter, ConfigurationError, ModelLoadError
from mpserve.serving.models.tensor_model import FunctionModel
from mpserve.serving.repository.loader import ModelSource, from_directory, from_objects, from_target
from tests.cases import each


class Named(Model):
    name = "named"


class WithName(Model):
    def __init__(self, name: str) -> None:
        super().__init__(name)


def names(sources: list[ModelSource]) -> list[str]:
    return [source.obtain().name for source in sources]


def put(folder: Path, source: str, file: str = "model.py") -> Path:
    (folder / file).write_text(source)
    return folder / file


def test_objects_keep_their_names_and_classes_are_constructed() -> None:
    sources = from_objects([Named, WithName("instance"), WithName])
    assert [source.model is None for source in sources] == [True, False, True]
    assert names(sources) == ["named", "instance", "model"]


@each("models, words", [
    (Named(), r"expected a list of models, got Named: start\(\[model\]\)"),
    ([Named(), "iris"], r"expected instances of mpserve\.Model, got 'iris' \(str\)"),
    ([Named(), Named()], r"two models are named 'named' and have version '1'; give each its own name or version"),
    ([Named, WithName("named")], r"two models are named 'named'"),
])  # fmt: skip
def test_what_is_no_list_of_models_is_refused_in_words(models: Any, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        from_objects(models)


FILE = """
from mpserve import Model

class A(Model):
    name = "a"

class B(Model):
    def __init__(self, name):
        super().__init__(name)

class WithPath(Model):
    def __init__(self, name, path, *, device_map, retries=3):
        super().__init__(name)

both = [A(), B("b")]
nothing = []
number = 7
"""


@pytest.mark.parametrize(("attribute", "model_name", "expected"), [
    ("A", None, ["a"]), ("A", "renamed", ["renamed"]), ("B", None, ["model"]), ("B", "renamed", ["renamed"]),
    ("both", None, ["a", "b"]),
])  # fmt: skip
def test_a_target_names_a_class_or_a_list(
    tmp_path: Path, attribute: str, model_name: str | None, expected: list[str]
) -> None:
    assert names(from_target(f"{put(tmp_path, FILE)}:{attribute}", model_name)) == expected


@pytest.mark.parametrize(("attribute", "words"), [
    ("nothing", r"model\.py:nothing is no model: expected a subclass"),
    ("number", r"model\.py:number is no model: expected a subclass"),
    ("WithPath", r"WithPath\(name, path, device_map\).*Make an instance in the file"),
])  # fmt: skip
def test_a_target_that_cannot_be_served_is_refused_with_the_remedy(tmp_path: Path, attribute: str, words: str) -> None:
    target = f"{put(tmp_path, FILE)}:{attribute}"
    with pytest.raises(ConfigurationError, match=words):
        names(from_target(target, None))


def test_a_pair_of_functions_is_named_after_its_file(tmp_path: Path) -> None:
    file = put(tmp_path, "def load():\n    return 2\n\ndef predict(factor, x):\n    return factor * x\n", "twice.py")
    [source] = from_target(str(file), None)
    model = source.obtain()
    assert isinstance(model, FunctionModel)
    assert model.name == "twice"
    assert model.invoke([21]) == 42


@pytest.mark.parametrize(("name", "model_name", "expected"), [
    ("models", None, "here"), ("models:v2", "renamed", "renamed"),
])  # fmt: skip
def test_a_model_directory_holds_a_model_file(tmp_path: Path, name: str, model_name: str | None, expected: str) -> None:
    folder = tmp_path / name
    folder.mkdir()
    put(folder, "from mpserve import Model\nclass Here(Model):\n    name = 'here'\n")
    put(folder, "not looked at", "weights.pt")
    assert names(from_directory(folder, model_name)) == [expected]


@pytest.mark.parametrize(("files", "folder", "words"), [
    ([], ".", r"expected a model\.py or exactly one of \*\.pt2, \*\.pt, \*\.pth, .* in .*, or folders .* holds: nothing$"),
    (["notes.txt", "model.foo"], ".", r"it holds: model\.foo, notes\.txt$"),
    (["a.pt", "b.pt2"], ".", r"it holds: a\.pt, b\.pt2$"),
    ([], "nowhere", r"model directory .*nowhere does not exist"),
])  # fmt: skip
def test_a_directory_without_one_model_is_refused_with_what_it_holds(
    tmp_path: Path, files: list[str], folder: str, words: str
) -> None:
    for file in files:
        (tmp_path / file).touch()
    with pytest.raises(ConfigurationError, match=words):
        from_directory(tmp_path / folder, None)


def test_torch_files_without_torch_are_refused_with_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "net.pt2").touch()
    monkeypatch.delitem(sys.modules, "mpserve.runtimes.pytorch", raising=False)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ConfigurationError, match=r"net\.pt2 needs torch.*pip install 'mpserve\[torch\]'"):
        from_directory(tmp_path, None)


class Faulty(Model):
    """Raises an error at one stage, as long as there is one."""

    def __init__(self, at: str, errors: list[Exception]) -> None:
        super().__init__("faulty")
        self.at, self.errors = at, errors
        self.ran: list[str] = []
        self.reach("constructor")

    def preload(self) -> None:
        self.reach("preload")

    def reach(self, stage: str) -> None:
        if self.errors and stage == self.at:
            raise self.errors.pop()
        self.ran.append(stage)


@each("at, stage", [("constructor", "the model's constructor"), ("preload", r"preload\(\) of model faulty")])
def test_a_failing_stage_is_told_with_the_exception_as_its_cause(at: str, stage: str) -> None:
    error = ValueError("no weights")
    with pytest.raises(ModelLoadError, match=f"{stage} failed: ValueError: no weights") as raised:
        ModelSource(build=lambda: Faulty(at, [error])).preload()
    assert raised.value.__cause__ is error


@pytest.mark.parametrize(("at", "stage"), [
    ("constructor", "a model's constructor"), ("preload", "preload() of model faulty"),
])  # fmt: skip
def test_a_stage_that_reaches_for_cuda_in_the_arbiter_is_told_once_and_run_in_the_worker(
    at: str, stage: str, caplog: pytest.LogCaptureFixture
) -> None:
    errors: list[Exception] = [AcceleratorInArbiter("model.py:3 in load: here")]
    source = ModelSource(build=lambda: Faulty(at, errors))
    source.preload()
    [record] = caplog.records
    words = f"{stage} reached for CUDA in the arbiter and was stopped: model.py:3 in load"
    assert record.getMessage().startswith(words)
    model = source.obtain()
    assert source.obtain() is model
    assert vars(model)["ran"] == ["constructor", "preload"]


def test_what_cannot_be_awaited_before_the_fork_is_refused(tmp_path: Path) -> None:
    class Waiting(Model):
        async def preload(self) -> None:  # type: ignore[override]
            raise AssertionError

    with pytest.raises(ConfigurationError, match=r"preload\(\) of model model is async, expected a plain def"):
        ModelSource(build=Waiting).preload()
    file = put(tmp_path, "async def load(): ...\n\ndef predict(model, x): ...\n", "twice.py")
    with pytest.raises(ConfigurationError, match=r"the function load is async, expected a plain def"):
        from_target(str(file), None)


def test_a_module_that_is_no_file_can_hold_the_functions_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    module = types.ModuleType("functions_elsewhere")
    vars(module).update(__file__=str(tmp_path / "functions_elsewhere.py"), predict=lambda x: x)
    monkeypatch.setitem(sys.modules, "functions_elsewhere", module)
    assert names(from_target("functions_elsewhere", "renamed")) == ["renamed"]
