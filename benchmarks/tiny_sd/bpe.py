"""A small byte-level BPE in CLIP's format, trained on the captions."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTokenizer, CLIPTokenizerFast

START, END = "<|startoftext|>", "<|endoftext|>"
MAX_TOKENS = 32
# CLIP's pre-tokenization, as in its fast tokenizer
PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def train(captions: list[str], merges: int) -> list[tuple[str, str]]:
    """The `merges` most useful merges for the captions (fewer when the captions need no more)."""
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=100_000, min_frequency=2, end_of_word_suffix="</w>", show_progress=False, initial_alphabet=[]
    )
    tokenizer.train_from_iterator(sorted(captions), trainer)
    learnt = json.loads(tokenizer.to_str())["model"]["merges"]
    return [tuple(pair) for pair in learnt[:merges]]


def write(folder: Path, merges: list[tuple[str, str]]) -> None:
    """Write the files that both CLIPTokenizer and CLIPTokenizerFast open."""
    folder.mkdir(parents=True, exist_ok=True)
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = symbols + [symbol + "</w>" for symbol in symbols]
    words += [first + second for first, second in merges] + [START, END]
    vocabulary = {word: index for index, word in enumerate(dict.fromkeys(words))}
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges), ""]
    (folder / "merges.txt").write_text("\n".join(lines), encoding="utf-8")
    options = {"model_max_length": MAX_TOKENS, "pad_token": END, "unk_token": END, "bos_token": START, "eos_token": END}
    files = str(folder / "vocab.json"), str(folder / "merges.txt")
    fast = CLIPTokenizerFast(*files, **options)
    CLIPTokenizer(*files, **options).save_pretrained(folder)
    fast.backend_tokenizer.save(str(folder / "tokenizer.json"))


def encode(tokenizer: CLIPTokenizer, captions: list[str]):
    """Token ids [n, 32], padded as the pipeline pads them."""
    return tokenizer(
        captions, padding="max_length", max_length=MAX_TOKENS, truncation=True, return_tensors="pt"
    ).input_ids
