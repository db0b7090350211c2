"""GGUF files: tensors, layers and metadata are the checkpoint's; transformers reads them, too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from checkpoints.formats import variants
from checkpoints.formats.variants import IDS, bpe, decoder_of, logits, saved
from tiny_inputs import write_sentencepiece
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from streamline.checkpoints.checkpoint import read_model
from streamline.checkpoints.formats.gguf import FILE
from streamline.checkpoints.formats.gguf_tokenizer import add_tokenizer, why_no_tokenizer
from streamline.checkpoints.formats.serving import write_format
from streamline.errors import UnsupportedModelError
from streamline.testing.models import tiny_tokenizer


def fields_of(folder: Path) -> dict[str, Any]:
    reader = gguf.GGUFReader(folder / FILE)
    return {name: field.contents() for name, field in reader.fields.items()}


@pytest.mark.parametrize(
    ("family", "dtype"),
    [
        ("llama", torch.float32),
        ("llama", torch.float16),
        ("qwen2", torch.bfloat16),
        ("mistral", torch.float32),
        ("qwen3", torch.float32),
    ],
)
def test_it_is_read_back_equal(tmp_path, family, dtype):
    decoder = decoder_of(family)
    decoder.model.to(dtype)
    folder = saved(variants.dropped, decoder, tmp_path / "a", bpe())
    out = write_format(folder, "gguf", tmp_path / "b")
    wanted = read_model(folder)
    options = {"config": wanted.config} if family == "qwen3" else {}  # it misses the head's width
    found = AutoModelForCausalLM.from_pretrained(out, gguf_file=FILE, dtype=dtype, **options)
    assert found.config.num_hidden_layers == 3
    theirs = dict(found.named_parameters())
    for name, parameter in wanted.named_parameters():
        assert torch.equal(theirs[name], parameter), name
    with torch.no_grad():
        torch.testing.assert_close(
            found.eval()(IDS).logits, wanted.eval()(IDS).logits, rtol=1e-2, atol=1e-2
        )
    text = "the other <s> thé 12345"
    tokenizer = AutoTokenizer.from_pretrained(out, gguf_file=FILE)
    assert tokenizer(text).input_ids == bpe()(text).input_ids


def test_metadata_are_the_models(tmp_path):
    folder = saved(variants.dropped, decoder_of("llama"), tmp_path / "a", bpe())
    fields = fields_of(write_format(folder, "gguf", tmp_path / "b"))
    wanted = {
        "general.architecture": "llama",
        "llama.block_count": 3,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2,
        "llama.feed_forward_length": 256,
        "llama.context_length": 512,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.eos_token_id": 258,
        "tokenizer.chat_template": "{{ messages }}",
    }
    assert {name: fields[name] for name in wanted} == wanted
    assert fields["tokenizer.ggml.merges"] == ["t h", "th e"]
    assert len(fields["tokenizer.ggml.tokens"]) == 320


@pytest.mark.parametrize("kind", ["block", "without_attention"])
def test_layers_without_attention_have_no_heads(tmp_path, kind):
    decoder = decoder_of("llama")
    folder = saved(getattr(variants, kind), decoder, tmp_path / "a")
    out = write_format(folder, "gguf", tmp_path / "b")
    reader, fields = gguf.GGUFReader(out / FILE), fields_of(out)
    model = read_model(folder)
    layers = list(model.model.layers)
    assert fields["general.architecture"] == "deci"
    assert fields["tokenizer.ggml.model"] == "none"
    heads = [4 if hasattr(getattr(x, "self_attn", None), "q_proj") else 0 for x in layers]
    assert fields["deci.attention.head_count"] == heads
    assert fields["deci.feed_forward_length"] == [256] * len(layers)
    tensors = {tensor.name: torch.tensor(tensor.data) for tensor in reader.tensors}
    mlp = layers[1] if kind == "block" else layers[1].mlp
    assert torch.equal(tensors["blk.1.ffn_down.weight"], mlp.down_proj.weight)
    assert torch.equal(tensors["blk.2.attn_v.weight"], layers[2].self_attn.v_proj.weight)
    norm = layers[1].norm if kind == "block" else layers[1].post_attention_layernorm
    assert torch.equal(tensors["blk.1.ffn_norm.weight"], norm.weight)
    assert not any(name.startswith("blk.1.attn") for name in tensors)
    assert sum(tensor.numel() for tensor in tensors.values()) == sum(
        parameter.numel() for parameter in model.parameters()
    )


def test_llama_3_divides_its_frequencies(tmp_path):
    rope = {
        "rope_type": "llama3",
        "rope_theta": 500.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    folder = saved(variants.dropped, decoder_of("llama", rope_parameters=rope), tmp_path / "a")
    out = write_format(folder, "gguf", tmp_path / "b")
    tensors = {t.name: torch.tensor(t.data) for t in gguf.GGUFReader(out / FILE).tensors}
    plain = 500.0 ** (-torch.arange(0, 8, 2) / 8)
    inverse = read_model(folder).model.rotary_emb.inv_freq
    torch.testing.assert_close(plain / tensors["rope_freqs.weight"], inverse)


@pytest.mark.parametrize(
    ("kind", "family", "changes", "reason"),
    [
        ("ffn", "llama", {}, "layer 1 is of the kind ffn"),
        ("without_either", "llama", {}, "leaves a block without MLP out altogether"),
        ("dropped", "opt", {}, "opt is not among the types"),
        ("block", "qwen2", {}, "its blocks are Llama's, and this is qwen2"),
        ("dropped", "mistral", {"sliding_window": 32}, "sees 32 tokens"),
        ("dropped", "qwen2", {"hidden_act": "gelu"}, "its MLPs use gelu"),
        (
            "dropped",
            "llama",
            {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
            "of the kind dynamic",
        ),
    ],
)
def test_what_it_cannot_hold_is_refused_with_the_reason(tmp_path, kind, family, changes, reason):
    folder = saved(getattr(variants, kind), decoder_of(family, **changes), tmp_path / "a")
    with pytest.raises(UnsupportedModelError, match=reason):
        write_format(folder, "gguf", tmp_path / "b")


def test_an_unknown_tokenizer_is_refused(tmp_path):
    folder = saved(variants.dropped, decoder_of("llama"), tmp_path / "a", tiny_tokenizer())
    with pytest.raises(UnsupportedModelError, match="for here; known are BPE of sentencepiece"):
        write_format(folder, "gguf", tmp_path / "b")


def test_a_sentencepiece_model_is_kept_piece_by_piece(tmp_path):
    source, decoder = tmp_path / "source", decoder_of("llama", bos_token_id=1, eos_token_id=2)
    decoder.model.save_pretrained(source)
    known = write_sentencepiece(source)
    added = {"content": "<|end|>", "special": True}
    file = source / "tokenizer_config.json"
    config = json.loads(file.read_text()) | {"added_tokens_decoder": {known.vocab_size(): added}}
    file.write_text(json.dumps(config))
    tokenizer = AutoTokenizer.from_pretrained(source)
    folder = saved(variants.dropped, decoder, tmp_path / "a", tokenizer)
    out = write_format(folder, "gguf", tmp_path / "b")
    fields, n = fields_of(out), known.vocab_size()
    assert (fields["tokenizer.ggml.model"], fields["tokenizer.ggml.pre"]) == ("llama", "default")
    assert fields["tokenizer.ggml.eos_token_id"] == known.eos_id()
    pieces = [f"[PAD{index}]" for index in range(320)]
    pieces[: n + 1] = [*map(known.id_to_piece, range(n)), "<|end|>"]
    assert fields["tokenizer.ggml.tokens"] == pieces
    assert fields["tokenizer.ggml.scores"][:n] == [known.get_score(index) for index in range(n)]
    kinds = [gguf.TokenType.UNUSED] * 320
    kinds[: n + 1] = [gguf.TokenType.NORMAL] * n + [gguf.TokenType.CONTROL]
    kinds[:3] = [gguf.TokenType.UNKNOWN, gguf.TokenType.CONTROL, gguf.TokenType.CONTROL]
    kinds[3:259] = [gguf.TokenType.BYTE] * 256
    assert fields["tokenizer.ggml.token_type"] == kinds
    again = AutoTokenizer.from_pretrained(out, gguf_file=FILE)
    text = "keep it dry, thé"
    assert again(text, add_special_tokens=False).input_ids == known.encode(text)


def test_other_files_of_that_name_are_no_sentencepiece_bpe(tmp_path):
    decoder_of("llama").model.save_pretrained(tmp_path)
    assert why_no_tokenizer(tmp_path) is None
    write_sentencepiece(tmp_path)
    assert why_no_tokenizer(tmp_path) is None
    write_sentencepiece(tmp_path, "unigram")
    assert "in a way that llama.cpp has no name for" in (why_no_tokenizer(tmp_path) or "")
    (tmp_path / "tokenizer.model").write_text("IQ== 0\nIg== 1\n")  # tiktoken's
    assert "in a way that llama.cpp has no name for" in (why_no_tokenizer(tmp_path) or "")


LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@pytest.mark.parametrize(
    ("steps", "name"),
    [
        ([("split", LLAMA3), ("bytes", False)], "llama-bpe"),
        ([("split", LLAMA3.replace("{1,3}", "")), ("bytes", False)], "qwen2"),
        ([("digits", True), ("bytes", True)], "smollm"),
        ([("bytes", True)], "gpt-2"),
        ([("split", r"\p{L}+"), ("bytes", False)], None),
        ([("digits", False), ("bytes", True)], None),
    ],
)
def test_splits_of_text_have_llama_cpps_names(tmp_path, steps, name):
    made = {
        "split": lambda pattern: pre_tokenizers.Split(Regex(pattern), "isolated"),
        "bytes": lambda words: pre_tokenizers.ByteLevel(False, use_regex=words),
        "digits": pre_tokenizers.Digits,
    }
    tokenizer = Tokenizer(models.BPE(vocab={"a": 0}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([made[k](v) for k, v in steps])
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(tmp_path)
    assert (why_no_tokenizer(tmp_path) is None) == (name is not None)
    if name is not None:
        writer = gguf.GGUFWriter(tmp_path / "x.gguf", "llama")
        add_tokenizer(writer, tmp_path, 3)
        assert writer.kv_data[0]["tokenizer.ggml.pre"].value == name
        writer.close()


@pytest.mark.parametrize("kind", ["dropped", "block", "without_attention"])
def test_llama_cpp_computes_the_same(tmp_path, kind):
    llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    folder = saved(getattr(variants, kind), decoder_of("llama"), tmp_path / "a", bpe())
    out = write_format(folder, "gguf", tmp_path / "b")
    engine = llama_cpp.Llama(str(out / FILE), logits_all=True, verbose=False, n_ctx=64)
    engine.eval(IDS[0].tolist())
    found = torch.tensor(engine.scores[: IDS.shape[1]])
    torch.testing.assert_close(found, logits(folder), rtol=1e-2, atol=1e-2)
