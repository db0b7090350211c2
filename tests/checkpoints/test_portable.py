"""What lies beside the weights is what lay beside the source's, and older versions read it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from families import EVERY
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from streamline.checkpoints.checkpoint import load, save
from streamline.checkpoints.portable import add_older_keys
from streamline.engine.decoder import Decoder
from streamline.method import Pruned
from streamline.methods.replacement import make
from streamline.plan import Plan, Span
from streamline.sources.models import load_tokenizer
from streamline.streaming.opening import open_streamed
from streamline.testing.models import tiny_config, tiny_model, tiny_tokenizer


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A model as an older version left it: a class that newer ones rename, files of every kind."""
    folder = tmp_path / "source"
    model = tiny_model("llama", n_layers=4)
    model.generation_config.temperature = 0.5
    model.generation_config.do_sample = True
    model.generation_config.eos_token_id = [258, 17]
    model.save_pretrained(folder)
    tokenizer = tiny_tokenizer()
    tokenizer.save_pretrained(folder)
    named = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>", "bos_token": "<s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(named, indent=4))
    (folder / "special_tokens_map.json").write_text('{"eos_token":   "</s>"}')
    (folder / "tokenizer.model").write_bytes(b"\0\1\2")
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}")
    (folder / "README.md").write_text("not the tokenizer's")
    return folder


def ffn(decoder: Decoder) -> Pruned:
    module = make("ffn", Decoder(tiny_model("llama", n_layers=4)), Span(1, 3))
    return Pruned(Plan.replace(4, Span(1, 3), "ffn"), {1: module})


NAMES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "tokenizer.model",
    "chat_template.jinja",
)


@pytest.mark.parametrize("streamed", [False, True])
def test_files_of_the_tokenizer_are_those_of_the_source(
    streamed: bool, source: Path, tmp_path: Path
) -> None:
    tokenizer = load_tokenizer(str(source))
    assert tokenizer.pad_token == "</s>"  # set for batches; the files do not have it
    config = AutoConfig.from_pretrained(source)
    decoder = (
        open_streamed(source, config) if streamed else Decoder(tiny_model("llama", n_layers=4))
    )
    folder = save(ffn(decoder), decoder, tokenizer, tmp_path / "c", {}, verify=False)
    for name in NAMES:
        assert (folder / name).read_bytes() == (source / name).read_bytes()
    card = (folder / "README.md").read_text()  # of what was saved, not the source's
    assert "not the tokenizer's" not in card and "layer-pruning" in card
    _, loaded, _ = load(folder)
    assert loaded is not None
    assert loaded("a text").input_ids == tokenizer("a text").input_ids


def test_a_tokenizer_that_was_changed_in_memory_is_written_anew(
    source: Path, tmp_path: Path
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(source)
    tokenizer.add_tokens(["<more>"])
    decoder = Decoder(tiny_model("llama", n_layers=4))
    folder = save(ffn(decoder), decoder, tokenizer, tmp_path / "c", {}, verify=False)
    _, loaded, _ = load(folder)
    assert loaded is not None and loaded("<more>").input_ids == tokenizer("<more>").input_ids
    assert not (folder / "tokenizer.model").exists()


def test_a_tokenizer_of_no_folder_is_written_anew(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    decoder = Decoder(tiny_model("llama", n_layers=4))
    folder = save(ffn(decoder), decoder, tokenizer, tmp_path / "c", {}, verify=False)
    _, loaded, _ = load(folder)
    assert loaded is not None and loaded.get_vocab() == tokenizer.get_vocab()


def test_files_of_the_hubs_cache_are_copied(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = "0123456789" * 4
    place = tmp_path / "hub" / "models--org--tiny"
    snapshot = place / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (place / "blobs").mkdir()
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text(commit)
    for file in source.iterdir():
        file.rename(place / "blobs" / file.name)
        (snapshot / file.name).symlink_to(Path("../../blobs") / file.name)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("transformers.utils.hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    tokenizer = AutoTokenizer.from_pretrained("org/tiny", cache_dir=tmp_path / "hub")
    decoder = Decoder(tiny_model("llama", n_layers=4))
    folder = save(ffn(decoder), decoder, tokenizer, tmp_path / "c", {}, verify=False)
    for name in NAMES:
        assert (folder / name).read_bytes() == (snapshot / name).read_bytes()
        assert not (folder / name).is_symlink()


def test_a_streamed_model_keeps_its_generation_settings(source: Path, tmp_path: Path) -> None:
    decoder = open_streamed(source, AutoConfig.from_pretrained(source))
    with decoder.source:
        folder = save(ffn(decoder), decoder, None, tmp_path / "c", {}, verify=False)
    model, _, _ = load(folder)
    found: Any = model.generation_config
    assert (found.temperature, found.do_sample, found.eos_token_id) == (0.5, True, [258, 17])


@pytest.mark.parametrize("streamed", [False, True])
def test_generation_settings_that_contradict_each_other_are_kept(
    streamed: bool, source: Path, tmp_path: Path
) -> None:
    file = source / "generation_config.json"
    file.write_text(json.dumps({"temperature": 0.5, "do_sample": False, "eos_token_id": [258, 17]}))
    model = AutoModelForCausalLM.from_pretrained(source)
    decoder = open_streamed(source, model.config) if streamed else Decoder(model)
    folder = save(Pruned(Plan.drop(4, [1])), decoder, None, tmp_path / "c", {}, verify=False)
    found = json.loads((folder / "generation_config.json").read_text())
    wanted = {"temperature": 0.5, "eos_token_id": [258, 17]}
    assert wanted | found == found and not found.get("do_sample")


ROPES: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    (
        "llama",
        {"rope_theta": 5e4, "rope_type": "default"},
        {"rope_scaling": None, "rope_theta": 5e4},
    ),
    (
        "llama",
        {
            "rope_theta": 5e4, "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
        },
        {
            "rope_scaling": {
                "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
                "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
            }
        },
    ),
    (
        "gpt_neox",
        {"rope_theta": 2e4, "rope_type": "default", "partial_rotary_factor": 0.5},
        {"rotary_pct": 0.5, "rotary_emb_base": 2e4},
    ),
    (
        "phi3",
        {
            "rope_theta": 2e4, "rope_type": "longrope", "partial_rotary_factor": 1.0,
            "short_factor": [1.0] * 4, "long_factor": [2.0] * 4,
        },
        {
            "rope_scaling": {
                "type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4,
            },
            "partial_rotary_factor": 1.0,
        },
    ),
]  # fmt: skip


@pytest.mark.parametrize(("family", "rope", "wanted"), ROPES)
def test_rotary_positions_stand_under_their_older_names_too(
    family: str, rope: dict[str, Any], wanted: dict[str, Any], tmp_path: Path
) -> None:
    decoder = Decoder(tiny_model(family, n_layers=4, rope_parameters=rope))
    modules = {1: make("ffn", decoder, Span(1, 3))}
    replaced = Pruned(Plan.replace(4, Span(1, 3), "ffn"), modules)
    for name, pruned in (("plain", Pruned(Plan.drop(4, [1]))), ("replaced", replaced)):
        folder = save(pruned, decoder, None, tmp_path / name, {}, verify=False)
        written = json.loads((folder / "config.json").read_text())
        assert wanted | written == written
        assert (written["dtype"], written["torch_dtype"]) == ("float32", "float32")


@pytest.mark.parametrize("family", EVERY)
def test_this_version_reads_the_same_with_and_without_older_names(
    family: str, tmp_path: Path
) -> None:
    extra = {f: {"rope_parameters": rope} for f, rope, _ in ROPES}.get(family, {})
    tiny_config(family, **extra).save_pretrained(tmp_path)
    before = AutoConfig.from_pretrained(tmp_path)
    add_older_keys(tmp_path / "config.json")
    after = AutoConfig.from_pretrained(tmp_path)
    fields = before.to_dict()
    found = {name: value for name, value in after.to_dict().items() if name in fields}
    (found.get("rope_parameters") or {}).pop("type", None)  # said twice
    assert found == fields
