"""Folders of spaCy, served without code: each text is answered with what the pipeline finds, as spaCy's own JSON."""

import json
import struct
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import spacy
from spacy.training import Example

from mpserve.errors import ConfigurationError, InvalidInput
from mpserve.protocol.protobuf import inference_pb2 as pb
from mpserve.serving.repository.loader import from_directory
from tests.e2e.calls import call
from tests.running import PATIENCE, Server
from tests.runtimes.served import serving_files

TEXTS = ["Ada lives in Paris.", "A bad film. Really bad!", "", "Nuñez likes Rome and Paris"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline that finds sentences, cities and the category of a text."""
    nlp = spacy.blank("en")
    nlp.add_pipe("sentencizer")
    categories = nlp.add_pipe("textcat")
    for label in ("GOOD", "BAD"):
        categories.add_label(label)  # type: ignore[attr-defined]
    examples = [
        Example.from_dict(nlp.make_doc(text), {"cats": {"GOOD": float(is_good), "BAD": float(not is_good)}})
        for text, is_good in (("a fine film", True), ("a bad film", False))
    ]
    nlp.initialize(lambda: examples)
    patterns = [{"label": "CITY", "pattern": city} for city in ("Paris", "Rome")]
    nlp.add_pipe("entity_ruler").add_patterns(patterns)  # type: ignore[attr-defined]
    there = tmp_path_factory.mktemp("models") / "finds"
    nlp.to_disk(there)
    return there


@pytest.fixture(scope="module")
def expected(folder: Path) -> list[Any]:
    nlp = spacy.load(folder)
    return [doc.to_json() for doc in nlp.pipe(TEXTS)]


@pytest.fixture(scope="module")
def served(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, str]]:
    with serving_files(folder.parent, tmp_path_factory.mktemp("server"), 16, "a pipeline") as served:
        yield served


def close(got: Any, wanted: Any) -> bool:
    """Equal, with the scores of categories within the tolerance that a batch costs."""
    scores, kept = got["cats"], {**got, "cats": None}
    alike = scores.keys() == wanted["cats"].keys() and all(
        abs(scores[name] - wanted["cats"][name]) < 1e-4 for name in scores
    )
    return alike and kept == {**wanted, "cats": None}


def test_a_folder_answers_as_spacy_over_every_protocol(served: tuple[Server, str], expected: list[Any]) -> None:
    server, address = served
    assert [[TEXTS[0][each["start"] : each["end"]] for each in expected[0]["ents"]], len(expected[1]["sents"])] == [
        ["Paris"],
        2,
    ]
    v1 = server.predict("finds", TEXTS)
    assert all(map(close, v1.json()["predictions"], expected)), v1.text

    tensor: dict[str, Any] = {"name": "input-0", "datatype": "BYTES", "shape": [len(TEXTS)]}
    url = "/v2/models/finds/infer"
    [output] = server.client.post(url, json={"inputs": [{**tensor, "data": TEXTS}]}).json()["outputs"]
    assert (output["name"], output["datatype"], output["shape"]) == ("predict", "BYTES", [len(TEXTS)])
    assert all(map(close, map(json.loads, output["data"]), expected))

    raw = b"".join(struct.pack("<I", len(text.encode())) + text.encode() for text in TEXTS)
    head = json.dumps({"inputs": [{**tensor, "parameters": {"binary_data_size": len(raw)}}]}).encode()
    binary = server.client.post(url, content=head + raw, headers={"inference-header-content-length": str(len(head))})
    assert all(map(close, map(json.loads, binary.json()["outputs"][0]["data"]), expected))

    request = pb.ModelInferRequest(model_name="finds")
    contents = request.inputs.add(name="x", datatype="BYTES", shape=[len(TEXTS)]).contents
    contents.bytes_contents.extend(text.encode() for text in TEXTS)
    answer = call(address, "ModelInfer", request, pb.ModelInferResponse)
    assert all(map(close, map(json.loads, answer.outputs[0].contents.bytes_contents), expected))


def test_requests_joined_in_a_batch_answer_as_alone(served: tuple[Server, str], expected: list[Any]) -> None:
    written = [place for place, text in enumerate(TEXTS) if text]  # spaCy gives an empty text other scores alone

    def ask(number: int) -> None:
        place = written[number % len(written)]
        url = f"{served[0].url}/v1/models/finds:predict"
        [got] = httpx.post(url, json={"instances": [TEXTS[place]]}, timeout=PATIENCE).json()["predictions"]
        assert close(got, expected[place])

    with ThreadPoolExecutor(16) as threads:
        list(threads.map(ask, range(60)))


def test_a_folder_is_loaded_anew(served: tuple[Server, str], expected: list[Any]) -> None:
    server = served[0]
    for verb in ("unload", "load"):
        assert server.client.post(f"/v2/repository/models/finds/{verb}", json={}).status_code == 200
    for _ in range(4):
        assert all(map(close, server.predict("finds", TEXTS).json()["predictions"], expected))


def test_wrong_inputs_are_refused_in_words(served: tuple[Server, str], folder: Path) -> None:
    server = served[0]
    assert server.predict("finds", [1.5]).status_code == 400
    refused = server.client.post(
        "/v2/models/finds/infer", json={"inputs": [{"name": "x", "datatype": "INT64", "shape": [1], "data": [1]}]}
    )
    assert (refused.status_code, "expected text, BYTES, got INT64" in refused.text) == (400, True)
    [source] = from_directory(folder, None)
    model: Any = source.obtain()
    model.nlp.max_length = 9
    with pytest.raises(InvalidInput, match="a text has 19 characters, the pipeline takes at most 9"):
        model.invoke(model.binding()([("text", "BYTES", _column(TEXTS[:1]))]))


def _column(texts: list[str]) -> Any:
    import numpy as np

    return np.array([text.encode() for text in texts], dtype=object)


def test_a_folder_that_spacy_cannot_read_is_refused_in_words(tmp_path: Path) -> None:
    (tmp_path / "meta.json").write_text('{"lang": "en", "name": "a"}')
    (tmp_path / "config.cfg").write_text('[nlp]\nlang = "en"\npipeline = ["no-such"]\n')
    [source] = from_directory(tmp_path, None)
    with pytest.raises(ConfigurationError, match="cannot be read by spaCy"):
        source.obtain()


def test_a_missing_package_names_the_extra(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "mpserve.runtimes.spacy", raising=False)
    monkeypatch.setitem(sys.modules, "spacy", None)
    with pytest.raises(ConfigurationError, match=r"needs spacy, .*pip install 'mpserve\[spacy\]'"):
        from_directory(folder, None)
