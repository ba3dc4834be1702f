"""The table of docs/reference/files.md that says what is tested of each format; each of its cells is a test here."""

import json
import re
import sys
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np
import pytest

from mpserve.protocol.protobuf import inference_pb2 as pb
from tests.documents import ROOT
from tests.e2e.calls import call
from tests.e2e.workers import of_each_worker
from tests.running import PATIENCE, Server, eventually, free_port, running
from tests.runtimes.known_formats import FORMATS, MISSING, TEXT, WRONG, Format, Predict
from tests.runtimes.model_files import ROWS, place

DTYPES = {"FP32": np.float32, "FP64": np.float64, "INT64": np.int64, "BYTES": object}


class Case(NamedTuple):
    """A format as it is served: the models, the libraries' own answers for its rows and for the text, and the server."""

    format: Format
    predict: Predict
    expected: Any
    predict_text: Predict | None
    server: Server
    grpc: str

    @property
    def name(self) -> str:
        return self.format.name

    @property
    def rows(self) -> Any:
        return self.format.rows

    def tensor(self, rows: Any, **more: Any) -> dict[str, Any]:
        datatype = self.format._replace(rows=rows).datatype
        return {"name": self.format.input, "datatype": datatype, "shape": list(rows.shape), **more}

    def infer(self, body: Any, **headers: str) -> httpx.Response:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        url = f"{self.server.url}/v2/models/{self.name}/infer"
        return httpx.post(url, content=content, headers=headers, timeout=PATIENCE, verify=False)

    def infer_rows(self, rows: Any) -> httpx.Response:
        return self.infer({"inputs": [self.tensor(rows, data=rows.tolist())]})

    def read(self, datatype: str, values: Any, shape: list[int]) -> Any:
        """The values of an output as the library has them."""
        array = np.array(values, DTYPES[datatype])
        if datatype != "BYTES":
            return array.reshape(shape)
        texts = [each.decode() if isinstance(each, bytes) else each for each in array.reshape(-1)]
        return np.array([self.format.read(text) for text in texts], object).reshape(shape)


def is_equal(got: Any, expected: Any) -> bool:
    return got.shape == expected.shape and got.tolist() == expected.tolist()


def predicted(client: Any, case: Case, rows: Any) -> Any:
    answer = client.post(f"{case.server.url}/v1/models/{case.name}:predict", json={"instances": rows.tolist()})
    assert answer.status_code == 200, answer.text
    return np.array(answer.json()["predictions"], case.expected.dtype)


def v1(case: Case) -> str:
    assert is_equal(predicted(case.server.client, case, case.rows), case.expected)
    return "yes"


def v2_json(case: Case) -> str:
    [output] = case.infer_rows(case.rows).json()["outputs"]
    assert is_equal(case.read(output["datatype"], output["data"], output["shape"]), case.expected)
    return "yes"


def v2_binary(case: Case) -> str:
    raw = to_bytes(case.rows)
    sent = case.tensor(case.rows, parameters={"binary_data_size": len(raw)})
    head = json.dumps({"inputs": [sent], "parameters": {"binary_data_output": True}}).encode()
    answer = case.infer(head + raw, **{"inference-header-content-length": str(len(head))})
    size = int(answer.headers["inference-header-content-length"])
    [output] = json.loads(answer.content[:size])["outputs"]
    values = from_bytes(output["datatype"], answer.content[size:])
    assert is_equal(case.read(output["datatype"], values, output["shape"]), case.expected)
    return "yes"


def grpc(case: Case) -> str:
    request = pb.ModelInferRequest(model_name=case.name, raw_input_contents=[to_bytes(case.rows)])
    request.inputs.add(name=case.format.input, datatype=case.format.datatype, shape=case.rows.shape)
    answer = call(case.grpc, "ModelInfer", request, pb.ModelInferResponse)
    [output], [raw] = answer.outputs, answer.raw_output_contents
    values = from_bytes(output.datatype, raw)
    assert is_equal(case.read(output.datatype, values, list(output.shape)), case.expected)
    return "yes"


def to_bytes(rows: Any) -> bytes:
    if rows.dtype != object:
        return bytes(rows.tobytes())
    return b"".join(len(text.encode()).to_bytes(4, "little") + text.encode() for text in rows.tolist())


def from_bytes(datatype: str, raw: bytes) -> Any:
    if datatype != "BYTES":
        return np.frombuffer(raw, DTYPES[datatype])
    texts = []
    while raw:
        end = 4 + int.from_bytes(raw[:4], "little")
        texts.append(raw[4:end])
        raw = raw[end:]
    return texts


def batch(case: Case) -> str:
    """Whether requests are joined. Each gets its own rows."""

    def ask(start: int) -> None:
        rows = case.rows[start : start + 2]
        with httpx.Client(timeout=PATIENCE, verify=False) as client:
            got = predicted(client, case, rows)
        expected = np.asarray(case.expected[start : start + 2])
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

    if case.format.batch == "no":
        assert not are_joined()
        return "no"
    eventually(are_joined)
    return "yes"


def two_workers(case: Case) -> str:
    def ask(client: httpx.Client) -> tuple[int, Any]:
        pid = client.post("/v1/models/pid:predict", json={"instances": [0]}).json()["predictions"][0]
        return pid, predicted(client, case, case.rows).tolist()  # the connection stays with its worker

    answers = of_each_worker(case.server, ask)
    assert len(answers) == 2
    assert all(answer == case.expected.tolist() for answer in answers.values())
    return "yes"


def load_anew(case: Case) -> str:
    def change(verb: str) -> None:
        url = f"{case.server.url}/v2/repository/models/{case.name}/{verb}"
        answer = httpx.post(url, timeout=PATIENCE, verify=False)
        assert answer.status_code == 200, answer.text

    change("unload")
    assert case.infer_rows(case.rows).status_code in (404, 503)
    change("load")
    return two_workers(case)


def wrong_input(case: Case) -> str:
    """Rows of three columns; numbers where texts are expected."""
    answer = case.infer_rows(ROWS[:, 0].copy() if case.rows.dtype == object else case.rows[:, :3].copy())
    return refused(case, WRONG, answer)


def missing_values(case: Case) -> str:
    rows = case.rows[:50].copy()
    gap = (slice(None, None, 3), 1)[: rows.ndim]
    rows[gap] = None if rows.dtype == object else np.nan
    sent = [[None if value != value else value for value in row] if rows.ndim > 1 else row for row in rows.tolist()]
    answer = case.server.predict(case.name, sent)
    if MISSING in case.format.refusals:
        return refused(case, MISSING, answer)
    assert is_equal(np.array(answer.json()["predictions"], case.expected.dtype), np.asarray(case.predict(rows)))
    return "NaN"


def text(case: Case) -> str:
    """Of a model that takes only numbers, text in a column is refused."""
    if case.format.text == "own":
        return v1(case)
    if not isinstance(case.format.text, tuple):
        return refused(case, TEXT, case.server.predict(case.name, [["Paris", 1.0, 2.0, 3.0]]))
    assert case.predict_text is not None
    name, _, rows = case.format.text
    answer = case.server.predict(name, rows)
    assert answer.status_code == 200, answer.text
    expected = np.asarray(case.predict_text(rows))
    predictions = answer.json()["predictions"]
    if isinstance(predictions[0], dict):  # of several outputs
        predictions = [each["label"] for each in predictions]
    assert is_equal(np.array(predictions, expected.dtype), expected)
    return "yes"


def refused(case: Case, column: str, answer: httpx.Response) -> str:
    status, words = case.format.refusals[column]
    assert (answer.status_code, words in answer.json()["error"]) == (status, True), answer.text
    return REFUSED[status]


REFUSED = {400: "refused", 500: "fails"}
CHECKS = {
    "V1": v1, "V2 JSON": v2_json, "V2 binary": v2_binary, "gRPC": grpc, "Batch": batch, "2 workers": two_workers,
    "Load anew": load_anew, "Wrong input": wrong_input, "Missing values": missing_values, "Text": text,
}  # fmt: skip
"""The columns of the table. A check returns what the cell says."""


def told(format_: str, column: str) -> str:
    """What the cell of the page says."""
    row = FORMATS[format_]
    if column in row.refusals:
        return REFUSED[row.refusals[column].status]
    return {"Missing values": "NaN", "Batch": row.batch}.get(column, "yes")


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Case]]:
    folder, port, grpc_port = tmp_path_factory.mktemp("models"), free_port(), free_port()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        own = {name: each.make(folder) for name, each in FORMATS.items()}
        of_text = {name: each.text[1](folder) for name, each in FORMATS.items() if isinstance(each.text, tuple)}
        expected = {name: np.asarray(own[name](each.rows)) for name, each in FORMATS.items()}
    Path(place(folder, "pid/model.py")).write_text((ROOT / "tests/models/pid.py").read_text())
    flags = (f"--http_port={port}", "--enable_grpc=yes", f"--grpc_port={grpc_port}", "--workers=2")
    flags += ("--max_batch_size=2000", "--max_batch_delay=0.01")
    command = [sys.executable, "-m", "mpserve", "serve", str(folder), *flags]
    with running(command, tmp_path_factory.mktemp("server"), port, slow_stop="a model of each library") as server:
        server.wait_ready(workers=2, within=3 * PATIENCE)  # it imports every library
        grpc = f"127.0.0.1:{grpc_port}"
        yield {
            name: Case(each, own[name], expected[name], of_text.get(name), server, grpc)
            for name, each in FORMATS.items()
        }


@pytest.mark.parametrize("column", CHECKS)
@pytest.mark.parametrize("format_", FORMATS)
def test_a_cell_of_the_table(cases: dict[str, Case], format_: str, column: str) -> None:
    assert CHECKS[column](cases[format_]) == told(format_, column)


def test_the_page_says_what_is_tested() -> None:
    lines = [["Format", *CHECKS], ["---"] * (1 + len(CHECKS))]
    lines += [[name, *(told(name, column) for column in CHECKS)] for name in FORMATS]
    words = [["Format", WRONG, MISSING, TEXT], ["---"] * 4]
    for name, row in FORMATS.items():
        said = [row.refusals.get(column) for column in (WRONG, MISSING, TEXT)]
        words.append([name, *("" if each is None else f"{each.status}: {each.words}" for each in said)])
    wanted = "\n".join("".join(f"| {' | '.join(line)} |\n" for line in each) for each in (lines, words))
    page = (ROOT / "docs" / "reference" / "files.md").read_text()
    found = re.search(r"<!-- tested: tests/runtimes/test_matrix_of_formats.py -->\n(.*?)<!-- end -->", page, re.DOTALL)
    assert found is not None
    assert found[1] == wanted
