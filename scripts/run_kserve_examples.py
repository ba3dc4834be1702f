"""Serves KServe's own example models and servers, unchanged, by `mpserve serve`, and asks each what KServe's tests ask it.

Usage: run_kserve_examples.py KSERVE [FILE...]; KSERVE is a checkout of github.com/kserve/kserve, FILE a name that is printed.
Prints a line per file: its workers, what it was asked, what it answered; exits 1 if any did not answer as it should. Installs and
downloads nothing: scripts/stand_ins has what stands in for libraries that are not here, and for torchvision and its weights.

Not among them: huggingfaceserver (mpserve does not offer OpenAI's protocol), autogluonserver, and aiffairness, which declares
`--model_name` beside the SDK's parser, so that argparse refuses it under the SDK too.
"""

import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from subprocess import TimeoutExpired
from typing import Any

import numpy as np
from kserve_lab import STAND_INS, START_SECONDS, Failed, Lab
from sklearn.datasets import load_iris
from sklearn.neighbors import KNeighborsClassifier
from sklearn.tree import DecisionTreeClassifier

Answers = Iterator[tuple[str, Any]]
"""What a file was asked, and its answer; all answers of one file have to be alike."""
Ask = Callable[[Lab], Answers]


def thousandths(answer: Any) -> list[str]:
    """Numbers to three places, as KServe's tests compare them."""
    return [f"{value:.3f}" for value in np.asarray(answer).flatten()]


def scores(answer: Any) -> list[str]:
    """The five best of a picture."""
    best = np.asarray(answer).flatten()
    if len(best) != 5 or (np.diff(best) > 0).any():
        raise Failed(f"expected five scores, the best first; got {answer}")
    return thousandths(best)


def over_grpc(picture: Any) -> Any:
    """The gRPC request with the picture of a V1 request, as KServe's tests write it."""
    contents = {"bytes_contents": [picture["instances"][0]["image"]["b64"]]}
    return {"inputs": [{"name": "input-0", "shape": [], "datatype": "BYTES", "contents": contents}]}


def custom_model(lab: Lab) -> Answers:
    picture = lab.request("custom_model_input")
    with lab.serve("custom_model/model.py", "custom-model") as server:
        yield "V1", scores(server.v1(picture))
        yield "V2", scores(server.v2(lab.request("custom_model_input_v2")))
        yield "gRPC", scores(server.call(over_grpc(picture)))


def custom_model_grpc(lab: Lab) -> Answers:
    with lab.serve("custom_model/model_grpc.py", "custom-model") as server:
        yield "gRPC", scores(server.call(over_grpc(lab.request("custom_model_input"))))


def refused(lab: Lab, file: str, words: str) -> Answers:
    with lab.serve(file, "custom-model", ready=False) as server:
        server.process.wait(START_SECONDS)
    if not server.process.returncode or not (found := re.search(words, server.log.read_text())):
        raise Failed(f"expected the refusal {words!r}:\n{server.log.read_text()}")
    yield "refused", found[0]


def custom_transformer(lab: Lab) -> Answers:
    picture = lab.request("custom_model_input")
    for protocol, model in (("v1", "model.py"), ("v2", "model.py"), ("grpc-v2", "model_grpc.py")):
        with lab.serve(f"custom_model/{model}", "custom-model") as predictor:
            host = predictor.grpc if protocol == "grpc-v2" else predictor.http
            asking = (f"--predictor_host={host}", f"--predictor_protocol={protocol}")
            with lab.serve("custom_transformer/model.py", "custom-model", *asking) as server:
                yield f"V1 before {protocol}", scores(server.v1(picture))
                if protocol != "v1":
                    yield f"V2 before {protocol}", scores(server.v2(lab.request("custom_model_input_v2")))


def custom_transformer_grpc(lab: Lab) -> Answers:
    picture = over_grpc(lab.request("custom_model_input"))
    with lab.serve("custom_model/model_grpc.py", "custom-model") as predictor:
        yield "gRPC of the predictor", scores(predictor.call(picture))
        asking = ("--predictor_protocol=grpc-v2", f"--predictor_host={predictor.grpc}")
        with lab.serve("custom_transformer/model_grpc.py", "custom-model", *asking) as server:
            yield "gRPC", scores(server.call(picture))


def custom_tokenizer(lab: Lab) -> Answers:
    vocabulary = f"--vocab_file={lab.python / 'custom_tokenizer' / 'vocab.txt'}"
    with lab.serve(f"{STAND_INS / 'bert.py'}:Bert", "bert") as predictor:
        for protocol, host in (("v2", predictor.http), ("grpc-v2", predictor.grpc)):
            flags = (vocabulary, f"--predictor_host={host}", f"--predictor_protocol={protocol}")
            with lab.serve("custom_tokenizer/transformer.py", "bert", *flags) as server:
                yield f"V1 before {protocol}", server.v1(lab.request("qa"))


def kinds(answer: Any) -> Any:
    """Which kind of iris each row is; LightGBM tells how probable each is."""
    told = np.asarray(answer)
    return (told.argmax(axis=1) if told.ndim == 2 else told.astype(int)).tolist()


def irises(lab: Lab, package: str, folder: Path, *flags: str) -> Answers:
    """A server of model files: of one, and of a repository with the one in it."""
    for place, prefix in ((folder, ""), (folder.parent, "repository ")):
        with lab.serve(f"{package}/{package}/__main__.py", "model", f"--model_dir={place}", *flags) as server:
            yield f"{prefix}V1", kinds(server.v1(lab.request("iris_input")))
            yield f"{prefix}V2", kinds(server.v2(lab.request("iris_input_v2")))
            yield f"{prefix}gRPC", kinds(server.call(lab.request("iris_input_v2_grpc")))


def predictiveserver(lab: Lab) -> Answers:
    for framework, folder in FOLDERS.items():
        for what, answer in irises(lab, "predictiveserver", folder(lab), f"--framework={framework}"):
            yield f"{framework} {what}", answer


def pmmlserver(lab: Lab) -> Answers:
    models = f"--model_dir={lab.python / 'pmmlserver/pmmlserver/example_model/model'}"
    with lab.serve("pmmlserver/pmmlserver/__main__.py", "iris", models, workers=1) as server:
        yield "V1", server.v1(lab.request("pmml_input"))[0]["Species"]
        yield "V2", server.v2(lab.request("pmml-input-v2"))[0].decode()
        yield "gRPC", server.call(lab.request("pmml_input_v2_grpc"))[0].decode()


def paddleserver(lab: Lab) -> Answers:
    models = f"--model_dir={lab.python / 'paddleserver/paddleserver/inference_model'}"
    with lab.serve("paddleserver/paddleserver/__main__.py", "picture", models) as server:
        yield "V1", thousandths(server.v1(lab.request("jay")))
        yield "V2", thousandths(server.v2(lab.request("jay-v2")))


def graph_node(lab: Lab, file: str) -> Answers:
    with lab.serve(file, "node") as server:
        yield "V1", server.post("/v1/models/node:predict", lab.request("iris_input"))


def artexplainer(lab: Lab) -> Answers:
    """The explainer looks for a picture that is nearly the same, and is taken for another digit by the predictor."""
    dark_or_light = KNeighborsClassifier(1).fit([[-0.5] * 784, [0.5] * 784], [3, 4])
    models = f"--model_dir={lab.trained('digits', dark_or_light)}"
    with (
        lab.serve("sklearnserver/sklearnserver/__main__.py", "digits", models) as predictor,
        lab.serve("artexplainer/artserver/__main__.py", "digits", f"--predictor_host={predictor.http}") as server,
    ):
        told = server.infer("v1/models/digits:explain", lab.request("mnist_input_bw"))["explanations"]
        same = told["prediction"] == told["adversarial_prediction"]
        yield "V1 explain", "the same digit" if same else "another digit"


FOLDERS: dict[str, Callable[[Lab], Path]] = {
    "sklearn": lambda lab: lab.trained("sklearn", DecisionTreeClassifier().fit(*load_iris(return_X_y=True))),
    "xgboost": lambda lab: lab.example("xgboost", "xgbserver/xgbserver/example_model/json_model"),
    "lightgbm": lambda lab: lab.example("lightgbm", "lgbserver/lgbserver/example_model/model"),
}
"""Framework -> a folder with a model of irises."""
SUCCESS = (200, {"predictions": [{"message": "SUCCESS"}]})
NO_RAY = r"kserve\.ray\S* is not lent: [^.]*"

EXAMPLES: dict[str, tuple[Ask, Any]] = {
    "custom_model/model.py": (custom_model, None),
    "custom_model/model_grpc.py": (custom_model_grpc, None),
    "custom_model/model_remote.py": (partial(refused, file="custom_model/model_remote.py", words=NO_RAY), None),
    "custom_transformer/model.py": (custom_transformer, None),
    "custom_transformer/model_grpc.py": (custom_transformer_grpc, None),
    "custom_tokenizer/transformer.py": (custom_tokenizer, "John F. Kennedy"),
    "sklearnserver": (lambda lab: irises(lab, "sklearnserver", FOLDERS["sklearn"](lab)), [1, 1]),
    "xgbserver": (lambda lab: irises(lab, "xgbserver", FOLDERS["xgboost"](lab)), [1, 1]),
    "lgbserver": (lambda lab: irises(lab, "lgbserver", FOLDERS["lightgbm"](lab)), [1, 1]),
    "predictiveserver": (predictiveserver, [1, 1]),
    "pmmlserver": (pmmlserver, "setosa"),
    "paddleserver": (paddleserver, None),
    "artexplainer": (artexplainer, "another digit"),
    "test_resources/graph/success_200_isvc/model.py": (
        partial(graph_node, file="test_resources/graph/success_200_isvc/model.py"),
        SUCCESS,
    ),
    "test_resources/graph/error_404_isvc/model.py": (
        partial(graph_node, file="test_resources/graph/error_404_isvc/model.py"),
        (404, {"error": "Intentional 404 code"}),
    ),
}
"""File or package -> how it is asked, and the answer if that does not depend on the weights."""
NEEDED = {"artexplainer": "nest_asyncio"}
"""Package -> a library that nothing can stand in for."""


def verdict(lab: Lab, file: str) -> str:
    """What the file was asked and has answered.

    Raises:
        Failed: it was not served, one way of asking gave another answer than the first, or none is the expected one.
    """
    if file in NEEDED and find_spec(NEEDED[file]) is None:
        return f"skipped: {NEEDED[file]} is not installed"
    ask, expected = EXAMPLES[file]
    asked = []
    for what, answer in ask(lab):
        expected = answer if expected is None else expected
        if answer != expected:
            raise Failed(f"{what} was answered {answer}, expected {expected}")
        asked.append(what)
    workers = " or ".join(map(str, sorted(lab.workers(file))))
    on = f" on {workers} worker{'' if workers == '1' else 's'}" if workers else ""
    return f"{', '.join(asked)}{on}: {expected}"


def main(arguments: list[str]) -> int:
    """Try the named files, or all; return the exit status."""
    if not arguments or not (Path(arguments[0]) / "python").is_dir() or not {*arguments[1:]} <= EXAMPLES.keys():
        print(__doc__, *EXAMPLES, sep="\n", file=sys.stderr)
        return 2
    failures = 0
    with tempfile.TemporaryDirectory() as folder:
        lab = Lab(Path(arguments[0]).resolve(), Path(folder))
        print(f"KServe {(lab.python / 'VERSION').read_text().strip()}; stood in for: {', '.join(lab.stood_in)}")
        for file in arguments[1:] or EXAMPLES:
            try:
                print(f"{file}: {verdict(lab, file)}", flush=True)
            except (Failed, OSError, TimeoutExpired) as failure:
                failures += 1
                print(f"{file}: FAILED: {failure}", flush=True)
    return int(failures > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
