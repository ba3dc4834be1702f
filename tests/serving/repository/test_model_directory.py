"""What lies in a model directory, and what it means at the start."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mpserve.config.settings import Settings
from mpserve.errors import ConfigurationError
from mpserve.serving.repository.model_directory import Place, find, find_all, places

CODE = """
from mpserve import Model
class A(Model):
    version = {version!r}
"""


@pytest.fixture(autouse=True)
def leaves_no_modules(tmp_path: Path) -> Iterator[None]:
    yield
    for name, module in list(sys.modules.items()):
        if str(tmp_path) in str(getattr(module, "__file__", None)):
            del sys.modules[name]


def lay(directory: Path, *entries: str) -> None:
    """Folders with a ``model.py``, of a model that says version 7 of itself, and empty files."""
    for entry in entries:
        if entry.endswith("/"):
            (directory / entry).mkdir()
            (directory / entry / "model.py").write_text(CODE.format(version="7"))
        else:
            (directory / entry).touch()


def models(directory: Path, model_name: str | None = None) -> list[tuple[str, str, str]]:
    sources = find_all(Settings(model_dir=str(directory), model_name=model_name))
    return [(source.obtain().name, source.obtain().version, source.shelved) for source in sources]


def test_folders_are_models_and_versions_of_models(tmp_path: Path) -> None:
    lay(tmp_path, "a/", "m@2/", "m@10/", "..data/", "notes.txt", "a.pt", "b@3.pt")
    (tmp_path / "empty@1").mkdir()
    folders = {"a": [Place("a", "")], "m": [Place("m@10", "10"), Place("m@2", "2")]}
    assert places(Settings(model_dir=str(tmp_path))) == folders
    files = {"a": [Place("a", ""), Place("a.pt", "")], "b": [Place("b@3.pt", "3")]}
    assert places(Settings(model_dir=str(tmp_path), target="model.py")) == folders | files
    assert places(Settings()) == places(Settings(model_dir=str(tmp_path / "nowhere"))) == {}


def test_the_version_of_a_folder_wins_over_that_of_the_class(tmp_path: Path) -> None:
    lay(tmp_path, "a/", "m@2/", "m@10.1/")
    assert models(tmp_path) == [("a", "7", "a"), ("m", "10.1", "m"), ("m", "2", "m")]


def test_a_directory_that_holds_a_model_itself_is_that_model(tmp_path: Path) -> None:
    lay(tmp_path, "m@2/")
    (tmp_path / "model.py").write_text(CODE.format(version="3"))
    assert models(tmp_path) == [("model", "3", "")]
    assert models(tmp_path, "renamed") == [("renamed", "3", "")]


@pytest.mark.e2e
def test_a_file_may_say_its_version_as_the_only_model_and_beside_a_target(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    torch.export.save(torch.export.export(torch.nn.Linear(1, 1), (torch.zeros(1),)), tmp_path / "net@4.5.pt2")
    lay(tmp_path, "m@2/")
    assert models(tmp_path) == [("net", "4.5", "")]
    settings = Settings(model_dir=str(tmp_path), target="model.py")
    [source] = find(settings, "net", [place.entry for place in places(settings)["net"]])
    assert (source.obtain().name, source.obtain().version, source.shelved) == ("net", "4.5", "net")


def test_one_model_takes_the_name_that_the_server_is_given_with_all_its_versions(tmp_path: Path) -> None:
    lay(tmp_path, "m@1/", "m@2/")
    assert models(tmp_path, "iris") == [("iris", "1", "m"), ("iris", "2", "m")]


def test_several_models_cannot_take_one_name(tmp_path: Path) -> None:
    lay(tmp_path, "a/", "m@2/")
    with pytest.raises(ConfigurationError, match=r"--model_name=iris can rename one model, and .* holds 2: a, m$"):
        models(tmp_path, "iris")


@pytest.mark.parametrize("entry", ["@1/", "m@/", "m@1@2/"])
def test_a_folder_whose_name_cannot_be_is_refused(tmp_path: Path, entry: str) -> None:
    lay(tmp_path, "a/", entry)
    with pytest.raises(ConfigurationError, match=f"'{entry[:-1]}' names no model: expected NAME or NAME@VERSION"):
        models(tmp_path)


def test_a_place_that_is_empty_or_holds_several_models_is_refused(tmp_path: Path) -> None:
    lay(tmp_path, "m@1/")
    (tmp_path / "m@1" / "model.py").write_text("from mpserve import Model\nboth = [Model('a'), Model('b')]\n")
    settings = Settings(model_dir=str(tmp_path))
    with pytest.raises(ConfigurationError, match="holds no model"):
        find(settings, "m", ["m@1"])
    with pytest.raises(ConfigurationError, match=r"model directory .*m@2 does not exist"):
        find(settings, "m", ["m@2"])


def test_a_directory_without_any_model_says_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigurationError, match=r"or folders that hold such; it holds: empty$"):
        models(tmp_path)
