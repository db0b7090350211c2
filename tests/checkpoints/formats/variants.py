"""Tiny checkpoints whose layers take every form, with a tokenizer that other tools know."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from streamline.checkpoints.checkpoint import read_model, save
from streamline.engine.decoder import Decoder
from streamline.method import Pruned
from streamline.methods.replacement import make
from streamline.methods.sublayers import remove_sublayer
from streamline.plan import Plan, Span, Step
from streamline.testing.models import tiny_model

IDS = torch.arange(1, 13)[None]


def bpe() -> PreTrainedTokenizerFast:
    """Bytes that split text as GPT-2 does."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<pad>", "<s>", "</s>"]
    vocabulary = {token: index for index, token in enumerate([*alphabet, *special, "th", "the"])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[("t", "h"), ("th", "e")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(special)
    pad, bos, eos = special
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=pad,
        bos_token=bos,
        eos_token=eos,
        chat_template="{{ messages }}",
    )


def dropped(decoder: Decoder) -> Pruned:
    return Pruned(Plan.drop(4, [1]))


def block(decoder: Decoder) -> Pruned:
    """Layers 1 and 2 replaced by a SwiGLU with norm and residual."""
    span = Span(1, 3)
    module = make("swiglu", decoder, span, residual=True, norm=True)
    with torch.no_grad():
        module.down_proj.weight.normal_(0, 0.1)
    return Pruned(Plan.replace(4, span, "swiglu"), {1: module})


def without_attention(decoder: Decoder) -> Pruned:
    plan = Plan(4, (Step(0), Step(1, "no-attention"), Step(2), Step(3)))
    return Pruned(plan, {1: remove_sublayer(decoder, 1, "attention")})


def without_either(decoder: Decoder) -> Pruned:
    """Layer 1 without attention, 2 without MLP."""
    plan = Plan(4, (Step(0), Step(1, "no-attention"), Step(2, "no-mlp"), Step(3)))
    modules: dict[int, Any] = {
        1: remove_sublayer(decoder, 1, "attention"),
        2: remove_sublayer(decoder, 2, "mlp"),
    }
    return Pruned(plan, modules)


def ffn(decoder: Decoder) -> Pruned:
    span = Span(1, 3)
    return Pruned(Plan.replace(4, span, "ffn"), {1: make("ffn", decoder, span)})


def decoder_of(family: str, **changes: Any) -> Decoder:
    """A model of four layers, MLPs 256 wide where the family has Llama's fields."""
    width = {} if family in ("gpt2", "opt", "falcon", "bloom") else {"intermediate_size": 256}
    return Decoder(tiny_model(family, n_layers=4, **(width | changes)))


def saved(
    prune: Callable[[Decoder], Pruned], decoder: Decoder, folder: Path, tokenizer: Any = None
) -> Path:
    """The checkpoint of a variant."""
    return save(prune(decoder), decoder, tokenizer, folder, {}, verify=False)


def logits(folder: Path) -> torch.Tensor:
    """What a checkpoint makes of :data:`IDS`, [T, V]."""
    with torch.no_grad():
        return read_model(folder).eval()(IDS).logits[0]
