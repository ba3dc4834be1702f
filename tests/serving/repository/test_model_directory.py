"""What lies in a model directory, and what it means at the start."""

from pathlib import Path

import pytest

from mpserve.config.settings import Settings
from mpserve.errors import ConfigurationError
from mpserve.serving.repository.model_directory import Place, find, find_all, places

SEVEN = "from mpserve import Model\n\nclass A(Model):\n    version = '7'\n"


def lay(directory: Path, *entries: str, code: str = SEVEN) -> None:
    """Folders with a ``model.py``, of a model that says version 7 of itself, and empty files."""
    for entry in entries:
        if entry.endswith("/"):
            (directory / entry).mkdir(exist_ok=True)
            (directory / entry / "model.py").write_text(code)
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


@pytest.mark.parametrize(("entries", "model_name", "expected"), [
    # The version of a folder wins over that of the class.
    (["a/", "m@2/", "m@10.1/"], None, [("a", "7", "a"), ("m", "10.1", "m"), ("m", "2", "m")]),
    # The only model takes the name that the server is given, with all its versions.
    (["m@1/", "m@2/"], "iris", [("iris", "1", "m"), ("iris", "2", "m")]),
    # A directory that holds a model itself is that model.
    (["m@2/", "./"], None, [("model", "7", "")]),
    (["m@2/", "./"], "renamed", [("renamed", "7", "")]),
])  # fmt: skip
def test_what_the_models_at_the_start_are_called(
    tmp_path: Path, entries: list[str], model_name: str | None, expected: list[tuple[str, str, str]]
) -> None:
    lay(tmp_path, *entries)
    assert models(tmp_path, model_name) == expected


@pytest.mark.e2e
def test_a_file_may_say_its_version_as_the_only_model_and_beside_a_target(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    torch.export.save(torch.export.export(torch.nn.Linear(1, 1), (torch.zeros(1),)), tmp_path / "net@4.5.pt2")
    lay(tmp_path, "m@2/")
    assert models(tmp_path) == [("net", "4.5", "")]
    settings = Settings(model_dir=str(tmp_path), target="model.py")
    [source] = find(settings, "net", [place.entry for place in places(settings)["net"]])
    assert (source.obtain().name, source.obtain().version, source.shelved) == ("net", "4.5", "net")


@pytest.mark.parametrize(("entries", "words"), [
    (["a/", "m@2/"], r"--model_name=iris can rename one model, and .* holds 2: a, m$"),
    (["@1/"], "'@1' names no model: expected NAME or NAME@VERSION"),
    (["m@/"], "'m@' names no model: expected NAME or NAME@VERSION"),
    (["m@1@2/"], "'m@1@2' names no model: expected NAME or NAME@VERSION"),
    (["notes.txt"], r"or folders that hold such; it holds: notes\.txt$"),
])  # fmt: skip
def test_a_directory_that_cannot_be_served_is_refused_in_words(tmp_path: Path, entries: list[str], words: str) -> None:
    lay(tmp_path, *entries)
    with pytest.raises(ConfigurationError, match=words):
        models(tmp_path, "iris")


@pytest.mark.parametrize(("entry", "words"), [("m@1", "holds no model"), ("m@2", "m@2 does not exist")])
def test_a_place_that_is_empty_or_holds_several_models_is_refused(tmp_path: Path, entry: str, words: str) -> None:
    lay(tmp_path, "m@1/", code="from mpserve import Model\nboth = [Model('a'), Model('b')]\n")
    with pytest.raises(ConfigurationError, match=words):
        find(Settings(model_dir=str(tmp_path)), "m", [entry])
