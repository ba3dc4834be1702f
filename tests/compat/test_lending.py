"""What scripts may import by the kserve SDK's names, and what they read who import something else."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from mpserve.compat.names import NAMES
from tests.cases import each
from tests.documents import ROOT

FRAMES = ("numpy", "starlette", "google", "grpc", "torch")

# FastAPI comes with other packages that the tests need. Whoever serves a script may not have it.
WITHOUT_FASTAPI = """
import importlib.machinery, json, sys

class Others(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, fullname, path=None, target=None):
        return None if fullname.partition(".")[0] == "fastapi" else super().find_spec(fullname, path, target)

sys.meta_path[sys.meta_path.index(importlib.machinery.PathFinder)] = Others
"""


def run(code: str, *folders: Path, before_sdk: bool = True) -> "subprocess.CompletedProcess[str]":
    """Python code behind ``lend()``, in a process of its own."""
    env = {"PYTHONPATH": os.pathsep.join(map(str, [ROOT, *folders])), "PATH": "/usr/bin"}
    lines = f"{WITHOUT_FASTAPI}\nfrom mpserve.compat.lending import lend\nlend({before_sdk})\n{code}"
    return subprocess.run(
        [sys.executable, "-c", lines], env=env, capture_output=True, text=True, timeout=60, check=False
    )


def printed(code: str, *folders: Path, before_sdk: bool = True) -> str:
    ended = run(code, *folders, before_sdk=before_sdk)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.strip()


def test_every_name_that_is_lent_is_there() -> None:
    lines = [f"from {module} import {', '.join(names)}" for module, names in NAMES.items() if names]
    assert printed("\n".join([*(f"import {module}" for module in NAMES), *lines])) == ""


@each("theirs, ours", [
    ("kserve.Model", "mpserve.Model"), ("kserve.model_server.ModelServer", "mpserve.ModelServer"),
    ("kserve.protocol.infer_type.InferInput", "mpserve.InferInput"),
    ("kserve.errors.InvalidInput", "mpserve.InvalidInput"), ("kserve.constants.KSERVE_LOGLEVEL", "'INFO'"),
    ("kserve.utils.utils.strtobool('no')", "False"),
])  # fmt: skip
def test_a_name_stands_for_what_mpserve_has(theirs: str, ours: str) -> None:
    assert printed(f"import kserve, mpserve; print({theirs} == {ours})") == "True"


def test_the_document_lists_the_names_that_are_lent() -> None:
    listed: dict[str, list[str]] = {}
    for line in (ROOT / "docs" / "coming-from" / "kserve.md").read_text().splitlines():
        if line.startswith("| `"):
            modules, names = (re.findall(r"`([\w.]+)`", cell) for cell in line.split("|")[1:3])
            listed |= dict.fromkeys(modules, names)
    assert listed == {module: sorted(names) for module, names in NAMES.items() if names}


def test_nothing_is_imported_before_a_script_asks_for_it() -> None:
    code = "import kserve, kserve.model_server, kserve.utils.utils; print(json.dumps(list(sys.modules)))"
    assert not {name.partition(".")[0] for name in json.loads(printed(code))} & set(FRAMES)


@each("code, words", [
    ("from kserve import KServeClient", "kserve.KServeClient is not lent: .* install kserve for its clients"),
    ("from kserve import V1beta1PredictorSpec", "kserve.V1beta1PredictorSpec is not lent: "),
    ("from kserve.ray import RayModel",
        "kserve.ray is not lent: .* no Ray; serve the class itself, with --workers"),
    ("from kserve.protocol.rest.openai import OpenAIModel", "does not offer the OpenAI protocol"),
    ("from kserve.protocol.rest.timeseries.types import X", "does not offer the time-series protocol"),
    ("from kserve.errors import Nothing", "kserve.errors.Nothing is not among .* these are: InferenceError, "),
    ("import kserve.nothing",
        "kserve.nothing is not among the names that mpserve lends; of kserve these are: Model"),
    ("import kserve; kserve.nothing", "kserve.nothing is not among the names"),
    ("from fastapi import FastAPI", "fastapi.FastAPI is not lent: .* pip install fastapi"),
    ("from kserve.model_server import app; app.get('/')", "app.get needs FastAPI, which is not installed"),
])  # fmt: skip
def test_what_is_not_lent_is_refused_in_words(code: str, words: str) -> None:
    ended = run(code)
    assert ended.returncode == 1
    last = ended.stderr.splitlines()[-1]
    assert re.search(words, last), last
    assert last.endswith("See docs/coming-from/kserve.md") or "app.get" in code


SDK = {
    "__init__.py": "from .model import Model\nfrom .client import Client\nfrom .constants import constants\n",
    "model.py": "class Model: ...\n",
    "client.py": "from kserve import rest\nfrom .constants.constants import GROUP, PredictorProtocol\n"
    "from .errors import InvalidInput, ApiError\nfrom .model import Model\n"
    "class Client:\n    speaks, fault, model = PredictorProtocol, InvalidInput, Model\n",
    "constants/__init__.py": "",
    "constants/constants.py": "GROUP = 'serving.kserve.io'\nDEFAULT_HTTP_PORT = 1\nPredictorProtocol = 1\n",
    "errors.py": "class InvalidInput(Exception): ...\nclass ApiError(Exception): ...\n",
    "rest.py": "print('rest once')\n",
    "ray.py": "class RayModel: ...\n",
}
"""A package of the SDK's form: its modules import each other, as a whole and relatively, and have names that mpserve has not."""


@pytest.fixture
def sdk(tmp_path: Path) -> Path:
    for name, source in SDK.items():
        file = tmp_path / "kserve" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(source)
    return tmp_path


@each("code, said", [
    ("import kserve; print(kserve.Model.__module__)", "mpserve.serving.models.model"),
    ("from kserve import Model, ModelServer; print(ModelServer.__module__)", "mpserve.server"),
    # The clients are the SDK's, and what these import is mpserve's where mpserve has it.
    ("from kserve import Client; from kserve.errors import InvalidInput; import mpserve\n"
     "print(Client.__module__, Client.fault is InvalidInput is mpserve.InvalidInput, Client.model is mpserve.Model)",
     "rest once\nkserve.client True True"),
    ("from kserve.client import Client; import kserve; print(kserve.Client is Client, kserve.rest.__name__)",
     "rest once\nTrue kserve.rest"),
    ("from kserve import constants; print(constants.GROUP, constants.DEFAULT_HTTP_PORT)",
     "serving.kserve.io 8080"),
    ("from kserve.constants import constants; print(constants.GROUP)", "serving.kserve.io"),
    ("from kserve.errors import ApiError; print(ApiError.__module__)", "kserve.errors"),
    ("import kserve, inspect; inspect.getmodule(len); print(hasattr(kserve, '__file__'))", "False"),
])  # fmt: skip
def test_a_name_that_mpserve_lacks_is_the_sdks_where_that_is_installed(sdk: Path, code: str, said: str) -> None:
    assert printed(code, sdk) == said


@each("code, words", [
    ("import kserve.ray", "kserve.ray is not lent: .* no Ray"),
    ("from kserve import ray", "kserve.ray is not lent: .* no Ray"),
    ("import kserve.nothing", "No module named 'kserve.nothing'"),
    ("from kserve.errors import Nothing", "cannot import name 'Nothing' from 'kserve.errors'"),
    ("import kserve; kserve.nothing", "module 'kserve' has no attribute 'nothing'"),
])  # fmt: skip
def test_what_neither_has_is_an_error(sdk: Path, code: str, words: str) -> None:
    ended = run(code, sdk)
    assert ended.returncode == 1
    assert re.search(words, ended.stderr.splitlines()[-1])


def test_the_sdk_is_left_alone_if_its_names_are_asked_for(sdk: Path) -> None:
    assert printed("import kserve; print(kserve.Model.__module__)", sdk, before_sdk=False) == "rest once\nkserve.model"
