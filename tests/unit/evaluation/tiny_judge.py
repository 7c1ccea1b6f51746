"""A judge of two layers with random weights, whose tokens are characters, made in a folder."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

BOS, EOS, UNKNOWN = "<|start|>", "<|end|>", "<|other|>"
CONTEXT = 600


def write(folder: Path, context: int = CONTEXT, **special: str) -> Path:
    """Write a judge with these special tokens, `bos_token` and so on."""
    characters = sorted({chr(code) for code in range(32, 127)} | {"\n"})
    words = {word: n for n, word in enumerate([BOS, EOS, UNKNOWN, *characters])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token=UNKNOWN, **special)
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(words),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=context,
        initializer_range=0.5,  # far from even, so that order and context matter
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder
