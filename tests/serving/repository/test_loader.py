"""From what the user names to models: directories, objects, classes, and how far a model has got before the fork."""

import sys
import types
from collections.abc import Iterator
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


class WithPath(Model):
    def __init__(self, name: str, path: Path, *, device_map: str, retries: int = 3) -> None:
        super().__init__(name)


def names(sources: list[ModelSource]) -> list[str]:
    return [source.obtain().name for source in sources]


@pytest.fixture(autouse=True)
def forget_models(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The models that a test imports are forgotten after it."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield
    for name in sys.modules.keys() - before:
        if name in ("model", "twice"):
            del sys.modules[name]


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


def test_models_of_one_name_are_versions_of_one_model() -> None:
    class Newer(Named):
        version = "2"

    newest = Newer()
    newest.version = "v3"
    sources = from_objects([Named, Newer, newest])
    assert [(source.obtain().name, source.obtain().version) for source in sources] == [
        ("named", "1"),
        ("named", "2"),
        ("named", "v3"),
    ]


FILE = """
from mpserve import Model

class A(Model):
    name = "a"

class B(Model):
    def __init__(self, name):
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
    target = f"{put(tmp_path, FILE)}:{attribute}"
    assert names(from_target(target, model_name)) == expected


@pytest.mark.parametrize("attribute", ["nothing", "number"])
def test_a_target_that_is_no_model_is_refused(tmp_path: Path, attribute: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"model\.py:{attribute} is no model: expected a subclass"):
        from_target(f"{put(tmp_path, FILE)}:{attribute}", None)


def test_a_class_that_needs_more_than_a_name_is_refused_with_the_remedy() -> None:
    [source] = from_objects([WithPath])
    with pytest.raises(ConfigurationError, match=r"WithPath\(name, path, device_map\).*Make an instance in the file"):
        source.obtain()


def test_a_pair_of_functions_is_named_after_its_file(tmp_path: Path) -> None:
    file = put(tmp_path, "def load():\n    return 2\n\ndef predict(factor, x):\n    return factor * x\n", "twice.py")
    [source] = from_target(str(file), None)
    model = source.obtain()
    assert isinstance(model, FunctionModel)
    assert model.name == "twice"
    assert model.invoke([21]) == 42


def test_a_model_directory_holds_a_model_file(tmp_path: Path) -> None:
    put(tmp_path, "from mpserve import Model\nclass Here(Model):\n    name = 'here'\n")
    put(tmp_path, "not looked at", "weights.pt")
    assert names(from_directory(tmp_path, None)) == ["here"]


def test_a_model_directory_may_have_a_colon_in_its_name(tmp_path: Path) -> None:
    folder = tmp_path / "models:v2"
    folder.mkdir()
    put(folder, "from mpserve import Model\nclass Here(Model):\n    name = 'here'\n")
    assert names(from_directory(folder, "renamed")) == ["renamed"]


@pytest.mark.parametrize(("files", "words"), [
    ([], r"expected a model\.py or exactly one of \*\.pt2, \*\.pt, \*\.pth in .*, or folders .*; it holds: nothing$"),
    (["notes.txt", "model.onnx"], r"it holds: model\.onnx, notes\.txt$"),
    (["a.pt", "b.pt2"], r"it holds: a\.pt, b\.pt2$"),
])  # fmt: skip
def test_a_directory_without_one_model_is_refused_with_what_it_holds(
    tmp_path: Path, files: list[str], words: str
) -> None:
    for file in files:
        (tmp_path / file).touch()
    with pytest.raises(ConfigurationError, match=words):
        from_directory(tmp_path, None)


def test_a_directory_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"model directory .*nowhere does not exist"):
        from_directory(tmp_path / "nowhere", None)


@pytest.mark.e2e
def test_a_model_directory_may_be_the_file_itself(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    (tmp_path / "iris.pt").touch()
    [source] = from_directory(tmp_path / "iris.pt", None)
    assert source.model is None
    assert source.build is not None


def test_torch_files_without_torch_are_refused_with_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "net.pt2").touch()
    monkeypatch.delitem(sys.modules, "mpserve.runtimes.pytorch", raising=False)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ConfigurationError, match=r"net\.pt2 needs torch.*pip install 'mpserve\[torch\]'"):
        from_directory(tmp_path, None)


class Failing(Model):
    def __init__(self, at: str) -> None:
        super().__init__("failing")
        self.at = at
        self.fail("constructor")

    def fail(self, stage: str) -> None:
        if stage == self.at:
            raise ValueError("no weights")

    def preload(self) -> None:
        self.fail("preload")


@each("at, words", [
    ("constructor", "the model's constructor failed: ValueError: no weights"),
    ("preload", r"preload\(\) of model failing failed: ValueError: no weights"),
])  # fmt: skip
def test_a_failing_stage_is_told_with_the_exception_as_its_cause(at: str, words: str) -> None:
    with pytest.raises(ModelLoadError, match=words) as raised:
        ModelSource(build=lambda: Failing(at)).preload()
    assert isinstance(raised.value.__cause__, ValueError)


class Reaching(Model):
    """Reaches for CUDA at one stage as long as it is in the arbiter."""

    in_arbiter = True
    ran: list[str] = []  # noqa: RUF012

    def __init__(self, at: str) -> None:
        super().__init__("reaching")
        self.at = at
        self.reach("constructor")

    def preload(self) -> None:
        self.reach("preload")

    def reach(self, stage: str) -> None:
        if Reaching.in_arbiter and stage == self.at:
            raise AcceleratorInArbiter("model.py:3 in load: here")
        Reaching.ran.append(stage)


@pytest.mark.parametrize(
    ("at", "stage"), [("constructor", "a model's constructor"), ("preload", "preload() of model reaching")]
)
def test_a_stage_that_reaches_for_cuda_in_the_arbiter_is_told_once_and_run_in_the_worker(
    at: str, stage: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(Reaching, "ran", [])
    monkeypatch.setattr(Reaching, "in_arbiter", True)
    source = ModelSource(build=lambda: Reaching(at))
    source.preload()
    [record] = caplog.records
    assert record.getMessage().startswith(
        f"{stage} reached for CUDA in the arbiter and was stopped: model.py:3 in load"
    )
    monkeypatch.setattr(Reaching, "in_arbiter", False)
    source.obtain()
    assert Reaching.ran == ["constructor", "preload"]


def test_what_cannot_be_awaited_before_the_fork_is_refused(tmp_path: Path) -> None:
    class Waiting(Model):
        async def preload(self) -> None:  # type: ignore[override]
            raise AssertionError

    with pytest.raises(ConfigurationError, match=r"preload\(\) of model model is async, expected a plain def"):
        ModelSource(build=Waiting).preload()
    file = put(tmp_path, "async def load(): ...\n\ndef predict(model, x): ...\n", "twice.py")
    with pytest.raises(ConfigurationError, match=r"the function load is async, expected a plain def"):
        from_target(str(file), None)


def test_what_was_preloaded_is_not_preloaded_again() -> None:
    calls: list[int] = []

    class Counting(Model):
        def preload(self) -> None:
            calls.append(1)

    source = ModelSource(build=Counting)
    source.preload()
    assert source.obtain() is source.obtain()
    assert calls == [1]


def test_a_module_that_is_no_file_can_hold_the_functions_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    module = types.ModuleType("functions_elsewhere")
    module.__file__ = str(tmp_path / "functions_elsewhere.py")
    module.predict = lambda x: x  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "functions_elsewhere", module)
    assert names(from_target("functions_elsewhere", "renamed")) == ["renamed"]
