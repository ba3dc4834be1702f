"""The laws of the house: who may import whom, what each floor must not know, and how large a module may grow.

Imports are read from the source, those inside functions and under ``TYPE_CHECKING`` included.
"""

import ast
import json
import re
import subprocess
import sys
from collections import Counter
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import mpserve
from tests.cases import each

ROOT = Path(mpserve.__file__).parent
MAX_LINES = 400

FLOORS = {
    "errors": 0, "config": 0, "telemetry": 0, "state": 0, "version": 0, "descriptors": 0, "protocol": 1, "serving": 2, "http": 3,
    "grpc": 3, "runtimes": 3, "prefork": 4, "compat": 5, "server": 5, "cli": 5, "commands": 5, "testing": 5, "gunicorn_config": 5,
    "__init__": 5, "__main__": 5,
}  # fmt: skip
"""The floor of each module or folder directly in the package. What is new must be given one."""

ROOMS = {
    "serving": (
        "fitting", "models", "execution", "shared_memory", "storage", "authentication", "repository", "extensions", "inference",
    ),
    "http": ("server", "inference", "management"),
    "prefork": ("listener", "arbiter", "worker"),
}  # fmt: skip
"""The folders within a folder, where imports go from right to left only. Modules beside them may import all."""

FILES = 12
"""Modules of a folder, at most, besides ``__init__``."""

ASYNC = {"asyncio", "anyio", "uvloop"}
THREADS = {"threading", "concurrent", "queue", "_thread"}
INPUT_OUTPUT = {
    "socket", "ssl", "http", "urllib.request", "os", "pathlib", "subprocess", "tempfile", "shutil", "mmap", "signal",
}  # fmt: skip
WIRE = {"uvicorn", "httptools"}
HTTP = {"starlette", "fastapi", "httpx2"} | WIRE
GRPC = {"grpc", "grpc_health", "grpc_reflection"}
GUNICORN = {"gunicorn"}
FRAMEWORKS = {"torch", "tensorflow", "jax", "sklearn", "onnxruntime", "transformers"}
NUMPY = {"numpy", "ml_dtypes"}

FORBIDDEN = {
    "protocol": ASYNC | THREADS | INPUT_OUTPUT | HTTP | GRPC | GUNICORN | FRAMEWORKS,
    "serving": HTTP | GRPC | GUNICORN | FRAMEWORKS,
    "http": GRPC | GUNICORN | FRAMEWORKS,
    "grpc": HTTP | GUNICORN | FRAMEWORKS,
    "runtimes": HTTP | GRPC | GUNICORN,
    "prefork": FRAMEWORKS | NUMPY | WIRE,
    **dict.fromkeys([name for name, floor in FLOORS.items() if floor in (0, 5)], FRAMEWORKS | NUMPY),
    "compat": FRAMEWORKS,  # its parts are imported when a script names them
}
"""What the modules of a folder must not import, nor anything within it."""

GENERATED = ("_pb2", "_pb2_grpc")

MODULES = {
    ".".join(("mpserve", *path.relative_to(ROOT).with_suffix("").parts)): path for path in sorted(ROOT.rglob("*.py"))
}
OURS = {name: path for name, path in MODULES.items() if not name.endswith(GENERATED)}


TREES = {name: ast.parse(path.read_text()) for name, path in MODULES.items()}


def place(module: str) -> str:
    """The folder, or the module itself, directly in the package."""
    return module.split(".")[1] if "." in module else "__init__"


def imported(module: str) -> set[str]:
    """What a module imports, by full name: for ``from a import b`` both ``a`` and ``a.b``, if that is a module of ours."""
    names: set[str] = set()
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            assert node.module is not None
            names |= {
                f"{node.module}.{alias.name}" if f"{node.module}.{alias.name}" in MODULES else node.module
                for alias in node.names
            }
    return names


def own_imports(module: str) -> set[str]:
    """The modules of mpserve that a module imports; a package stands for its ``__init__``."""
    names = {name for name in imported(module) if name.partition(".")[0] == "mpserve"}
    return {name if name in MODULES else f"{name}.__init__" for name in names}


@each("module", MODULES)
def test_imports_go_down(module: str) -> None:
    floor = FLOORS[place(module)]
    for other in own_imports(module):
        same = place(other) == place(module)
        assert same or FLOORS[place(other)] < floor or (floor in (0, 5) and FLOORS[place(other)] == floor), (
            f"{module} (floor {floor}) imports {other} (floor {FLOORS[place(other)]})"
        )


@each("folder", ROOMS)
def test_imports_between_the_rooms_of_a_folder_go_one_way(folder: str) -> None:
    rooms = ROOMS[folder]

    def room_of(module: str) -> str:
        return module.split(".")[2]

    inside = [module for module in MODULES if module.startswith(f"mpserve.{folder}.")]
    for module in inside:
        for other in own_imports(module) & set(inside) if room_of(module) in rooms else ():
            if room_of(other) in rooms:
                assert rooms.index(room_of(other)) <= rooms.index(room_of(module)), f"{module} imports {other}"
            else:
                assert folder != "serving", f"{module} imports {other}, which is in no room"


def test_no_folder_outgrows_its_reader() -> None:
    sizes = Counter(path.parent for path in MODULES.values() if path.name != "__init__.py")
    assert {str(folder): size for folder, size in sizes.items() if size > FILES} == {}


def test_no_imports_go_in_a_circle() -> None:
    circle: list[str] = []
    try:
        TopologicalSorter({module: own_imports(module) for module in MODULES}).prepare()
    except CycleError as error:
        circle = error.args[1]
    assert not circle


@each("module", MODULES)
def test_no_floor_knows_what_it_must_not(module: str) -> None:
    known = {f"{name}." for name in imported(module)}
    assert not {name for name in known for other in FORBIDDEN[place(module)] if name.startswith(f"{other}.")}


def test_one_folder_knows_uvicorn_and_httptools_and_knows_no_application() -> None:
    server = {module for module in MODULES if module.startswith("mpserve.http.server")}
    knowing = {module for module in MODULES if WIRE & {name.partition(".")[0] for name in imported(module)}}
    assert knowing <= server
    assert {module for module in knowing if "uvicorn" in imported(module)} == {"mpserve.http.server.uvicorn"}
    for module in server:
        assert not {name.partition(".")[0] for name in imported(module)} & ({"starlette", "fastapi", "httpx2"} | NUMPY)
        assert {name for name in own_imports(module) if FLOORS[place(name)] > 0} <= server


@each("module", MODULES)
def test_multiprocessing_is_never_named(module: str) -> None:
    """Not imported, not looked up, not found by a string. prometheus_client's ``multiprocess`` is another thing."""
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(TREES[module])
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(TREES[module]):
        named = {
            ast.Name: lambda n: [n.id],
            ast.Attribute: lambda n: [n.attr],
            ast.alias: lambda n: [n.name],
            ast.ImportFrom: lambda n: [n.module or ""],
            ast.Constant: lambda n: [n.value] if isinstance(n.value, str) and id(n) not in docstrings else [],
        }.get(type(node), lambda n: [])(node)
        assert not any(re.search(r"\bmultiprocessing\b", name) for name in named), ast.dump(node)


@each("module", OURS)
def test_imports_are_absolute(module: str) -> None:
    assert not [node.lineno for node in ast.walk(TREES[module]) if isinstance(node, ast.ImportFrom) and node.level]


@each("module", [name for name, path in OURS.items() if path.read_text().strip()])
def test_every_module_says_what_it_does(module: str) -> None:
    assert ast.get_docstring(TREES[module])


@each("module", OURS)
def test_no_module_outgrows_its_reader(module: str) -> None:
    assert len(OURS[module].read_text().splitlines()) <= MAX_LINES


def users_of(names: set[str]) -> set[str]:
    """The modules that name such an attribute of anything."""
    walked = [(module, node) for module, tree in TREES.items() for node in ast.walk(tree)]
    return {module for module, node in walked if isinstance(node, ast.Attribute) and node.attr in names}


@each("names, home", [
    ({"WORKERS", "num_workers", "spawn_worker", "spawn_workers"}, "mpserve.prefork.arbiter.gunicorn"),
    ({"ValueClass", "_upper_bounds", "_buckets", "_sum"}, "mpserve.telemetry.prometheus"),
    ({"_lazy_init"}, "mpserve.prefork.arbiter.torch_cuda"),
])  # fmt: skip
def test_one_module_knows_the_private_names_of_each_package(names: set[str], home: str) -> None:
    assert users_of(names) <= {home}


def test_one_module_makes_the_models_threads() -> None:
    """The executor; prefork, which looks at threads and makes none for models, has its own reasons."""
    makers = users_of({"Thread", "ThreadPoolExecutor", "to_thread", "run_in_executor"})
    assert {module for module in makers if FLOORS[place(module)] < 4} == {"mpserve.serving.execution.executor"}


def test_one_module_touches_shared_memory() -> None:
    """Of the server's own; clients' memory is read and written, and not mapped."""
    mapping = {module for module in MODULES if "mmap" in imported(module)}
    assert mapping == {"mpserve.state.scoreboard"}


@each("module, absent", [
    ("mpserve", FRAMEWORKS | NUMPY | HTTP | GUNICORN | GRPC),
    ("mpserve.prefork.arbiter.application", FRAMEWORKS | NUMPY | HTTP | GRPC),
    ("mpserve.compat.lending", FRAMEWORKS | NUMPY | HTTP | GUNICORN | GRPC),
    ("mpserve.cli", FRAMEWORKS | HTTP | GRPC),
    ("mpserve.config.settings", FRAMEWORKS | NUMPY | HTTP | GUNICORN | GRPC),
    ("mpserve.serving.repository.core", FRAMEWORKS | HTTP | GUNICORN | GRPC),
    ("mpserve.http.app", FRAMEWORKS | GUNICORN | GRPC),
    ("mpserve.prefork.worker.gunicorn_worker", FRAMEWORKS | {"starlette"}),
    ("mpserve.http.server.connection", FRAMEWORKS | NUMPY | GUNICORN | GRPC | {"starlette", "uvicorn"}),
    ("mpserve.http.server.uvicorn", FRAMEWORKS | NUMPY | GUNICORN | GRPC | {"starlette"}),
])  # fmt: skip
def test_importing_a_module_does_not_bring(module: str, absent: set[str]) -> None:
    """What the arbiter imports every worker inherits, and native threads are limited before numpy or torch come."""
    program = f"import json, sys, {module}; print(json.dumps(sorted(sys.modules)))"
    printed = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout
    assert not absent & {name.partition(".")[0] for name in json.loads(printed)}
