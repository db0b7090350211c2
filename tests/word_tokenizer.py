"""A tiny tokenizer that knows words, so that texts have as few tokens as with a real one."""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import lru_cache

from doc_blocks import PAGES, ROOT
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from streamline.testing.models import tiny_tokenizer

__all__ = ["english_tokenizer", "word_tokenizer"]


@lru_cache(maxsize=1)
def english_tokenizer() -> PreTrainedTokenizerFast:
    """One that knows the words of this project's own pages."""
    return word_tokenizer([(ROOT / page).read_text(encoding="utf-8") for page in PAGES], 1_000)


def word_tokenizer(texts: Iterable[str], size: int) -> PreTrainedTokenizerFast:
    """The tiny tokenizer of bytes, its tokens with the same ids, and words behind them.

    Args:
        texts: Where its words are from.
        size: Tokens in all, about.
    """
    split = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = sorted(split.alphabet())
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = split
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    trained.train_from_iterator(texts, trainer)
    merges = [tuple(pair) for pair in json.loads(trained.to_str())["model"]["merges"]]
    bytes_of = tiny_tokenizer()
    words = bytes_of.get_vocab()
    for pair in merges:
        words.setdefault("".join(pair), len(words))
    found = Tokenizer(models.BPE(vocab=words, merges=merges))
    found.pre_tokenizer, found.decoder = split, decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=found,
        pad_token=bytes_of.pad_token,
        bos_token=bytes_of.bos_token,
        eos_token=bytes_of.eos_token,
        model_max_length=bytes_of.model_max_length,
        clean_up_tokenization_spaces=False,
    )
