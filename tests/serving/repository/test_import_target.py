"""Finding a model in the user's code, and telling in one sentence what is wrong when there is none."""

import json
import os
import pickle
import sys
from pathlib import Path

import pytest

from mpserve import Model
from mpserve.errors import AcceleratorInArbiter, ConfigurationError, ModelLoadError
from mpserve.serving.repository.import_target import find, find_in_file, starts_server
from tests.cases import each

ONE = "from mpserve import Model\n\nclass One(Model):\n    name = 'one'\n"
TWO = f"{ONE}\nclass Two(One):\n    name = 'two'\n"


@pytest.fixture(autouse=True)
def own_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


def put(source: str, file: str = "model.py") -> str:
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    Path(file).write_text(source)
    return file


@each("source", [
    ONE, f"{TWO}\nmodel = Two()\n", f"from elsewhere import Base\n{ONE.replace('Model)', 'Base)')}",
    f"{ONE}\n_hidden = One()\n", f"{ONE}\ndef predict(x): ...\n",
])  # fmt: skip
def test_a_file_that_holds_one_model_needs_no_name_in_it(source: str) -> None:
    put("from mpserve import Model\n\nclass Base(Model): ...\n", "elsewhere.py")
    found = find(put(source))
    assert isinstance(found, Model) or (isinstance(found, type) and issubclass(found, Model))


@each("target", [
    "package.module:One", "package.module:Zoo.lion", "package/module.py:One", "package/module.py:Zoo.lion",
    "package.module", "package/module.py",
])  # fmt: skip
def test_a_model_is_found_by_file_or_by_module(target: str) -> None:
    put("", "package/__init__.py")
    put(f"{ONE}\nclass Zoo:\n    lion = One\n", "package/module.py")
    assert find(target).__name__ == "One"  # type: ignore[attr-defined]


@pytest.mark.parametrize(("source", "target", "words"), [
    (ONE, "nowhere.py", r"^there is no file nowhere\.py$"), (ONE, "nowhere.py:One", r"^there is no file nowhere\.py$"),
    (ONE, "nowhere.module:One", r"^there is no file or folder nowhere\.module, and no module named nowhere$"),
    (ONE, "modle", r"^there is no file or folder modle, and no module named modle; did you mean model\.py\?$"),
    (ONE, "trees.joblib:predict", r"^trees\.joblib is no Python code, .*; name trees\.joblib alone$"),
    (ONE, "model:Won", r"^model:Won: there is no 'Won' in model; its models: One$"),
    (ONE, "./nowhere", r"^there is no file or folder \./nowhere$"),
    (TWO, "model.py:Three", r"^model\.py:Three: there is no 'Three' in model; its models: One, Two$"),
    ("", "model.py:One", r"its models: none$"),
    (TWO, "model.py", r"^model\.py holds 2 models; name one: model\.py:One, model\.py:Two$"),
    ("from mpserve import Model\n", "model.py", r"^model\.py holds no model: expected .* or a function predict$"),
])  # fmt: skip
def test_a_target_without_a_model_is_told_in_one_sentence(source: str, target: str, words: str) -> None:
    put(source)
    put("", "trees.joblib")
    with pytest.raises(ConfigurationError, match=words):
        find(target)


@each("target", ["model.py", "model:One"])
@each("source, words", [
    ("def broken(:\n", "SyntaxError"), ("1 / 0\n", "ZeroDivisionError: division by zero"),
    ("import nosuchmodule\n", "ModuleNotFoundError: No module named 'nosuchmodule'"),
])  # fmt: skip
def test_code_that_cannot_be_imported_is_told_with_its_exception_as_the_cause(
    target: str, source: str, words: str
) -> None:
    put(source)
    with pytest.raises(ModelLoadError, match=rf"^the import of model.* failed: {words}") as raised:
        find(target)
    assert type(raised.value.__cause__).__name__ == words.partition(":")[0]


def test_a_file_named_like_a_module_that_is_imported_already_does_not_replace_it() -> None:
    import json

    assert find(put(ONE, "json.py")).__name__ == "One"  # type: ignore[attr-defined]
    assert sys.modules["json"] is json


def test_an_import_that_was_stopped_can_be_tried_again() -> None:
    """As a worker does when the file reached for CUDA in the arbiter."""
    put(f"import os\nfrom mpserve.errors import AcceleratorInArbiter\n{ONE}"
        "if not os.path.exists('worker'):\n    raise AcceleratorInArbiter('here')\n")  # fmt: skip
    with pytest.raises(AcceleratorInArbiter):
        find_in_file(Path("model.py"))
    assert "model" not in sys.modules
    Path("worker").touch()
    assert find_in_file(Path("model.py")).__module__ == "model"


GUARD = 'if __name__ == "__main__":\n    '
SCRIPTS = {
    "last line": (True, "ModelServer().start([m])"), "attribute": (True, "mpserve.ModelServer(workers=2).start([m])"),
    "two lines": (True, "server = ModelServer()\nserver.start([m])"),
    "guarded": (True, f"{GUARD}ModelServer().start([m])"),
    "with": (True, "with open(f) as f:\n    ModelServer().start([m])"),
    "main function": (True, f"def main():\n    ModelServer().start([m])\n{GUARD}main()"),
    "main function, attribute": (True, f"def main():\n    mpserve.ModelServer().start([m])\n{GUARD}main()"),
    "main function, not guarded": (True, "def main():\n    ModelServer().start([m])\nmain()"),
    "asynchronous main function": (True, "async def main():\n    ModelServer().start([m])\nasyncio.run(main())"),
    "function of a function": (True, "def serve():\n    ModelServer().start([])\ndef main():\n    serve()\nmain()"),
    "function that is not called": (False, "def main():\n    ModelServer().start([m])"),
    "functions that call each other": (False, "def a():\n    b()\ndef b():\n    a()\na()"),
    "method": (False, "class A:\n    def main(self):\n        ModelServer().start([m])"),
    "import": (False, "from mpserve import ModelServer"), "model": (False, ONE),
    "syntax error": (False, "ModelServer(:"), "null byte": (False, "ModelServer()\0"),
}  # fmt: skip


@each("expected, source", SCRIPTS.values())
def test_a_script_that_starts_a_server_is_told_from_a_file_that_holds_a_model(expected: bool, source: str) -> None:
    assert starts_server(Path(put(source))) is expected
    assert starts_server(Path("nowhere.py")) is False


NEIGHBOURLY = "import words\nfrom package import deep\n{one}    told = words.WORD, deep.WORD\n"


def put_version(version: str, word: str) -> Path:
    put(NEIGHBOURLY.format(one=ONE), f"m@{version}/model.py")
    put(f"WORD = {word!r}\n", f"m@{version}/words.py")
    put("", f"m@{version}/package/__init__.py")
    put(f"WORD = {word!r}\n", f"m@{version}/package/deep.py")
    return Path(f"m@{version}/model.py")


def test_each_file_has_the_modules_that_lie_beside_it_and_its_classes_can_be_pickled() -> None:
    for version, word in (("1", "one"), ("2", "two"), ("1", "another")):
        found = find_in_file(put_version(version, word))
        assert found.told == (word, word)  # type: ignore[attr-defined]
        assert pickle.loads(pickle.dumps(found)) is found


def test_a_file_that_was_changed_within_a_second_is_read_anew(tmp_path: Path) -> None:
    """A compilation that Python keeps would be taken for fresh: the size is the same, and the second too."""
    file = tmp_path / "model.py"
    for number in (1, 2):
        file.write_text(f"number = {number}\ndef predict(x): return x")
        os.utime(file, (1e9, 1e9))
        assert vars(find_in_file(file))["number"] == number


def test_a_module_from_elsewhere_stays_although_its_name_is_beside_a_file(tmp_path: Path) -> None:
    find_in_file(put_version("1", "one"))
    put("raise AssertionError\n", "m@2/json.py")
    put("raise AssertionError\n", "m@2/pytest/__init__.py")
    put(f"import json, pytest\n{ONE}    told = json, pytest", "m@2/model.py")
    assert find_in_file(Path("m@2/model.py")).told == (json, pytest)  # type: ignore[attr-defined]
