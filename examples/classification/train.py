"""Trains a tiny BERT on eight words, without a download, and writes the folder `sentiment` beside this file."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

GOOD, BAD = ["wonderful", "fine", "lovely", "great"], ["awful", "boring", "poor", "weak"]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
WORDS = [*SPECIAL, "a", "film", *GOOD, *BAD]

words = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="[UNK]"))
words.pre_tokenizer = pre_tokenizers.Whitespace()
words.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
tokenizer = PreTrainedTokenizerFast(
    tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
)

torch.manual_seed(0)
network = BertForSequenceClassification(
    BertConfig(
        vocab_size=len(WORDS), hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=32, id2label={0: "NEGATIVE", 1: "POSITIVE"},
    )
)  # fmt: skip
texts = tokenizer([f"a {word} film" for word in GOOD + BAD], return_tensors="pt")
labels = torch.tensor([1] * len(GOOD) + [0] * len(BAD))
optimizer = torch.optim.Adam(network.parameters(), 0.01)
for _ in range(30):
    network(**texts, labels=labels).loss.backward()
    optimizer.step()
    optimizer.zero_grad()

for each in (network.eval(), tokenizer):
    each.save_pretrained(Path(__file__).with_name("sentiment"))
