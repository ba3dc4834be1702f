"""How files and folders are recognised: by their endings, their first bytes, and the settings beside them."""

import io
import json
import logging
import zipfile
from collections.abc import Mapping
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

from mpserve.config.settings import Settings
from mpserve.errors import ConfigurationError
from mpserve.serving.models.tensor_model import TensorModel
from mpserve.serving.repository import formats
from mpserve.serving.repository.formats import Format, format_of
from mpserve.serving.repository.loader import from_directory, from_target
from mpserve.serving.repository.model_directory import find_all, places, taken_as_directory


class Held(TensorModel):
    """A model of a format that only these tests have."""

    def __init__(self, name: str, path: Path, predict_proba: bool) -> None:
        super().__init__(name)
        self.path, self.predict_proba = path, predict_proba


HELD = Format("held", f"{__name__}:Held", "held[all]", (".held",), files=("HELD", "*.weights"), options=("predict_proba",),
              implementations=("held.Held",))  # fmt: skip
MISSING = Format("missing", "nowhere.at_all:Missing", "nowhere", (".missing",))


@pytest.fixture(autouse=True)
def _held(monkeypatch: pytest.MonkeyPatch) -> None:
    """The formats above are known, as by entry points of another package."""
    monkeypatch.setattr(formats, "formats", lambda: (HELD, MISSING, *formats.FORMATS))
    monkeypatch.setattr(HELD.__class__, "load_class", _load_class)


LOAD_CLASS = Format.load_class


def _load_class(format_: Format, path: Path) -> Any:
    return Held if format_ is HELD else LOAD_CLASS(format_, path)  # pytest imports this file under a name of its own


def zipped(*names: str) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name in names:
            archive.writestr(name, "")
    return file.getvalue()


def lay(directory: Path, files: Mapping[str, Any]) -> Path:
    for name, content in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(content) if isinstance(content, dict) else content
        path.write_bytes(text.encode() if isinstance(text, str) else text)
    return directory


@pytest.mark.parametrize(("file", "content", "expected"), [
    ("a.json", b'{"learner":{"attributes":{}}}', "XGBoost"), ("a.json", b'\n {"version":[3,2,0],', "XGBoost"),
    ("a.json", b'{"name": "a"}', None), ("a.json", b"", None),
    ("a.ubj", b"{L\0\0\0\0\0\0\0\x07learner{L", "XGBoost"), ("a.bst", b"{L\0\0\0\0\0\0\0\x07learner{L", "XGBoost"),
    ("a.bst", b"tree\nversion=v4\n", "LightGBM"), ("a.txt", b"tree\r\nversion=v4\r\n", "LightGBM"),
    ("a.txt", b"numpy>=2\n", None), ("a.bst", b"else", None), ("requirements.txt", b"tree-sitter\n", None),
    ("a.PT2", b"", "torch.export"), ("a.pt", zipped("a/code/a.py", "a/constants.pkl"), "TorchScript"),
    ("a.pt", zipped("a/data.pkl", "a/data/0"), None), ("a.pth", b"\x80\x02\x8a\nl", None), ("a.joblib", b"", "scikit-learn"),
    ("a.pkl", b"", "scikit-learn"), ("a.skops", b"", "skops"), ("a.cbm", b"CBM1", "CatBoost"), ("a.held", b"", "held"),
    ("held", b"", None), ("model.py", b"", None),
])  # fmt: skip
def test_a_file_is_recognised_by_its_ending_and_its_first_bytes(
    tmp_path: Path, file: str, content: bytes, expected: str | None
) -> None:
    (tmp_path / file).write_bytes(content)
    found = format_of(tmp_path / file)
    assert (found and found.name) == expected


@pytest.mark.parametrize(("files", "words"), [
    ({"a.pt": zipped("a/data.pkl")}, r"a\.pt is a state_dict of torch, which holds weights and no network: save the network"),
    ({"1/saved_model.pb": b""}, r"saved_model\.pb is a TensorFlow SavedModel: convert it with tf2onnx"),
    ({"a.pmml": b""}, r"a\.pmml is a PMML document: serve the model that it was made from"),
    ({"a.pdmodel": b"", "a.pdiparams": b""}, r": a\.pdiparams is a Paddle model: convert it with paddle2onnx[^;]*$"),
    ({"a.plan": b""}, r"a\.plan is a TensorRT plan, which runs on one kind of GPU only: serve the \.onnx file"),
    ({"a.mar": b""}, r"a\.mar is an archive of TorchServe: unpack it"),
    ({"notes.md": b""}, r"expected a model\.py or exactly one of .*\.joblib.* or folders .*; it holds: notes\.md$"),
    ({"a.held": b"", "b.pkl": b""}, r"exactly one of .*it holds: a\.held, b\.pkl$"),
    ({"a.missing": b""}, r"a\.missing needs nowhere, which is not installed: pip install 'nowhere'"),
])  # fmt: skip
def test_what_cannot_be_served_is_told_with_what_to_do(tmp_path: Path, files: dict[str, bytes], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        find_all(Settings(model_dir=str(lay(tmp_path, files))))


def test_a_file_that_is_named_itself_is_told_alike(tmp_path: Path) -> None:
    lay(tmp_path, {"a.pmml": b"", "notes.md": b""})
    for target, words in ((tmp_path / "a.pmml", "is a PMML document"), (tmp_path / "notes.md", "no model of a known format"),
                          (tmp_path / "gone.joblib", r"there is no file .*gone\.joblib$")):  # fmt: skip
        with pytest.raises(ConfigurationError, match=words):
            from_target(str(target), None)


@pytest.mark.parametrize(("files", "target", "model_name", "expected"), [
    # A file, a folder with one, a folder that is a model itself.
    ({"iris@3.held": b""}, "iris@3.held", None, [("iris", "3", "iris@3.held")]),
    ({"a.held": b"", "notes.txt": b""}, "", "named", [("named", "1", "a.held")]),
    ({"m/HELD": b"", "m/0.weights": b""}, "m", None, [("m", "1", "m")]),
    # A folder for each model and version, as mpserve, Triton and TensorFlow Serving have them.
    ({"a/x.held": b"", "b@2/y.held": b"", "b@3/y.held": b""}, "", None,
     [("a", "1", "x.held"), ("b", "2", "y.held"), ("b", "3", "y.held")]),
    ({"a/1/x.held": b"", "a/12/x.held": b""}, "", None, [("a", "1", "x.held"), ("a", "12", "x.held")]),
    ({"a/1/x.held": b"", "a/12/x.held": b"", "a/config.pbtxt": b""}, "", None, [("a", "12", "x.held")]),
    ({"1/x.held": b"", "2/x.held": b""}, "", "iris", [("iris", "1", "x.held"), ("iris", "2", "x.held")]),
    # MLServer's settings.
    ({"a/x.held": b"", "a/y.held": b"", "a/model-settings.json": 
      {"name": "iris", "implementation": "held.Held", "parameters": {"uri": "./y.held", "version": "v1.2"}}}, "", None,
     [("iris", "v1.2", "y.held")]),
    ({"x.data": b"", "model-settings.json": {"implementation": "held.Held", "parameters": {"uri": "x.data"}}},
     "", None, [("x", "1", "x.data")]),
    ({"runs/0/model/HELD": b"", "runs/0/model/0.weights": b"", "model-settings.json":
      {"name": "iris", "parameters": {"uri": "./runs/0/model", "version": "v2"}}}, "", None, [("iris", "v2", "model")]),
    ({"files/x.held": b"", "a/model-settings.json": {"name": "iris", "parameters": {"uri": "../files"}}}, "a", None,
     [("iris", "1", "x.held")]),
    ({"x.held": b"", "model-settings.json": {"name": "iris"}}, "x.held", None, [("iris", "1", "x.held")]),
    ({"x.held": b"", "model-settings.json": {"name": "iris", "parameters": {"uri": "other"}}}, "x.held", None,
     [("x", "1", "x.held")]),
])  # fmt: skip
def test_names_and_versions_come_from_folders_files_and_settings(
    tmp_path: Path, files: dict[str, Any], target: str, model_name: str | None, expected: list[tuple[str, str, str]]
) -> None:
    lay(tmp_path, files)
    settings = taken_as_directory(Settings(target=str(tmp_path / target), model_name=model_name))
    if settings.target is None:
        sources = find_all(settings)
        listed = {(name, place.version or "1") for name, there in places(settings).items() for place in there}
        if all(source.shelved for source in sources):
            assert {(source.shelved, source.version or "1") for source in sources} == listed
    else:
        sources = from_target(settings.target, model_name, settings)
    models = [source.obtain() for source in sources]
    assert [(model.name, model.version, model.path.name) for model in models] == expected  # type: ignore[attr-defined]


def test_a_uri_may_be_absolute_or_a_file_url(tmp_path: Path) -> None:
    lay(tmp_path, {"files/x y.held": b""})
    for uri in (str(tmp_path / "files" / "x y.held"), f"file://{tmp_path}/files/x%20y.held"):
        lay(tmp_path, {"a/model-settings.json": {"name": "iris", "parameters": {"uri": uri}}})
        [source] = from_directory(tmp_path / "a", None)
        assert (source.obtain().name, source.obtain().path.name) == ("iris", "x y.held")  # type: ignore[attr-defined]


def test_settings_of_mlserver_set_the_batches_and_what_has_no_effect_is_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    told = {
        "max_batch_size": 32,
        "max_batch_time": 0.05,
        "parallel_workers": 4,
        "inputs": [],
        "parameters": {"extra": {"predict_fn": "predict_proba", "other": 1}},
    }
    lay(tmp_path, {"a.held": b"", "model-settings.json": told, "settings.json": {"debug": "true"}})
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            [source] = from_directory(tmp_path, None, Settings(predict_proba=True))
            model = source.obtain()
    assert isinstance(model, Held)
    assert (model.max_batch_size, model.max_batch_delay, model.predict_proba) == (32, 0.05, True)
    [line] = [record.getMessage() for record in caplog.records]
    assert model.preferred_output == "predict_proba"
    assert line.endswith(
        "model-settings.json: without effect here: parallel_workers, parameters.extra.other, the file settings.json"
        " (docs/reference/options.md has the options)"
    )


@pytest.mark.parametrize(("content", "words"), [
    (b"{", "model-settings.json cannot be read"), (b"[]", "expected a JSON object, got list"),
    ({"name": 1}, "name is 1, expected a text"), ({"parameters": {"uri": "s3://b/x"}}, "expected a path beside the file"),
    ({"max_batch_size": "8"}, "max_batch_size is '8', expected a whole number"),
    ({"parameters": {"uri": "gone.held"}}, r"there is no file .*gone\.held"),
    ({"implementation": "mine.Model", "parameters": {"uri": "a.data"}},
     r"a\.data is no model of a known format, which model-settings\.json gives to mine\.Model; expected"),
])  # fmt: skip
def test_settings_that_cannot_be_followed_are_refused(tmp_path: Path, content: Any, words: str) -> None:
    lay(tmp_path, {"a.data": b"", "model-settings.json": content})
    with pytest.raises(ConfigurationError, match=words):
        from_directory(tmp_path, None)


def test_pickles_are_refused_if_they_are_not_allowed(tmp_path: Path) -> None:
    for file in ("a.joblib", "b.pkl", "c.pickle"):
        (tmp_path / file).touch()
        with pytest.raises(
            ConfigurationError, match=f"{file} is a pickle, which may run code .* save the model with skops"
        ):
            from_target(str(tmp_path / file), None, Settings(allow_pickle=False))


def test_a_folder_of_mlflow_may_run_code(tmp_path: Path) -> None:
    lay(tmp_path, {"MLmodel": "flavors: {}"})
    with pytest.raises(ConfigurationError, match="is a folder of MLflow, which may run code of its author"):
        from_directory(tmp_path, None, Settings(allow_pickle=False))


def test_a_python_package_is_a_module_unless_it_is_named_as_a_folder(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    lay(tmp_path, {"package/__init__.py": "", "folder/a.held": ""})
    for target, folder in (("package", None), ("./package", "./package"), ("folder", "folder"), ("gone", None)):
        assert taken_as_directory(Settings(target=target)).model_dir == folder


def test_other_packages_add_formats_by_entry_points(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    points = [EntryPoint("mine", "mpserve.serving.repository.formats:FORMATS", formats.GROUP)]
    monkeypatch.setattr(formats, "entry_points", lambda group: points if group == formats.GROUP else [])
    formats.formats.cache_clear()
    with pytest.raises(
        ConfigurationError, match=r"mine = mpserve\S* of mpserve\.runtimes is a tuple, expected a Format"
    ):
        formats.formats()
    points[:] = [EntryPoint("mine", "nowhere.at_all:FORMAT", formats.GROUP)]
    with pytest.raises(
        ConfigurationError, match=r"mine = nowhere\.at_all:FORMAT of .* cannot be imported: No module named"
    ):
        formats.formats()
    monkeypatch.setattr(formats, "MINE", HELD, raising=False)
    points[:] = [EntryPoint("mine", "mpserve.serving.repository.formats:MINE", formats.GROUP)]
    assert formats.formats()[0] is HELD
    formats.formats.cache_clear()
