"""Teaches a tiny GPT-2 one sentence, without a download, and writes the folder `smol` beside this file."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

SENTENCE = "The capital of France is Paris."

pieces = Tokenizer(models.BPE())
pieces.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
pieces.decoder = decoders.ByteLevel()
pieces.train_from_iterator([SENTENCE] * 3, trainers.BpeTrainer(special_tokens=["<end>"], vocab_size=400))
ids = torch.tensor([pieces.encode(SENTENCE).ids])

torch.manual_seed(0)
network = GPT2LMHeadModel(
    GPT2Config(vocab_size=400, n_positions=32, n_embd=32, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0)
)
optimizer = torch.optim.Adam(network.parameters(), 0.01)
for _ in range(60):
    network(ids, labels=ids).loss.backward()
    optimizer.step()
    optimizer.zero_grad()

for each in (network.eval(), PreTrainedTokenizerFast(tokenizer_object=pieces, eos_token="<end>")):
    each.save_pretrained(Path(__file__).with_name("smol"))
