"""docs/huggingface.md: its commands are run with tiny folders in the place of those that it downloads, and answer as it says."""

import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import BertForSequenceClassification, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from tests.documents import ROOT, blocks
from tests.following import decoded
from tests.running import free_port, running
from tests.runtimes.huggingface_folders import bert, save, words

PAGE = ROOT / "docs" / "huggingface.md"
SENTENCE = "The capital of France is Paris."


def sentiment(folder: Path) -> None:
    network = BertForSequenceClassification(bert(id2label={0: "NEGATIVE", 1: "POSITIVE"}))
    torch.nn.init.constant_(network.classifier.bias[1:], 100.0)
    save(folder, network, words())


def smol(folder: Path) -> None:
    """It has learnt one sentence."""
    torch.manual_seed(0)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator([SENTENCE] * 3, trainers.BpeTrainer(special_tokens=["<end>"], vocab_size=400))
    ids = torch.tensor([tokenizer.encode(SENTENCE).ids])
    network = GPT2LMHeadModel(
        GPT2Config(vocab_size=400, n_positions=32, n_embd=32, n_layer=1, n_head=2, eos_token_id=0)
    )
    optimizer = torch.optim.Adam(network.parameters(), 0.01)
    for _ in range(60):
        network(ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    save(folder, network.eval(), PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>"))


def cities(folder: Path) -> None:
    """The page's own first command makes it."""


@pytest.mark.parametrize("make", [sentiment, smol, cities])
def test_the_commands_of_the_page_answer_as_it_says(tmp_path: Path, make: Callable[[Path], None]) -> None:
    all_blocks = blocks(PAGE)
    [place] = [number for number, block in enumerate(all_blocks) if f"serve {make.__name__} " in block.text]
    first, serve, curl = all_blocks[place].text.splitlines()
    if first.startswith("python "):
        subprocess.run([sys.executable, *shlex.split(first)[1:]], cwd=tmp_path, check=True)
    else:
        assert first.endswith(f" --local-dir {make.__name__}")
        make(tmp_path / make.__name__)
    port = free_port()
    command = [sys.executable, "-m", *shlex.split(serve.removesuffix(" &")), f"--http_port={port}"]
    with running(command, tmp_path, port, slow_stop="a network") as server:
        server.wait_ready()
        asked = [*shlex.split(curl.replace("localhost:8080", f"127.0.0.1:{port}")), "--silent", "--fail-with-body"]
        answer = subprocess.run(asked, capture_output=True, text=True, timeout=60, check=True).stdout
    shown = all_blocks[place + 1]
    if shown.language == "json":
        assert decoded(answer) == decoded(shown.text)
    else:
        assert answer.strip() == shown.text.strip()
