"""Blocks that differ: written as the published format has them, read by a reader of that format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints.formats import variants
from checkpoints.formats.variants import IDS, bpe, decoder_of, logits, saved
from safetensors.torch import load_file
from transformers import AutoConfig, LlamaConfig, PreTrainedTokenizerFast
from transformers.models.llama import modeling_llama as llama

from streamline.checkpoints.formats.serving import write_format
from streamline.errors import UnsupportedModelError
from streamline.modeling.configuration_decilm import DeciLMConfig


def width_of(ffn_mult: float, hidden: int) -> int:
    """The published rule."""
    width = int(2 * ffn_mult * hidden / 3)
    return width if width % 256 == 0 else width + 256 - width % 256


@torch.no_grad()
def run_published(folder: Path) -> torch.Tensor:
    """A reader of the format: Llama's parts, block by block after ``block_configs``."""
    fields = json.loads((folder / "config.json").read_text())
    tensors, used = load_file(folder / "model.safetensors"), set[str]()

    def filled(module: Any, prefix: str) -> Any:
        state = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
        used.update(prefix + name for name in state)
        module.load_state_dict(state)
        return module.eval()

    hidden, heads = fields["hidden_size"], fields["num_attention_heads"]
    x = tensors["model.embed_tokens.weight"][IDS]
    rope = None
    for index, conf in enumerate(fields["block_configs"]):
        attention, mlp = conf["attention"], conf["ffn"]
        at = f"model.layers.{index}."
        norm = {"hidden_size": hidden, "eps": fields["rms_norm_eps"]}
        config = LlamaConfig(
            hidden_size=hidden,
            num_attention_heads=heads,
            num_key_value_heads=heads // (attention["n_heads_in_group"] or heads),
            intermediate_size=width_of(mlp["ffn_mult"] or 0, hidden),
            rope_parameters={"rope_type": "default", "rope_theta": fields["rope_theta"]},
            attn_implementation="eager",
        )
        if not attention["no_op"]:
            rope = llama.LlamaRotaryEmbedding(config)(x, torch.arange(IDS.shape[1])[None])
            own = filled(llama.LlamaAttention(config, 0), f"{at}self_attn.")
            before = filled(llama.LlamaRMSNorm(**norm), f"{at}input_layernorm.")
            mask = torch.full((1, 1, 12, 12), -1e9).triu(1)
            x = x + own(before(x), position_embeddings=rope, attention_mask=mask)[0]
        if not mlp["no_op"]:
            own = filled(llama.LlamaMLP(config), f"{at}mlp.")
            before = filled(llama.LlamaRMSNorm(**norm), f"{at}post_attention_layernorm.")
            x = x + own(before(x))
    x = filled(llama.LlamaRMSNorm(hidden, eps=fields["rms_norm_eps"]), "model.norm.")(x)
    head = "model.embed_tokens.weight" if fields["tie_word_embeddings"] else "lm_head.weight"
    assert used | {head, "model.embed_tokens.weight"} == set(tensors)
    return (x @ tensors[head].T)[0]


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kind", ["dropped", "block", "without_attention", "without_either"])
def test_a_reader_of_the_format_computes_the_same(tmp_path, kind, tied):
    folder = saved(getattr(variants, kind), decoder_of("llama", tied=tied), tmp_path / "a", bpe())
    out = write_format(folder, "nemotron-nas", tmp_path / "b")
    torch.testing.assert_close(run_published(out), logits(folder), rtol=1e-4, atol=1e-4)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(out)
    assert tokenizer.get_vocab() == bpe().get_vocab()


def test_engines_read_its_config_with_the_code_beside_it(tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "m"))
    folder = saved(variants.without_either, decoder_of("llama"), tmp_path / "a")
    out = write_format(folder, "nemotron-nas", tmp_path / "b")
    assert not (out / "README.md").exists()  # the checkpoint's would say how to load that
    fields = json.loads((out / "config.json").read_text())
    assert fields["architectures"] == ["DeciLMForCausalLM"]
    assert (fields["model_type"], len(fields["block_configs"])) == ("nemotron-nas", 4)
    config = DeciLMConfig.from_pretrained(out)
    first, second, third, _ = config.block_configs
    assert (first.attention.no_op, first.attention.n_heads_in_group) == (False, 2)
    assert second.attention.no_op and not second.ffn.no_op
    assert third.ffn.no_op and not hasattr(third.ffn, "intermediate_size")
    assert json.loads(config.to_json_string())["block_configs"] == fields["block_configs"]
    alone = AutoConfig.from_pretrained(out, trust_remote_code=True)
    assert alone.block_configs == config.block_configs


@pytest.mark.parametrize(
    ("kind", "family", "changes", "reason"),
    [
        ("ffn", "llama", {}, "layer 1 is of the kind ffn"),
        ("dropped", "opt", {}, "its blocks are Llama's, and this is opt"),
        ("dropped", "llama", {"intermediate_size": 250}, "250 units, no multiple of 256"),
        ("dropped", "llama", {"attention_bias": True}, "its projections have biases"),
        ("dropped", "llama", {"hidden_act": "gelu"}, "its MLPs use gelu"),
        ("dropped", "llama", {"head_dim": 16}, "4 heads of 16 channels are not its width"),
    ],
)
def test_what_it_cannot_hold_is_refused_with_the_reason(tmp_path, kind, family, changes, reason):
    folder = saved(getattr(variants, kind), decoder_of(family, **changes), tmp_path / "a")
    with pytest.raises(UnsupportedModelError, match=reason):
        write_format(folder, "nemotron-nas", tmp_path / "b")
    assert not (tmp_path / "b").exists()
