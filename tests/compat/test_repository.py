import asyncio
from pathlib import Path

import pytest

from mpserve import Model
from mpserve.compat.repository import Library, ModelRepository
from mpserve.errors import ModelLoadError
from tests.cases import each


class Loading(ModelRepository):
    """Loads a model by its folder, unless that is called bad."""

    async def load(self, name: str) -> bool:
        return self.load_model(name)

    def load_model(self, name: str) -> bool:
        if name == "bad":
            return False
        model = Model(name)
        model.load()
        self.update(model)
        return model.ready


@pytest.fixture
def repository(tmp_path: Path) -> Loading:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    (tmp_path / "file").touch()
    repository = Loading(str(tmp_path))
    repository.load_models()
    return repository


def test_models_are_held_by_name(repository: Loading) -> None:
    assert list(repository.get_models()) == ["a", "b"]
    assert asyncio.run(repository.is_model_ready("a"))
    assert not asyncio.run(repository.is_model_ready("c"))
    repository.unload("a")
    assert repository.get_model("a") is None
    with pytest.raises(KeyError, match="model with name a does not exist"):
        repository.unload("a")


def test_what_is_registered_is_served_as_it_is_and_made_anew_by_the_repository(repository: Loading) -> None:
    a, _ = Library(repository).registered()
    assert a.obtain() is repository.get_model("a")
    again = a.fresh().obtain()
    assert again is repository.get_model("a") is not a.obtain()
    assert (again.name, again.loaded) == ("a", False)  # Model.load is not overridden here


def test_a_model_under_a_second_name_is_a_copy_that_shares_what_it_holds(repository: Loading) -> None:
    original = Model("original")
    original.weights = [1]  # type: ignore[attr-defined]
    repository.update(original, "alias")
    alias = Library(repository).registered()[-1].obtain()
    assert (alias.name, original.name) == ("alias", "original")
    assert alias.weights is original.weights  # type: ignore[attr-defined]


def test_what_can_be_asked_for_are_the_folders(repository: Loading, tmp_path: Path) -> None:
    assert Library(repository).names() == ["a", "b"]
    (tmp_path / "c").mkdir()
    assert Library(repository).names() == ["a", "b", "c"]
    assert Library(ModelRepository("/nowhere")).names() == []


@each("repository", [Loading(), ModelRepository()])
def test_a_repository_that_loads_no_model_is_told_so(repository: ModelRepository) -> None:
    with pytest.raises(ModelLoadError, match=r"\.load\('bad'\) has loaded no model of that name"):
        Library(repository).source("bad").obtain()


def test_a_model_that_is_served_no_more_is_forgotten(repository: Loading) -> None:
    old = repository.get_model("a")
    assert old is not None
    repository.load_model("a")
    library = Library(repository)
    library.forget(old)
    assert list(repository.get_models()) == ["a", "b"]
    library.forget(repository.get_models()["a"])
    assert list(repository.get_models()) == ["b"]
