"""One folder, three readers: whole, streamed and counted give one model or refuse it alike."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from readers import agreed, logits, refused
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from streamline.errors import StreamlineError
from streamline.sources.models import load_model, model_fingerprint
from streamline.streaming.opening import load_streamed
from streamline.testing.models import tiny_model

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
UP = {
    "llama": "model.layers.1.mlp.up_proj.weight",
    "opt": "model.decoder.layers.1.fc1.bias",
    "gpt2": "transformer.h.1.mlp.c_fc.weight",
    "gpt_neox": "gpt_neox.layers.1.mlp.dense_h_to_4h.weight",
}
PREFIX = {"llama": "model.", "opt": "model.", "gpt2": "transformer.", "gpt_neox": "gpt_neox."}


@dataclass
class Parts:
    """A folder in parts: what is to be written as its config and its weights."""

    family: str
    config: dict[str, Any]
    tensors: dict[str, Tensor]

    @property
    def up(self) -> str:
        """A tensor of layer 1."""
        return UP[self.family]

    def renamed(self, name: Callable[[str], str]) -> None:
        self.tensors = {name(key): value for key, value in self.tensors.items()}


def parts(family: str, tied: bool) -> Parts:
    model = tiny_model(family, n_layers=4, tied=tied)
    tensors = {k: v.contiguous() for k, v in model.state_dict().items()}
    if tied:
        tensors.pop("lm_head.weight")
    config = model.config.to_dict() | {"architectures": [type(model).__name__]}
    return Parts(family, json.loads(json.dumps(config)), tensors)


def n_layers(p: Parts, n: int) -> None:
    p.config["n_layer" if p.family == "gpt2" else "num_hidden_layers"] = n


def drop(p: Parts) -> None:
    del p.tensors[p.up]


def shape(p: Parts) -> None:
    p.tensors[p.up] = torch.zeros(7, 7)


def extra(p: Parts) -> None:
    p.tensors[p.up.replace(".1.", ".99.")] = torch.zeros(3)


def renumbered(p: Parts) -> None:
    p.renamed(lambda key: key.replace(".3.", ".4."))


def bare(p: Parts) -> None:
    p.renamed(lambda key: key.removeprefix(PREFIX[p.family]))


def prefixed(p: Parts) -> None:
    p.renamed(lambda key: "transformer.model." + key)


def twice(p: Parts) -> None:
    p.tensors[p.up.removeprefix(PREFIX[p.family])] = p.tensors[p.up] + 1


def buffers(p: Parts) -> None:
    for name in ("self_attn.rotary_emb.inv_freq", "attn.masked_bias", "attention.bias"):
        p.tensors[p.up.partition(".1.")[0] + ".1." + name] = torch.ones(3)


def integers(p: Parts) -> None:
    p.tensors[p.up] = torch.ones_like(p.tensors[p.up], dtype=torch.int8)


def flipped(p: Parts) -> None:
    p.config["tie_word_embeddings"] = not p.config["tie_word_embeddings"]


def embedding(p: Parts) -> str:
    return next(key for key in p.tensors if key.endswith(("embed_tokens.weight", "wte.weight")))


def same_head(p: Parts) -> None:
    p.tensors["lm_head.weight"] = p.tensors[embedding(p)].clone()


def other_head(p: Parts) -> None:
    p.tensors["lm_head.weight"] = p.tensors[embedding(p)] + 1


EDITS: dict[str, Callable[[Parts], None]] = {
    "drop": drop,
    "shape": shape,
    "extra": extra,
    "renumbered": renumbered,
    "bare": bare,
    "prefixed": prefixed,
    "twice": twice,
    "buffers": buffers,
    "integers": integers,
    "flipped": flipped,
    "more": lambda p: n_layers(p, 6),
    "fewer": lambda p: n_layers(p, 2),
    "endless": lambda p: n_layers(p, 10**9),
    "none": lambda p: n_layers(p, 0),
    "hidden": lambda p: p.config.update({"n_embd" if p.family == "gpt2" else "hidden_size": 48}),
    "vocab": lambda p: p.config.update(vocab_size=258),
    "padding": lambda p: p.config.update(vocab_size=200),
    "types": lambda p: p.config.update(layer_types=["full_attention"] * 3),
    "elsewhere": lambda p: p.config.update(transformers_weights="other.safetensors"),
}


def write(p: Parts, layout: str, folder: Path) -> Path:
    """Write a folder; the tokenizer's files are added by the caller."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(p.config))
    names = sorted(p.tensors)
    half = {n: p.tensors[n] for n in names[::2]}, {n: p.tensors[n] for n in names[1::2]}
    shards = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    if layout.startswith("sharded"):
        for file, tensors in zip(shards, half, strict=True):
            save_file(tensors, folder / file, {"format": "pt"})
        index = {n: f for f, tensors in zip(shards, half, strict=True) for n in tensors}
        if layout == "sharded, a tensor elsewhere":
            index[names[0]] = shards[1]
        if layout == "sharded, a tensor unknown":
            del index[names[0]]
        if layout == "sharded, a tensor too many":
            index["model.more"] = shards[1]
        if layout == "sharded, a tensor twice":
            save_file(half[0] | {names[1]: half[1][names[1]] + 1}, folder / shards[0])
        if layout == "sharded, a file gone":
            (folder / shards[1]).unlink()
        if layout == "sharded, a stray file":
            save_file({names[0]: p.tensors[names[0]] + 1}, folder / "model-00003.safetensors")
            save_file({"tok": torch.ones(2)}, folder / "consolidated.safetensors")
        (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": index}))
        if layout == "sharded, and whole":
            save_file({n: t + 1 for n, t in p.tensors.items()}, folder / SINGLE)
        return folder
    if layout == "pickled shards":
        files = ("pytorch_model-1.bin", "pytorch_model-2.bin")
        for file, tensors in zip(files, half, strict=True):
            torch.save(tensors, folder / file)
        index = {n: f for f, tensors in zip(files, half, strict=True) for n in tensors}
        text = json.dumps({"metadata": {}, "weight_map": index})
        (folder / "pytorch_model.bin.index.json").write_text(text)
        return folder
    if layout in ("pickled", "pickled beside"):
        other = {n: t + 1 for n, t in p.tensors.items()}
        torch.save(p.tensors if layout == "pickled" else other, folder / "pytorch_model.bin")
    if layout != "pickled":
        save_file(p.tensors, folder / SINGLE, {"format": "pt"})
    if layout == "whole, an old index":
        (folder / INDEX).write_text(json.dumps({"weight_map": {names[0]: shards[0]}}))
    if layout == "cut":
        file = folder / SINGLE
        file.write_bytes(file.read_bytes()[:-100])
    return folder


GOOD = (
    "whole", "whole, an old index", "sharded", "sharded, a stray file", "pickled",
    "pickled shards", "pickled beside",
)  # fmt: skip
BAD = {
    "sharded, a tensor elsewhere": "index.json and its files disagree: ",
    "sharded, a tensor unknown": "index.json and its files disagree: ",
    "sharded, a tensor too many": r"index.json and its files disagree: 'model\.more'",
    "sharded, a tensor twice": "index.json and its files disagree: ",
    "sharded, a file gone": "model-00002-of-00002.safetensors cannot be opened",
    "sharded, and whole": "holds both model.safetensors and .*index.json",
    "cut": "damaged or cut short",
}


@pytest.fixture(scope="module")
def store(
    tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast
) -> Callable[[Parts, str], Path]:
    """Writes a folder that was not there before."""
    root, counter = tmp_path_factory.mktemp("odd"), iter(range(10**6))

    def stored(p: Parts, layout: str = "whole") -> Path:
        folder = write(p, layout, root / str(next(counter)))
        tokenizer.save_pretrained(folder)
        return folder

    return stored


@pytest.mark.parametrize("layout", GOOD)
def test_layouts_that_are_one_model(layout: str, store: Any) -> None:
    same(agreed(store(parts("llama", False), layout)), agreed(store(parts("llama", False))))


@pytest.mark.parametrize("layout", BAD)
def test_layouts_that_are_none(layout: str, store: Any) -> None:
    refused(agreed(store(parts("llama", False), layout)), BAD[layout])


def same(found: Any, wanted: Any) -> None:
    assert not isinstance(found, str), found
    assert torch.equal(found[0], wanted[0]) and found[1] == wanted[1]


@pytest.mark.parametrize(
    ("family", "tied", "edit", "message"),
    [
        ("llama", False, "drop", r"missing: 'model\.layers\.1\.mlp\.up_proj\.weight'"),
        ("opt", False, "drop", r"missing: 'model\.decoder\.layers\.1\.fc1\.bias'"),
        ("llama", False, "extra", r"left over: 'model\.layers\.99\.mlp\.up_proj\.weight'"),
        ("llama", False, "renumbered", r"num_hidden_layers is 4, .* of the layers 0, 1, 2, 4"),
        ("llama", False, "more", r"num_hidden_layers is 6, .* of the layers 0, 1, 2, 3"),
        ("llama", False, "fewer", r"num_hidden_layers is 2, .* of the layers 0, 1, 2, 3"),
        ("gpt2", True, "fewer", r"num_hidden_layers is 2, .* of the layers 0, 1, 2, 3"),
        ("llama", False, "endless", "num_hidden_layers is 1000000000, and there are 39 tensors"),
        ("llama", False, "none", "no layers"),
        ("llama", False, "shape", r"up_proj\.weight' is \[7, 7\], the config needs \[64, 32\]"),
        ("llama", False, "hidden", r"'model\.embed_tokens\.weight' is \[320, 32\], .* \[320, 48\]"),
        ("llama", False, "vocab", r"is \[320, 32\], the config needs \[258, 32\]"),
        ("llama", False, "padding", "pad_token_id is 256, vocab_size is 200"),
        ("llama", False, "prefixed", r"left over: 'transformer\.model\.lm_head"),
        ("llama", False, "twice", r"twice: 'model\.layers\.1.* and 'layers\.1"),
        ("llama", False, "integers", r"up_proj\.weight' is stored as int8.*not quantised"),
        ("llama", True, "flipped", r"missing: 'lm_head\.weight'.*tie_word_embeddings"),
        (
            "llama",
            False,
            "flipped",
            r"is true, but they differ: .* and 'lm_head\.weight'",
        ),
        (
            "llama",
            True,
            "other_head",
            r"is true, but they differ: .* and 'lm_head\.weight'",
        ),
        ("llama", False, "types", "layer_types names 3 layers, num_hidden_layers is 4"),
        ("llama", False, "elsewhere", "transformers_weights"),
        ("llama", False, "bare", None),
        ("opt", True, "bare", None),
        ("gpt2", True, "bare", None),
        ("llama", False, "buffers", None),
        ("gpt2", True, "buffers", None),
        ("llama", True, "same_head", None),
        ("gpt_neox", False, "old_head", None),
    ],
)
def test_edits(family: str, tied: bool, edit: str, message: str | None, store: Any) -> None:
    p = parts(family, tied)
    wanted = agreed(store(p)) if message is None else None
    more = {
        "same_head": same_head,
        "other_head": other_head,
        "old_head": lambda p: p.renamed(lambda key: key.replace("lm_head", "embed_out")),
    }
    (EDITS | more)[edit](p)
    found = agreed(store(p))
    if message is None:
        same(found, wanted)
    else:
        refused(found, message)


@settings(
    derandomize=True,
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    family=st.sampled_from(sorted(UP)),
    tied=st.booleans(),
    edits=st.lists(st.sampled_from(sorted(EDITS)), max_size=3, unique=True),
    layout=st.sampled_from([*GOOD, *BAD]),
)
def test_any_odd_folder(family: str, tied: bool, edits: list[str], layout: str, store: Any) -> None:
    p = parts(family, tied and family != "gpt_neox")
    for edit in edits:
        if p.up in p.tensors or edit not in ("drop", "integers", "shape", "twice"):
            EDITS[edit](p)
    agreed(store(p, layout))


def test_float_formats_agree_where_the_config_is_silent(store: Any) -> None:
    p = parts("llama", False)
    p.tensors = {name: tensor.bfloat16() for name, tensor in p.tensors.items()}
    p.config["dtype"] = None
    folder = store(p)
    model, _ = load_model(str(folder), dtype="auto")
    decoder, _ = load_streamed(str(folder), dtype="auto")
    with decoder.source:
        assert model.dtype == decoder.dtype == torch.bfloat16


def test_weights_that_float16_cannot_hold_are_refused(store: Any) -> None:
    p = parts("llama", False)
    p.tensors[p.up][3, 5] = 1e6
    folder = str(store(p))
    for reader in (load_model, load_streamed):
        with pytest.raises(StreamlineError, match=rf"'{p.up}'.*float16.*--dtype bfloat16"):
            decoder = reader(folder, dtype="float16")[0]
            logits(decoder)  # type: ignore[arg-type]


def test_a_fingerprint_is_of_the_weights_that_are_read(store: Any) -> None:
    folder = store(parts("llama", False), "pickled beside")
    first = model_fingerprint(str(folder))
    (folder / "pytorch_model.bin").unlink()
    assert model_fingerprint(str(folder)) == first
    assert load_file(folder / SINGLE)
