"""Tiny Hugging Face folders, made by transformers and tokenizers themselves, with random weights."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from tokenizers.decoders import ByteLevel
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)

WORDS = ["the", "film", "was", "good", "bad", "in", "paris", "rome", "a", "fine", "long", "day", "and", "night", "!"]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
LABELS = {0: "bad", 1: "good", 2: "so-so"}
LONGEST = 24


def words() -> Any:
    """A tokenizer of words, as BERT has it."""
    vocabulary = {word: index for index, word in enumerate([*SPECIAL, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        mask_token="[MASK]", model_max_length=LONGEST,
    )  # fmt: skip


def pieces() -> Any:
    """A tokenizer of bytes, as GPT-2 has it; a character may take several tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {character: index for index, character in enumerate([*alphabet, "<end>"])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", bos_token="<end>")


def bert(**more: Any) -> Any:
    return BertConfig(
        vocab_size=len(SPECIAL) + len(WORDS), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=37,
        max_position_embeddings=LONGEST, initializer_range=0.7, **more,
    )  # fmt: skip


def save(folder: Path, network: Any, *others: Any) -> Path:
    for each in (network, *others):
        each.save_pretrained(folder)
    return folder


def texts(folder: Path, **more: Any) -> Path:
    torch.manual_seed(1)
    return save(folder, BertForSequenceClassification(bert(id2label=LABELS, **more)), words())


def several(folder: Path) -> Path:
    return texts(folder, problem_type="multi_label_classification")


def score(folder: Path) -> Path:
    torch.manual_seed(2)
    return save(folder, BertForSequenceClassification(bert(num_labels=1)), words())


def entities(folder: Path) -> Path:
    torch.manual_seed(3)
    return save(folder, BertForTokenClassification(bert(id2label={0: "O", 1: "B-CITY", 2: "I-CITY"})), words())


def masks(folder: Path) -> Path:
    torch.manual_seed(4)
    return save(folder, BertForMaskedLM(bert()), words())


def vectors(folder: Path) -> Path:
    torch.manual_seed(5)
    return save(folder, BertModel(bert()), words())


def sentences(folder: Path) -> Path:
    """A folder as sentence-transformers writes it, without a last step that makes the length one."""
    vectors(folder)
    modules = [("Transformer", ""), ("Pooling", "1_Pooling")]
    listed = [
        {"idx": n, "type": f"sentence_transformers.models.{kind}", "path": path}
        for n, (kind, path) in enumerate(modules)
    ]
    (folder / "modules.json").write_text(json.dumps(listed))
    (folder / "1_Pooling").mkdir()
    pooling = {"word_embedding_dimension": 32, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
    (folder / "1_Pooling/config.json").write_text(json.dumps(pooling))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 6}))
    return folder


def images(folder: Path) -> Path:
    torch.manual_seed(6)
    config = ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=37, image_size=16, patch_size=4,
        id2label={0: "cat", 1: "dog"}, initializer_range=0.7,
    )  # fmt: skip
    return save(folder, ViTForImageClassification(config), ViTImageProcessor(size={"height": 16, "width": 16}))


def generates(folder: Path) -> Path:
    torch.manual_seed(7)
    config = GPT2Config(
        vocab_size=257,
        n_positions=64,
        n_embd=32,
        n_layer=2,
        n_head=2,
        initializer_range=0.7,
        bos_token_id=256,
        eos_token_id=256,
    )
    return save(folder, GPT2LMHeadModel(config), pieces())


def answers(folder: Path) -> Path:
    torch.manual_seed(8)
    config = T5Config(
        vocab_size=257, d_model=32, d_kv=8, d_ff=37, num_layers=2, num_heads=2, decoder_start_token_id=256, eos_token_id=256,
        pad_token_id=256, initializer_factor=2.0,
    )  # fmt: skip
    return save(folder, T5ForConditionalGeneration(config), pieces())


FOLDERS: dict[str, Callable[[Path], Path]] = {
    make.__name__: make
    for make in (texts, several, score, entities, masks, vectors, sentences, images, generates, answers)
}
