"""The mistakes of newcomers: what was typed, and what was said. Each answer names the thing and the way out."""

import shlex
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest

from tests.documents import ROOT
from tests.running import Server, serving

FILES = {
    "model.py": "from mpserve import Model\nclass Digits(Model):\n    name = 'digits'\n",
    "two.py": "from mpserve import Model\nclass One(Model): ...\nclass Two(Model): ...\n",
    "loads.py": "def load():\n    return 1\n",
    "later.py": "async def load():\n    return 1\ndef predict(model, x):\n    return x\n",
    "syntax.py": "def predict(x)\n    return x\n",
    "needs.py": "import torchh\ndef predict(x):\n    return x\n",
    "absent.py": "def load():\n    return open('weights.bin')\ndef predict(model, x):\n    return x\n",
    "built.py": "from mpserve import Model\nclass Built(Model):\n    def __init__(self):\n        self.size = 1 / 0\n",
    "wants.py": "from mpserve import Model\nclass Wants(Model):\n    def __init__(self, weights):\n        pass\n",
    "hello.py": "answer = 42\n",
    "web.py": "from starlette.applications import Starlette\nimport uvicorn\napp = Starlette()\n"
    "if __name__ == '__main__':\n    uvicorn.run(app)\n",
    "single.py": "from mpserve import Model, ModelServer\nif __name__ == '__main__':\n"
    "    ModelServer().start(Model('one'))\n",
    "option.py": "from mpserve import Model, ModelServer\nif __name__ == '__main__':\n"
    "    ModelServer(worker=2).start([Model('one')])\n",
    "starts.py": "from mpserve import Model, ModelServer\nModelServer().start([Model('one')])\n",
    "model.h5": "", "saved.pkl": "", "model.ipynb": "{}", "notes/notes.txt": "", "empty/": "",
    "log.yaml": "version: [1",
}  # fmt: skip


class Typed(NamedTuple):
    """What was typed: words of the command line, with variables before them."""

    words: str
    status: int
    said: str


TYPED = [
    Typed("mpserve model.py", 2,
        "there is no command 'model.py'; to serve it: mpserve serve model.py"),
    Typed("mpserve sevre model.py", 2,
        "there is no command 'sevre'; did you mean serve?"),
    Typed("mpserve serve", 2,
        "nothing to serve: name a target (mpserve serve model.py:Class) or a --model_dir"),
    Typed("mpserve serve modle.py", 2,
        "there is no file modle.py; did you mean model.py?"),
    Typed("mpserve serve ./model", 2,
        "there is no file or folder ./model; did you mean model.py?"),
    Typed("mpserve serve model.py:Digit", 2,
        "model.py:Digit: there is no 'Digit' in model; its models: Digits"),
    Typed("mpserve serve two.py", 2,
        "two.py holds 2 models; name one: two.py:One, two.py:Two"),
    Typed("mpserve serve two.py one.py", 2,
        "expected one TARGET, got another word: one.py"),
    Typed("mpserve serve loads.py", 2,
        "loads.py holds no model: expected a subclass or an instance of mpserve.Model, or a function predict"),
    Typed("mpserve serve loads.py:load", 2,
        "loads.py:load is no model: expected a subclass or an instance of mpserve.Model, got the function load"),
    Typed("mpserve serve later.py", 2,
        "later.py: the function load is async, expected a plain def"),
    Typed("mpserve serve hello.py", 2,
        "hello.py holds no model: expected a subclass or an instance of mpserve.Model, or a function predict"),
    Typed("mpserve serve web.py", 2,
        "web.py holds no model: expected a subclass or an instance of mpserve.Model, or a function predict; it "
        "holds a Starlette, a web application, which uvicorn, gunicorn or flask run serves"),
    Typed("mpserve serve web.py:app", 2,
        "web.py:app is no model: expected a subclass or an instance of mpserve.Model, got a Starlette, a web "
        "application"),
    Typed("mpserve serve wants.py", 2,
        "Wants(weights) cannot be constructed by mpserve: only a name can be passed. Make an instance in the "
        "file and name that instead."),
    Typed("mpserve serve model.h5", 2,
        "model.h5 is a Keras model: export it to ONNX (model.export) and serve the .onnx file, or write a "
        "model.py that loads it (docs/reference/models.md)"),
    Typed("mpserve serve model.ipynb", 2,
        "model.ipynb is a notebook: write its model into a model.py (docs/reference/models.md)"),
    Typed("mpserve serve saved.pkl --allow_pickle=no", 2,
        "saved.pkl is a pickle, which may run code of its author, and --allow_pickle=no refuses it; save the "
        "model with skops (.skops), which runs none"),
    Typed("mpserve serve empty", 2,
        "expected a model.py or exactly one of *.pt2, *.pt, *.pth, *.joblib, *.pkl, *.pickle, *.skops, *.json, "
        "*.ubj, *.bst, *.txt, *.cbm, *.onnx in empty, or folders that hold such; it holds: nothing"),
    Typed("mpserve serve notes", 2,
        "expected a model.py or exactly one of *.pt2, *.pt, *.pth, *.joblib, *.pkl, *.pickle, *.skops, *.json, "
        "*.ubj, *.bst, *.txt, *.cbm, *.onnx in notes, or folders that hold such; it holds: notes.txt"),
    Typed("mpserve serve --model_dir=models", 2,
        "model directory models does not exist"),
    Typed("mpserve serve model.py --model_dir=models", 2,
        "model directory models does not exist (--model_dir)"),
    Typed("mpserve serve htps://host/model.py", 2,
        "htps://host/model.py: expected a path, or an address that begins with s3://, gs://, az://, hf://, "
        "https://, http://, file://, pvc://"),
    Typed("mpserve serve model.py --workres=2", 2,
        "there is no flag --workres; did you mean --workers? mpserve serve --help-all lists the flags"),
    Typed("mpserve serve model.py --port 80", 2,
        "there is no flag --port; did you mean --http_port? mpserve serve --help-all lists the flags"),
    Typed("mpserve serve model.py --reload", 2,
        "there is no flag --reload; did you mean mpserve dev TARGET? mpserve serve --help-all lists the flags"),
    Typed("mpserve serve model.py --workers", 2,
        "--workers: got no value, expected a whole number, at least 1"),
    Typed("mpserve serve model.py --workers=two", 2,
        "workers (--workers, MPSERVE_WORKERS, WEB_CONCURRENCY): got 'two', expected a whole number, at least 1"),
    Typed("mpserve serve model.py --workers=0", 2,
        "workers (--workers, MPSERVE_WORKERS, WEB_CONCURRENCY): got '0', expected a whole number, at least 1"),
    Typed("mpserve serve model.py --log_level=verbose", 2,
        "log_level (--log_level, MPSERVE_LOG_LEVEL, KSERVE_LOGLEVEL): got 'verbose', expected one of debug, "
        "info, warning, error, critical"),
    Typed("mpserve serve model.py --devices=gpu", 2,
        "devices (--devices, MPSERVE_DEVICES): got 'gpu', expected auto, cpu or a list such as cuda:0,cuda:1"),
    Typed("mpserve serve model.py --host=http://localhost", 2,
        "host (--host, MPSERVE_HOST): got 'http://localhost', expected an address or a name without a port, such "
        "as 127.0.0.1, :: or localhost"),
    Typed("mpserve serve model.py --http_port=TAKEN", 1,
        "cannot listen on 127.0.0.1 port TAKEN (--host, --http_port): Address already in use"),
    Typed("mpserve serve model.py --ssl_keyfile=key.pem", 2,
        "ssl_keyfile: got 'key.pem' without ssl_certfile, expected both, or ssl_certfile alone"),
    Typed("mpserve serve model.py --log_config_file=log.yaml", 2,
        "log_config_file: log.yaml cannot be read: line 1: expected ',' or ']', but got '<stream end>'"),
    Typed("mpserve serve model.py --api_keys_file=keys", 2,
        "api_keys_file: keys cannot be read: No such file or directory"),
    Typed("mpserve serve syntax.py", 1,
        "the import of syntax.py failed: SyntaxError: expected ':' (syntax.py, line 1)"),
    Typed("mpserve serve needs.py", 1,
        "the import of needs.py failed: ModuleNotFoundError: No module named 'torchh'"),
    Typed("mpserve serve absent.py", 1,
        "load() of model absent failed: FileNotFoundError: [Errno 2] No such file or directory: 'weights.bin'"),
    Typed("mpserve serve built.py", 1,
        "the model's constructor failed: ZeroDivisionError: division by zero"),
    Typed("mpserve serve single.py", 2,
        "expected a list of models, got Model: start([model])"),
    Typed("mpserve serve option.py", 2,
        "worker: there is no such option, expected workers"),
    Typed("mpserve serve starts.py:Model", 2,
        "this file starts a server while it is imported to find a model in it: put ModelServer(...).start([...]) "
        'under `if __name__ == "__main__":`, or run the file as a script'),
    Typed("mpserve test starts.py", 2,
        "starts.py starts a server; name the model in it: starts.py:Class"),
    Typed("mpserve completion tcsh", 2,
        "completion: got tcsh, expected bash or zsh or fish"),
]  # fmt: skip

FORKS = """
import os, shlex, signal, sys
from mpserve.cli import main
import gunicorn.arbiter, mpserve.commands.dev, mpserve.commands.serve, mpserve.commands.test, mpserve.http.app
import mpserve.prefork.worker.gunicorn_worker

for line in sys.stdin:
    child = os.fork()
    if not child:
        signal.alarm(30)  # should it serve after all
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        said = os.open("said", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(said, 1)
        os.dup2(said, 2)
        words = shlex.split(line)
        while "=" in words[0]:
            os.environ.__setitem__(*words.pop(0).split("=", 1))
        main(words[1:])
        sys.exit()
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
"""Runs each line of its input as ``mpserve`` in a process of its own, forked where the server is imported already."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("newcomer")
    for name, source in FILES.items():
        file = folder / name
        (file if name.endswith("/") else file.parent).mkdir(exist_ok=True)
        if not name.endswith("/"):
            file.write_text(source)
    return folder


def test_what_is_typed_wrongly_is_told_with_the_way_out(folder: Path) -> None:
    env = {
        "PATH": "/usr/bin",
        "PYTHONPATH": str(ROOT),
        "MPSERVE_HOST": "127.0.0.1",
        "MPSERVE_ENABLE_GRPC": "no",
        "MPSERVE_HTTP_PORT": "0",
    }
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        subprocess.Popen(
            [sys.executable, "-c", FORKS], cwd=folder, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as forks,
    ):
        assert forks.stdin is not None
        assert forks.stdout is not None
        port = str(taken.getsockname()[1])
        answers = []
        for typed in TYPED:
            print(typed.words.replace("TAKEN", port), file=forks.stdin, flush=True)
            status = int(forks.stdout.readline())
            answers.append(Typed(typed.words, status, said((folder / "said").read_text().replace(port, "TAKEN"))))
        forks.stdin.close()
    check(answers, TYPED)


def said(output: str) -> str:
    """What a person reads last, without what a line of the log begins with. A list of the commands may follow."""
    told, _, _ = output.partition("\n\nUsage: ")
    last = told.strip().splitlines()[-1]
    if "Traceback" in told or "SyntaxError" in told:
        _, _, frames = told.partition("File ")
        assert "newcomer" in frames.partition("\n")[0], "the user's code comes first"
        assert "mpserve/" not in frames, "the server's code does not come at all"
    return last.partition("] mpserve: ")[2] or last.removeprefix("mpserve: ")


def check(answers: Sequence[Any], table: Sequence[Any]) -> None:
    wrong = [f"{answer!r}" for answer, expected in zip(answers, table, strict=True) if answer != expected]
    assert not wrong, "\n".join(wrong)
    assert max(len(answer.said) for answer in answers) < 330


MODELS = """
import numpy as np
from mpserve import Model, Tensor, TensorModel

class Iris(TensorModel):
    name = "iris"
    inputs = [Tensor("sepal", "FP32", [-1, 2])]
    outputs = [Tensor("species", "INT64", [-1])]
    def predict(self, sepal):
        return sepal.argmax(axis=1)

class Pair(TensorModel):
    name = "pair"
    inputs = [Tensor("x", "FP32", [-1]), Tensor("y", "INT64", [-1])]
    def predict(self, x):
        return x

class Set(Model):
    name = "set"
    def predict(self, payload, headers=None):
        return {"predictions": {1, 2}}

models = [Iris, Pair, Set]
"""


class Asked(NamedTuple):
    """What was asked: the words of curl after the address of the server, such as ``/path -d BODY``."""

    words: str
    status: int
    said: str


BODY = '{"inputs": [{"name": "sepal", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}]}'


def v1(instances: str) -> str:
    return f"/v1/models/iris:predict -d '{{\"instances\": {instances}}}'"


def v2(now: str = "", was: str = "") -> str:
    return f"/v2/models/iris/infer -d '{BODY.replace(was, now)}'"


ASKED = [
    Asked("/predict -d '{\"instances\": [[1, 2]]}'", 404,
        "there is no POST /predict; the nearest are POST /v1/models/{model}:predict, POST "
        "/v1/models/{model}:explain, POST /v2/models/{model}/infer, POST "
        "/v2/models/{model}/versions/{version}/infer. There are: iris, pair, set. GET /openapi.json lists all "
        "routes."),
    Asked("/v1/models/iris/predict -d '{}'", 404,
        "there is no POST /v1/models/iris/predict; the nearest are POST /v1/models/iris:predict, POST "
        "/v1/models/iris:explain, GET /v1/models, GET /v1/models/iris. GET /openapi.json lists all routes."),
    Asked("/v2/models/iris:predict -d '{}'", 405,
        "POST is not allowed on /v2/models/iris:predict; it takes GET, HEAD; the nearest that take POST are POST "
        "/v1/models/iris:predict, POST /v2/models/iris/infer, POST /v2/models/iris/versions/{version}/infer, "
        "POST /v2/models/iris/generate."),
    Asked("/v2/models/iris -d '{}'", 405,
        "POST is not allowed on /v2/models/iris; it takes GET, HEAD; the nearest that take POST are POST "
        "/v2/models/iris/infer, POST /v2/models/iris/versions/{version}/infer, POST /v2/models/iris/generate, "
        "POST /v2/models/iris/generate_stream."),
    Asked("/v2/model/iris/infer -d '{}'", 404,
        "there is no POST /v2/model/iris/infer; the nearest are POST /v2/models/iris/infer, POST "
        "/v2/models/iris/versions/{version}/infer, POST /v2/models/iris/generate, POST "
        "/v2/models/iris/generate_stream. GET /openapi.json lists all routes."),
    Asked("/models", 404,
        "there is no GET /models; the nearest are POST /v1/models/{model}:predict, POST "
        "/v1/models/{model}:explain, POST /v2/models/{model}/infer, POST "
        "/v2/models/{model}/versions/{version}/infer. There are: iris, pair, set. GET /openapi.json lists all "
        "routes."),
    Asked("/healthz", 404,
        "there is no GET /healthz; the nearest are GET /health, GET /v2/health/live, GET /v2/health/ready, POST "
        "/v1/models/{model}:predict. There are: iris, pair, set. GET /openapi.json lists all routes."),
    Asked("/v1/models/irs:predict -d '{}'", 404,
        "Model with name irs does not exist. There are: iris, pair, set."),
    Asked("/v1/models/iris:predict/ -d '{}'", 307,
        "the path is /v1/models/iris:predict"),
    Asked("/v1/models/iris:predict", 405,
        "GET is not allowed on /v1/models/iris:predict; it takes POST"),
    Asked("/v2/models/iris/versions/2/infer -d '{}'", 404,
        "Model with name iris@2 does not exist. There are: iris@1."),
    Asked("/v1/models/iris:explain -d '{\"instances\": [[1, 2]]}'", 501,
        "Model iris does not implement explain."),
    Asked("/docs", 404,
        "there is no GET /docs; --enable_docs_url turns it on"),
    Asked("/openai/v1/chat/completions -d '{}'", 501,
        "the OpenAI protocol is not offered here; ask /v1/models/{model}:predict or /v2/models/{model}/infer"),
    Asked(f"/v1/models/iris:predict -d '{BODY}'", 400,
        "the body is a V2 request; POST it to /v2/models/NAME/infer"),
    Asked("/v2/models/iris/infer -d '{\"instances\": [[1, 2]]}'", 400,
        "the request has no inputs, expected `inputs` to be a non-empty list of objects; POST a body with "
        "`instances` to /v1/models/NAME:predict"),
    Asked("/v1/models/iris:predict -d '{\"instance\": [[1, 2]]}'", 400,
        "expected a JSON object with a list of \"instances\", got 'instance'"),
    Asked("/v1/models/iris:predict -d '[[1, 2]]'", 400,
        "the body is a list, expected a JSON object"),
    Asked("/v1/models/iris:predict -d \"{'instances': [[1, 2]]}\"", 400,
        "Unrecognized request format: unexpected character, expected a string key: line 1 column 2 (char 1)"),
    Asked("/v1/models/iris:predict -d ''", 400,
        "Unrecognized request format: Input is a zero-length, empty document: line 1 column 1 (char 0)"),
    Asked(v1("[1, 2]"), 400,
        "input 'sepal': expected shape [-1, 2], got [2]; the first dimension counts the rows"),
    Asked(v1("[[1, 2, 3]]"), 400,
        "input 'sepal': expected shape [-1, 2], got [1, 3]"),
    Asked(v1("[[1, 2], [3]]"), 400,
        "input 'sepal': expected instances of one shape: numbers, booleans or strings"),
    Asked(v1('[["1", "2"]]'), 400,
        "input 'sepal': expected numbers for FP32, got a string"),
    Asked(v1("[[1, null]]"), 400,
        "input 'sepal': expected numbers, booleans or strings, got int and null"),
    Asked(v1('[{"petal": [1, 2]}]'), 400,
        "unexpected input 'petal'; expected 'sepal'"),
    Asked(v2('"x"', '"sepal"'), 400,
        "unexpected input 'x'; expected 'sepal'"),
    Asked(v2('"shape": [2]', '"shape": [1, 2]'), 400,
        "input 'sepal': expected shape [-1, 2], got [2]; the first dimension counts the rows"),
    Asked(v2('"shape": [1, 3]', '"shape": [1, 2]'), 400,
        "input 'sepal': expected 3 elements for shape [1,3], got 2"),
    Asked(v2("float32", "FP32"), 400,
        "input 'sepal': unknown datatype 'FLOAT32', expected one of BOOL UINT8 UINT16 UINT32 UINT64 INT8 INT16 "
        "INT32 INT64 FP16 FP32 FP64 BYTES BF16; did you mean FP32?"),
    Asked(v2("INT64", "FP32"), 400,
        "input 'sepal': expected datatype FP32, got INT64"),
    Asked(v2("", '"shape": [1, 2], '), 400,
        "input 'sepal': shape is null, expected a list of integers"),
    Asked("/v1/models/pair:predict -d '{\"instances\": [[1, 2]]}'", 500,
        "TypeError : Pair.predict() takes 2 positional arguments but 3 were given"),
    Asked("/v1/models/set:predict -d '{\"instances\": [1]}'", 500,
        "the model's result cannot be written as JSON: Type is not JSON serializable: set"),
    Asked("/v2/repository/models/nope/load -X POST", 404,
        "Model with name nope does not exist. There are: iris, pair, set."),
]  # fmt: skip


def test_what_is_asked_wrongly_is_told_with_the_way_out(tmp_path: Path) -> None:
    with serving(tmp_path, MODELS, target="model.py:models") as server:
        server.wait_ready()
        answers = [(asked.words, ask(server, asked.words)) for asked in ASKED]
    check([Asked(words, answer.status_code, answer.json()["error"]) for words, answer in answers], ASKED)


def ask(server: Server, words: str) -> httpx.Response:
    """The answer to curl's words."""
    path, *rest = shlex.split(words)
    given = dict(zip(rest[::2], rest[1::2], strict=True))
    headers = {"content-type": "application/x-www-form-urlencoded"} if "-d" in given else {}
    if "-H" in given:
        headers |= [given["-H"].split(": ")]
    method = given.get("-X", "POST" if "-d" in given else "GET")
    return server.client.request(method, path, content=given.get("-d"), headers=headers)
