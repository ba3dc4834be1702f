"""The table of docs/files.md that says what is tested of each format; each of its cells is a test here."""

import json
import re
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np
import pandas
import pytest
import skops.io
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder

from mpserve.protocol.protobuf import inference_pb2 as pb
from tests.documents import ROOT
from tests.e2e.calls import call
from tests.e2e.workers import of_each_worker
from tests.running import PATIENCE, Server, eventually, free_port, running
from tests.runtimes.model_files import (
    ROWS,
    cat,
    cat_categories,
    labels,
    lgb,
    lgb_categories,
    place,
    safe,
    table,
    xgb_booster,
    xgb_categories,
)

DTYPES = {"FP32": np.float32, "FP64": np.float64, "INT64": np.int64, "BYTES": object}
ZONES = ["Oslo", "Paris", "Rome"]
PEOPLE = [["Paris", "pro", 50, 41000.5], ["Rome", None, 23, 52000.0]]
PLACES = [["Rome", 40.5], ["Oslo", 55.25], ["Paris", 60.5]]


def safe_text(folder: Path) -> Callable[[Any], Any]:
    rows = np.array([[zone] for zone in ZONES], dtype=object)
    model = make_pipeline(OneHotEncoder(), LogisticRegression()).fit(rows, ["a", "b", "c"])
    skops.io.dump(model, place(folder, "safe_text/model.skops"))
    predict: Callable[[Any], Any] = model.predict
    return predict


def of_categories(make: Any, file: str) -> Callable[[Path], Callable[[Any], Any]]:
    kinds = object if file.endswith("cbm") else pandas.CategoricalDtype(ZONES)

    def made(folder: Path) -> Callable[[Any], Any]:
        trained = make(ZONES, place(folder, file))
        return lambda rows: trained.predict(pandas.DataFrame(rows, columns=["zone", "age"]).astype({"zone": kinds}))

    return made


class Format(NamedTuple):
    """A row of the table.

    Attributes:
        make: makes a file of a model of four columns, which has the name of ``make``.
        missing: what a missing value is to the model; "refused": 400.
        make_text: makes a file of a model of the first column of text, and gives its library's own predict.
        text: the rows that it is asked for, and the name of the model.
    """

    make: Callable[[Path], Any]
    missing: str
    make_text: Callable[[Path], Callable[[Any], Any]]
    text: tuple[str, list[list[Any]]]


FORMATS = {
    "scikit-learn": Format(
        labels, "refused", lambda folder: _predict_people(table(folder).outputs["predict"]), ("table", PEOPLE)
    ),
    "skops": Format(safe, "refused", safe_text, ("safe_text", [["Rome"], ["Oslo"]])),
    "XGBoost": Format(xgb_booster, "NaN", of_categories(xgb_categories, "xgb_text/model.json"), ("xgb_text", PLACES)),
    "LightGBM": Format(lgb, "NaN", of_categories(lgb_categories, "lgb_text/model.txt"), ("lgb_text", PLACES)),
    "CatBoost": Format(cat, "NaN", of_categories(cat_categories, "cat_text/model.cbm"), ("cat_text", PLACES)),
}


def _predict_people(predict: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda rows: predict(pandas.DataFrame(rows, columns=["city", "plan", "age", "income"]))


class Case(NamedTuple):
    """A format as it is served: the models, the libraries' own answers for ROWS and for the text, and the server."""

    name: str
    format: Format
    predict: Callable[[Any], Any]
    predict_text: Callable[[Any], Any]
    server: Server
    grpc: str

    @property
    def expected(self) -> Any:
        return np.asarray(self.predict(ROWS))

    def infer(self, body: Any, **headers: str) -> httpx.Response:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        url = f"{self.server.url}/v2/models/{self.name}/infer"
        return httpx.post(url, content=content, headers=headers, timeout=PATIENCE)


def is_equal(got: Any, expected: Any) -> bool:
    return got.shape == expected.shape and got.tolist() == expected.tolist()


def tensor(rows: Any, **more: Any) -> dict[str, Any]:
    return {"name": "input-0", "datatype": "FP64", "shape": list(rows.shape), **more}


def array_of(output: dict[str, Any]) -> Any:
    return np.array(output["data"], DTYPES[output["datatype"]]).reshape(output["shape"])


def predicted(client: Any, case: Case, rows: list[Any]) -> Any:
    answer = client.post(f"{case.server.url}/v1/models/{case.name}:predict", json={"instances": rows})
    assert answer.status_code == 200, answer.text
    return np.array(answer.json()["predictions"], case.expected.dtype)


def v1(case: Case) -> str:
    assert is_equal(predicted(case.server.client, case, ROWS.tolist()), case.expected)
    return "yes"


def v2_json(case: Case) -> str:
    [output] = case.infer({"inputs": [tensor(ROWS, data=ROWS.tolist())]}).json()["outputs"]
    assert is_equal(array_of(output), case.expected.astype(DTYPES[output["datatype"]]))
    return "yes"


def v2_binary(case: Case) -> str:
    sent = tensor(ROWS, parameters={"binary_data_size": ROWS.nbytes})
    head = json.dumps({"inputs": [sent], "parameters": {"binary_data_output": True}}).encode()
    answer = case.infer(head + ROWS.tobytes(), **{"inference-header-content-length": str(len(head))})
    size = int(answer.headers["inference-header-content-length"])
    [output] = json.loads(answer.content[:size])["outputs"]
    assert is_equal(from_bytes(output["datatype"], output["shape"], answer.content[size:]), flat_bytes(case.expected))
    return "yes"


def grpc(case: Case) -> str:
    request = pb.ModelInferRequest(model_name=case.name, raw_input_contents=[ROWS.tobytes()])
    request.inputs.add(name="input-0", datatype="FP64", shape=ROWS.shape)
    answer = call(case.grpc, "ModelInfer", request, pb.ModelInferResponse)
    [output], [raw] = answer.outputs, answer.raw_output_contents
    assert is_equal(from_bytes(output.datatype, list(output.shape), raw), flat_bytes(case.expected))
    return "yes"


def from_bytes(datatype: str, shape: list[int], raw: bytes) -> Any:
    if datatype != "BYTES":
        return np.frombuffer(raw, DTYPES[datatype]).reshape(shape)
    texts = []
    while raw:
        end = 4 + int.from_bytes(raw[:4], "little")
        texts.append(raw[4:end])
        raw = raw[end:]
    return np.array(texts, object).reshape(shape)


def flat_bytes(expected: Any) -> Any:
    """Text as its bytes."""
    return expected if expected.dtype.kind not in "OU" else np.array([text.encode() for text in expected], object)


def batch(case: Case) -> str:
    """Requests are joined, and each gets its own rows."""

    def ask(start: int) -> None:
        rows = ROWS[start : start + 2]
        with httpx.Client(timeout=PATIENCE) as client:
            got = predicted(client, case, rows.tolist())
        expected = np.asarray(case.predict(rows))
        assert got.shape == expected.shape
        if got.dtype.kind == "f":
            assert np.allclose(got, expected)
        else:
            assert got.tolist() == expected.tolist()

    def are_joined() -> bool:
        with ThreadPoolExecutor(16) as threads:
            list(threads.map(ask, range(0, 128, 2)))
        [told] = case.server.client.get(f"/v2/models/{case.name}/stats").json()["model_stats"]
        return int(told["execution_count"]) < int(told["inference_stats"]["success"]["count"])

    eventually(are_joined)
    return "yes"


def two_workers(case: Case) -> str:
    def ask(client: httpx.Client) -> tuple[int, Any]:
        pid = client.post("/v1/models/pid:predict", json={"instances": [0]}).json()["predictions"][0]
        return pid, predicted(client, case, ROWS.tolist()).tolist()  # the connection stays with its worker

    answers = of_each_worker(case.server, ask)
    assert len(answers) == 2
    assert all(answer == case.expected.tolist() for answer in answers.values())
    return "yes"


def load_anew(case: Case) -> str:
    def change(verb: str) -> None:
        url = f"{case.server.url}/v2/repository/models/{case.name}/{verb}"
        answer = httpx.post(url, timeout=PATIENCE)
        assert answer.status_code == 200, answer.text

    change("unload")
    assert case.infer({"inputs": [tensor(ROWS, data=ROWS.tolist())]}).status_code in (404, 503)
    change("load")
    return two_workers(case)


def wrong_input(case: Case) -> str:
    refused = case.infer({"inputs": [tensor(ROWS[:, :3], data=ROWS[:, :3].tolist())]})
    assert refused.status_code == 400
    assert "expected rows of 4 columns, got shape [1000, 3]" in refused.json()["error"]
    return "refused"


def missing_values(case: Case) -> str:
    rows = ROWS[:50].copy()
    rows[::3, 1] = np.nan
    sent = [[None if np.isnan(value) else value for value in row] for row in rows.tolist()]
    answer = case.server.predict(case.name, sent)
    if answer.status_code == 400:
        assert "NaN" in answer.json()["error"]
        return "refused"
    assert is_equal(np.array(answer.json()["predictions"], case.expected.dtype), np.asarray(case.predict(rows)))
    return "NaN"


def text(case: Case) -> str:
    name, rows = case.format.text
    answer = case.server.predict(name, rows)
    assert answer.status_code == 200, answer.text
    expected = np.asarray(case.predict_text(rows))
    assert is_equal(np.array(answer.json()["predictions"], expected.dtype), expected)
    return "yes"


CHECKS = {
    "V1": v1, "V2 JSON": v2_json, "V2 binary": v2_binary, "gRPC": grpc, "Batch": batch, "2 workers": two_workers,
    "Load anew": load_anew, "Wrong input": wrong_input, "Missing values": missing_values, "Text": text,
}  # fmt: skip
"""The columns of the table. A check returns what the cell says."""


def told(format_: str, column: str) -> str:
    """What the cell of the page says."""
    return {"Wrong input": "refused", "Missing values": FORMATS[format_].missing}.get(column, "yes")


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Case]]:
    folder, port, grpc_port = tmp_path_factory.mktemp("models"), free_port(), free_port()
    own = {name: each.make(folder).outputs["predict"] for name, each in FORMATS.items()}
    of_text = {name: each.make_text(folder) for name, each in FORMATS.items()}
    Path(place(folder, "pid/model.py")).write_text((ROOT / "tests/models/pid.py").read_text())
    flags = (f"--http_port={port}", "--enable_grpc=yes", f"--grpc_port={grpc_port}", "--workers=2")
    flags += ("--max_batch_size=2000", "--max_batch_delay=0.01")
    command = [sys.executable, "-m", "mpserve", "serve", str(folder), *flags]
    with running(command, tmp_path_factory.mktemp("server"), port, slow_stop="eleven models") as server:
        server.wait_ready(workers=2)
        yield {
            name: Case(each.make.__name__, each, own[name], of_text[name], server, f"127.0.0.1:{grpc_port}")
            for name, each in FORMATS.items()
        }


@pytest.mark.parametrize("column", CHECKS)
@pytest.mark.parametrize("format_", FORMATS)
def test_a_cell_of_the_table(cases: dict[str, Case], format_: str, column: str) -> None:
    assert CHECKS[column](cases[format_]) == told(format_, column)


def test_the_page_says_what_is_tested() -> None:
    lines = [["Format", *CHECKS], ["---"] * (1 + len(CHECKS))]
    lines += [[name, *(told(name, column) for column in CHECKS)] for name in FORMATS]
    wanted = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    page = (ROOT / "docs" / "files.md").read_text()
    found = re.search(r"<!-- tested: tests/runtimes/test_matrix_of_formats.py -->\n(.*?)<!-- end -->", page, re.DOTALL)
    assert found is not None
    assert found[1] == wanted
