"""Hugging Face folders, served without code: they answer as the pipelines of transformers do, over every protocol."""

import base64
import io
import itertools
import json
import math
import struct
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from transformers import AutoModel, AutoTokenizer, pipeline

from mpserve.config.settings import Settings
from mpserve.errors import ConfigurationError, InferenceError, InvalidInput
from mpserve.protocol.messages import InferInput, InferRequest
from mpserve.protocol.protobuf import inference_pb2 as pb
from mpserve.runtimes.huggingface import generation
from mpserve.serving.models.model import Model
from mpserve.serving.repository.loader import from_directory
from tests.e2e.calls import call
from tests.running import PATIENCE, Server, eventually, free_port, running
from tests.runtimes.huggingface_folders import FOLDERS, LABELS, LONGEST, WORDS
from tests.runtimes.served import serving_files

TEXTS = ["the film was good", "bad", "in paris and rome a fine long day !", "a night in rome"]
MASKED = ["the film was [MASK]", "[MASK] day in paris and a long night !"]
PROMPT = "the film was"


def image(color: tuple[int, int, int]) -> bytes:
    file = io.BytesIO()
    picture = Image.new("RGB", (20, 20), color)
    picture.putpixel((3, 4), (255, 255, 255))
    picture.save(file, "PNG")
    return file.getvalue()


IMAGES = [image((9, 200, 3)), image((250, 0, 0)), image((0, 0, 250))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    there = tmp_path_factory.mktemp("models")
    for name, make in FOLDERS.items():
        make(there / name)
    return there


class Served:
    """A server of all folders, with two workers and batches."""

    def __init__(self, server: Server, address: str) -> None:
        self.server, self.address = server, address

    def v1(self, model: str, rows: list[Any], **more: Any) -> Any:
        return self.server.client.post(f"/v1/models/{model}:predict", json={"instances": rows, **more})

    def v2(self, model: str, body: Any, verb: str = "infer", **headers: str) -> Any:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.server.client.post(f"/v2/models/{model}/{verb}", content=content, headers=headers)


@pytest.fixture(scope="module")
def served(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving_files(folder, tmp_path_factory.mktemp("server"), 64, "ten networks") as served:
        yield Served(*served)


def loaded(path: Path, **options: Any) -> Any:
    [source] = from_directory(path, None, Settings(**options))
    model = source.obtain()
    model.load()
    model.warmup()
    return model


def close(got: Any, expected: Any) -> bool:
    """Equal, with floats within the tolerance that padding costs."""
    if isinstance(expected, dict):
        return got.keys() == expected.keys() and all(close(got[name], expected[name]) for name in expected)
    if isinstance(expected, list):
        return len(got) == len(expected) and all(map(close, got, expected))
    if isinstance(expected, float | np.floating):
        return math.isclose(got, float(expected), rel_tol=1e-4, abs_tol=1e-5)
    return bool(got == expected)


def expected(folder: Path, name: str, rows: list[Any]) -> list[Any]:
    """What transformers itself answers, one row after the other."""
    path = str(folder / name)
    if name == "texts":
        return [pipeline("text-classification", path)(row)[0]["label"] for row in rows]
    if name == "several":
        tops = [pipeline("text-classification", path)(row, top_k=None) for row in rows]
        return [
            [label for label in LABELS.values() if any(t["label"] == label and t["score"] > 0.5 for t in top)]
            for top in tops
        ]
    if name == "score":
        return [pipeline("text-classification", path)(row)[0]["score"] for row in rows]
    if name == "entities":
        return [pipeline("token-classification", path)(row) for row in rows]
    if name == "masks":
        return [pipeline("fill-mask", path)(row)[0]["token_str"] for row in rows]
    if name == "images":
        shown = [Image.open(io.BytesIO(row)) for row in rows]
        return [pipeline("image-classification", path)(each)[0]["label"] for each in shown]
    return [vector(path, row, name == "sentences") for row in rows]


def vector(path: str, text: str, of_first_token: bool) -> Any:
    tokenizer, network = AutoTokenizer.from_pretrained(path), AutoModel.from_pretrained(path).eval()
    length = 6 if of_first_token else LONGEST
    with torch.no_grad():
        hidden = network(**tokenizer(text, return_tensors="pt", truncation=True, max_length=length)).last_hidden_state[
            0
        ]
    return (hidden[0] if of_first_token else torch.nn.functional.normalize(hidden.mean(0), dim=0)).tolist()


ROWS: dict[str, list[Any]] = {
    **dict.fromkeys(["texts", "several", "score", "entities", "vectors", "sentences"], TEXTS),
    "masks": MASKED,
    "images": IMAGES,
}


def as_bytes(row: Any) -> bytes:
    return row if isinstance(row, bytes) else row.encode()


def in_v1(row: Any) -> Any:
    return {"b64": base64.b64encode(row).decode()} if isinstance(row, bytes) else row


def read(output: Any) -> list[Any]:
    """The rows of a V2 output."""
    data = output["data"]
    if output.get("datatype") == "BYTES":
        return [json.loads(each) if each[:1] in ("[", "{") else each for each in data]
    return np.array(data).reshape(output["shape"]).tolist()


@pytest.mark.parametrize("name", ROWS)
def test_a_folder_answers_as_transformers_over_every_protocol(served: Served, folder: Path, name: str) -> None:
    rows = ROWS[name]
    answer = expected(folder, name, rows)

    v1 = served.v1(name, list(map(in_v1, rows)))
    assert v1.status_code == 200, v1.text
    assert close(v1.json()["predictions"], answer), (v1.json()["predictions"], answer)

    texts = [base64.b64encode(row).decode() if isinstance(row, bytes) else row for row in rows]
    tensor = {"name": "input-0", "datatype": "BYTES", "shape": [len(rows)]}
    v2 = served.v2(name, {"inputs": [{**tensor, "data": texts}]}).json()
    [output] = v2["outputs"]
    assert output["name"] == "predict"
    assert close(read(output), answer)

    raw = b"".join(struct.pack("<I", len(row)) + row for row in map(as_bytes, rows))
    column = {**tensor, "shape": [len(rows), 1], "parameters": {"binary_data_size": len(raw)}}
    head = json.dumps({"inputs": [column]}).encode()
    binary = served.v2(name, head + raw, **{"inference-header-content-length": str(len(head))})
    assert binary.json()["outputs"] == v2["outputs"]

    request = pb.ModelInferRequest(model_name=name)
    request.inputs.add(name="x", datatype="BYTES", shape=[len(rows)]).contents.bytes_contents.extend(
        map(as_bytes, rows)
    )
    [output] = call(served.address, "ModelInfer", request, pb.ModelInferResponse).outputs
    if output.datatype == "BYTES":
        assert list(map(bytes.decode, output.contents.bytes_contents)) == v2["outputs"][0]["data"]
    else:
        assert close(np.array(output.contents.fp32_contents).reshape(list(output.shape)).tolist(), answer)


def test_an_image_is_posted_as_a_file(served: Served, folder: Path) -> None:
    answer = expected(folder, "images", IMAGES)
    for row, label in zip(IMAGES, answer, strict=True):
        posted = served.v2("images", row, **{"content-type": "image/png"})
        assert posted.json()["outputs"][0]["data"] == [label], posted.text


def test_labels_and_outputs_are_in_the_metadata_and_asked_by_name(served: Served, folder: Path) -> None:
    metadata = served.server.client.get("/v2/models/texts").json()
    assert metadata["inputs"] == [
        {"name": "text", "datatype": "BYTES", "shape": [-1], "parameters": {"content_type": "str"}}
    ]
    by_name = {output["name"]: output for output in metadata["outputs"]}
    assert by_name["predict_proba"]["parameters"] == {"labels": list(LABELS.values())}
    tensor = {"name": "text", "datatype": "BYTES", "shape": [4], "data": TEXTS}
    names = ["predict_proba", "probabilities"]
    body = {"inputs": [tensor], "outputs": [{"name": name} for name in names]}
    numbers, by_label = map(read, served.v2("texts", body).json()["outputs"])
    tops = [pipeline("text-classification", str(folder / "texts"))(text, top_k=None) for text in TEXTS]
    whole = [{each["label"]: each["score"] for each in top} for top in tops]
    assert all(close(got, want) for got, want in zip(by_label, whole, strict=True))
    assert close(numbers, [[row[label] for label in LABELS.values()] for row in whole])
    unknown = served.v2("texts", {**body, "outputs": [{"name": "no"}]})
    assert (unknown.status_code, "expected 'predict', " in unknown.text) == (400, True)


def test_probabilities_by_label_may_be_the_answer_to_clients_that_ask_for_nothing(folder: Path) -> None:
    for name in ("texts", "several", "images", "masks"):
        model = loaded(folder / name, return_probabilities=True)
        rows = np.array(ROWS[name][:1], dtype=object)
        [(output, column)] = model.invoke_for([rows], ()).items()
        assert output == "probabilities"
        if name == "masks":
            best = pipeline("fill-mask", str(folder / name))(MASKED[0])
            assert close(json.loads(column[0]), best)


@pytest.mark.parametrize("name", ["texts", "vectors"])
def test_requests_joined_in_a_batch_answer_as_alone(served: Served, folder: Path, name: str) -> None:
    alone = [served.v1(name, [text]).json()["predictions"][0] for text in TEXTS]

    def ask(number: int) -> None:
        place = number % len(TEXTS)
        answer = httpx.post(
            f"{served.server.url}/v1/models/{name}:predict", json={"instances": [TEXTS[place]]}, timeout=PATIENCE
        )
        assert close(answer.json()["predictions"], [alone[place]])

    with ThreadPoolExecutor(16) as threads:
        list(threads.map(ask, range(100)))


def test_more_rows_than_go_through_the_network_at_once(folder: Path) -> None:
    model = loaded(folder / "texts")
    texts = np.array([" ".join(WORDS[: 1 + number % 15]) for number in range(150)], dtype=object)
    answer = model.invoke_for([texts], ("predict", "predict_proba"))
    alone = [
        model.invoke_for([texts[number : number + 1]], ("predict_proba",))["predict_proba"][0] for number in range(15)
    ]
    assert answer["predict"].shape == (150,)
    assert np.allclose(answer["predict_proba"], np.array(alone * 10), rtol=1e-4, atol=1e-5)


def test_a_long_text_is_cut_to_what_the_network_takes(served: Served) -> None:
    words = (WORDS * 3)[: LONGEST - 2]
    whole, longer = served.v1("vectors", [" ".join(words), " ".join([*words, "night", "day"])]).json()["predictions"]
    assert close(whole, longer)


@pytest.mark.parametrize(("name", "rows", "words"), [
    ("texts", [1, 2], "text"),
    ("texts", [["the", "film"]], "expected shape [-1]"),
    ("texts", [None], ""),
    ("texts", [{"words": "the"}], "'text'"),
    ("texts", [], ""),
    ("masks", ["the film"], "text 0 has no [MASK] among its first 24 tokens"),
    ("images", ["the film"], "image 0 is neither an image file that pillow reads nor base64 of one"),
    ("images", [{"b64": "aGVsbG8="}], "image 0 "),
    ("generates", [1], "expected \"instances\" of texts"),
    ("generates", ["a" * 70], "the prompt has 70 tokens, the model takes at most 64"),
])  # fmt: skip
def test_wrong_inputs_are_refused_in_words(served: Served, name: str, rows: Any, words: str) -> None:
    refused = served.v1(name, rows)
    assert refused.status_code == 400, refused.text
    assert words in refused.json()["error"], refused.text


def test_numbers_where_text_is_expected_are_refused_in_v2(served: Served) -> None:
    for name in ("texts", "generates"):
        refused = served.v2(name, {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [1]}]})
        assert refused.status_code == 400
        assert "BYTES, got FP32" in refused.text


def generated(folder: Path, name: str, prompt: str, tokens: int) -> str:
    """What transformers generates greedily."""
    path = str(folder / name)
    network = (
        transformers.AutoModelForCausalLM if name == "generates" else transformers.AutoModelForSeq2SeqLM
    ).from_pretrained(path)
    tokenizer = AutoTokenizer.from_pretrained(path)
    ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
    out = network.generate(ids, max_new_tokens=tokens, do_sample=False)[0]
    return str(tokenizer.decode(out[ids.shape[1] :] if name == "generates" else out[1:], skip_special_tokens=True))


@pytest.mark.parametrize("name", ["generates", "answers"])
def test_generation_is_that_of_transformers_whole_and_in_parts(served: Served, folder: Path, name: str) -> None:
    wanted = generated(folder, name, PROMPT, 20)
    more = {"max_new_tokens": 20}
    assert len(wanted) > 5

    two = served.v1(name, [PROMPT, {"text_input": "a"}], parameters=more).json()
    assert two == {"predictions": [wanted, generated(folder, name, "a", 20)]}
    chunks = served.v1(name, [PROMPT], parameters={**more, "stream": True})
    assert (chunks.text, chunks.headers["transfer-encoding"]) == (wanted, "chunked")

    tensor = {"name": "text_input", "datatype": "BYTES", "shape": [1], "data": [PROMPT]}
    [output] = served.v2(name, {"inputs": [tensor], "parameters": more}).json()["outputs"]
    assert (output["name"], output["data"]) == ("text_output", [wanted])
    one = served.v2(name, {"text_input": PROMPT, **more}, "generate").json()
    assert one["text_output"] == wanted
    events = served.v2(name, {"text_input": PROMPT, "parameters": more}, "generate_stream")
    parts = [json.loads(line[6:])["text_output"] for line in events.text.splitlines() if line]
    assert len(parts) > 1
    assert "".join(parts) == wanted

    request = pb.ModelInferRequest(model_name=name, id="7")
    request.inputs.add(name="text_input", datatype="BYTES", shape=[1]).contents.bytes_contents.append(PROMPT.encode())
    request.parameters["max_tokens"].int64_param = 20
    whole = call(served.address, "ModelInfer", request, pb.ModelInferResponse)
    assert whole.outputs[0].contents.bytes_contents[0].decode() == wanted
    with grpc.insecure_channel(served.address) as channel:
        responses = channel.stream_stream(
            "/inference.GRPCInferenceService/ModelStreamInfer",
            request_serializer=pb.ModelInferRequest.SerializeToString,
            response_deserializer=pb.ModelStreamInferResponse.FromString,
        )(iter([request]), timeout=PATIENCE)
        streamed = [each.infer_response for each in responses]
    assert {each.id for each in streamed} == {"7"}
    assert "".join(each.outputs[0].contents.bytes_contents[0].decode() for each in streamed) == wanted


class Unhurried:
    """A request that waits for its answer until ``after`` tokens."""

    in_parts = False

    def __init__(self, after: float = math.inf) -> None:
        self.left = after

    def done(self) -> bool:
        self.left -= 1
        return self.left <= 0


def generate(model: Model, after: float = math.inf, **parameters: Any) -> Any:
    payload = {"instances": [PROMPT], "parameters": {"max_new_tokens": 20, **parameters}}
    return model.predict(payload, Unhurried(after))["predictions"][0]  # type: ignore[arg-type]


def test_parameters_choose_the_tokens_and_the_end(folder: Path) -> None:
    model = loaded(folder / "generates")
    greedy = generate(model)
    assert greedy == generate(model, temperature=0) == generate(model, do_sample=True, top_k=1)
    sampled = [generate(model, temperature=5.0, seed=seed) for seed in (1, 1, 2)]
    assert sampled[0] == sampled[1] != sampled[2]
    assert generate(model, repetition_penalty=5.0) != greedy
    assert len(generate(model, max_new_tokens=3)) < len(greedy)
    for stop in (greedy[2:4], [greedy[3], "never"]):
        first = stop if isinstance(stop, str) else stop[0]
        assert generate(model, stop=stop) == greedy[: greedy.index(first)]
    assert len(generate(model, after=4)) < len(greedy)  # nobody waits any more


@pytest.mark.parametrize(("parameters", "words"), [
    ({"temperature": "hot"}, "'temperature' is 'hot', expected a number of 0 or more"),
    ({"max_new_tokens": 0}, "'max_new_tokens' is 0, expected an integer of 1 or more"),
    ({"max_new_tokens": 60}, "the prompt has 12 tokens and max_new_tokens=60, the model takes at most 64"),
    ({"max_token": 1}, "unknown parameter 'max_token'; expected max_new_tokens, "),
    ({"top_p": 0}, "above 0"), ({"stop": 1}, "a text"), ({"do_sample": 1}, "true or false"),
])  # fmt: skip
def test_wrong_parameters_are_refused_in_words(folder: Path, parameters: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        generate(loaded(folder / "generates"), **parameters)
    assert words in str(refused.value)


def test_several_prompts_grow_together_in_v2(folder: Path) -> None:
    model = loaded(folder / "generates")
    given = InferInput("text_input", [2], "BYTES", [PROMPT, "a"])
    request = Unhurried()
    request.in_parts = True
    parts = [
        part.outputs[0].as_numpy().tolist()
        for part in model.predict(InferRequest("m", [given], parameters={"max_new_tokens": 8}), request)
    ]
    texts = [b"".join(column).decode() for column in zip(*parts, strict=True)]
    assert texts == [generated(folder, "generates", prompt, 8) for prompt in (PROMPT, "a")]


def test_a_client_that_goes_away_ends_the_generation(served: Served) -> None:
    """More clients go than the two workers have threads, so a generation that went on would stand in the way of the last."""
    url = f"{served.server.url}/v2/models/answers"
    body = {"text_input": PROMPT, "max_new_tokens": 10_000_000}
    for _ in range(10):
        with httpx.stream("POST", f"{url}/generate_stream", json=body, timeout=PATIENCE) as answer:
            assert json.loads(next(answer.iter_lines())[6:])["text_output"]
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{url}/generate", json=body, timeout=httpx.Timeout(PATIENCE, read=0.3))
    eventually(lambda: served.server.metric("mpserve_requests_in_flight") == 0)
    for _ in range(8):
        answer = httpx.post(f"{url}/generate", json={**body, "max_new_tokens": 2}, timeout=PATIENCE)
        assert answer.status_code == 200
    assert "Traceback" not in served.server.log


def test_a_generation_without_text_has_parts_between_which_it_can_be_ended() -> None:
    """Tokens may add no text for ever: special ones, or bytes of a character that is never complete."""
    parts = generation.rounds([(text for text in itertools.repeat(""))])
    assert [next(parts) for _ in range(3)] == [[""]] * 3
    few = generation.rounds([iter(["a", "", "", "b"]), iter(["c"])])
    assert list(few) == [["a", "c"], ["b", ""]]


def test_a_folder_is_loaded_anew(served: Served, folder: Path) -> None:
    before = served.v1("texts", TEXTS).json()
    assert served.server.client.post("/v2/repository/models/texts/unload", json={}).status_code == 200
    assert served.v1("texts", TEXTS).status_code == 404
    assert served.server.client.post("/v2/repository/models/texts/load", json={}).status_code == 200
    assert {json.dumps(served.v1("texts", TEXTS).json()) for _ in range(8)} == {json.dumps(before)}


def changed(folder: Path, tmp_path: Path, name: str, **config: Any) -> Path:
    path = FOLDERS[name](tmp_path / name)
    said = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**said, **config}))
    return path


@pytest.mark.parametrize(("config", "words"), [
    ({"architectures": ["BertForQuestionAnswering"]}, "texts is a BertForQuestionAnswering, which is not served without code"),
    ({"architectures": None}, "names no architecture"),
    ({"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config"}}, "needs code of its author"),
    ({"architectures": ["MineForAll"], "auto_map": {"AutoModel": "mine.Model"}}, "needs code of its author"),
    ({"model_type": "unheard-of"}, "cannot read its config.json"),
])  # fmt: skip
def test_folders_that_cannot_be_served_are_refused_in_words(
    folder: Path, tmp_path: Path, config: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigurationError) as refused:
        loaded(changed(folder, tmp_path, "texts", **config))
    assert words in str(refused.value)


def test_a_folder_without_a_tokenizer_is_refused_in_words(tmp_path: Path) -> None:
    path = FOLDERS["texts"](tmp_path / "texts")
    for file in path.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(ConfigurationError, match=r"texts has no tokenizer, expected one of .*tokenizer\.json"):
        loaded(path)


@pytest.mark.parametrize("name", ["texts", "entities", "masks", "generates"])
def test_a_network_that_gives_nan_has_no_answer(folder: Path, name: str) -> None:
    model = loaded(folder / name)
    for weights in model.network.parameters():
        weights.fill_(math.nan)
    texts = [np.array(["the [MASK]"], dtype=object)]
    with pytest.raises(InferenceError, match="the network gave NaN or infinity"):
        _ = generate(model) if name == "generates" else model.invoke_for(texts, ())


@pytest.mark.parametrize("padding", ["right", "left"])
@pytest.mark.parametrize("mode", ["cls_token", "lasttoken", "max_tokens", "mean_tokens", "mean_sqrt_len_tokens"])
def test_tokens_are_pooled_as_sentence_transformers_says(tmp_path: Path, mode: str, padding: str) -> None:
    """Of a text alone, the tokens are plain to pool; in a batch, padding must make no difference."""
    path = FOLDERS["sentences"](tmp_path / "sentences")
    (path / "1_Pooling/config.json").write_text(json.dumps({f"pooling_mode_{mode}": True}))
    model = loaded(path)
    hidden = torch.tensor([[[1.0, -2.0], [4.0, 5.0], [7.0, -9.0]], [[3.0, 1.0], [9.0, 9.0], [9.0, 9.0]]])
    mask = torch.tensor([[1, 1, 1], [1, 0, 0]])
    if padding == "left":
        hidden[1], mask[1] = hidden[1].flip(0), mask[1].flip(0)
    wanted = {
        "cls_token": [[1, -2], [3, 1]], "lasttoken": [[7, -9], [3, 1]], "max_tokens": [[7, 5], [3, 1]],
        "mean_tokens": [[4, -2], [3, 1]], "mean_sqrt_len_tokens": [[12 / 3**0.5, -6 / 3**0.5], [3, 1]],
    }[mode]  # fmt: skip
    [pool] = model.pools
    assert np.allclose(pool(hidden, mask.unsqueeze(-1).float()), wanted)


def test_a_step_of_sentence_transformers_that_is_unknown_is_refused(tmp_path: Path) -> None:
    path = FOLDERS["sentences"](tmp_path / "sentences")
    modules = json.loads((path / "modules.json").read_text())
    (path / "modules.json").write_text(json.dumps([*modules, {"type": "sentence_transformers.models.Dense"}]))
    with pytest.raises(ConfigurationError, match="its sentence-transformers has Dense, which is not known here"):
        loaded(path)


def test_a_missing_package_names_the_extra(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("mpserve.runtimes.huggingface")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.setitem(sys.modules, "transformers.models.auto", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'mpserve\[huggingface\]'"):
        from_directory(folder / "texts", None)


@contextmanager
def alone(folder: Path, name: str, tmp_path: Path) -> Iterator[Server]:
    port = free_port()
    command = [sys.executable, "-m", "mpserve", "serve", str(folder / name), f"--http_port={port}"]
    with running(command, tmp_path, port, slow_stop="a network") as server:
        yield server.wait_ready()


def test_the_arbiter_gets_no_threads_from_a_load(folder: Path, tmp_path: Path) -> None:
    with alone(folder, "texts", tmp_path) as server:
        assert "threads" not in server.log
        assert server.predict("texts", ["bad"]).json() == {"predictions": expected(folder, "texts", ["bad"])}
