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


def run(code: str, *folders: Path, instead: bool = False) -> "subprocess.CompletedProcess[str]":
    """Python code behind ``lend()``, in a process of its own."""
    env = {"PYTHONPATH": os.pathsep.join(map(str, [ROOT, *folders])), "PATH": "/usr/bin"}
    lines = f"{WITHOUT_FASTAPI}\nfrom mpserve.compat.lending import lend\nlend({instead})\n{code}"
    return subprocess.run(
        [sys.executable, "-c", lines], env=env, capture_output=True, text=True, timeout=60, check=False
    )


def printed(code: str, *folders: Path, instead: bool = False) -> str:
    ended = run(code, *folders, instead=instead)
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
    for line in (ROOT / "docs" / "migrating-from-kserve.md").read_text().splitlines():
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
    assert last.endswith("See docs/migrating-from-kserve.md") or "app.get" in code


@pytest.mark.parametrize(("instead", "whose"), [(False, "kserve"), (True, "mpserve.serving.models.model")])
def test_the_sdk_is_left_alone_where_it_is_installed_unless_names_of_mpserve_are_asked_for(
    tmp_path: Path, instead: bool, whose: str
) -> None:
    (tmp_path / "kserve").mkdir()
    (tmp_path / "kserve" / "__init__.py").write_text("class Model: ...")
    assert printed("import kserve; print(kserve.Model.__module__)", tmp_path, instead=instead) == whose
