"""A folder that is not the model in memory is not published, and no folder trusts itself."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from families import EVERY
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicLayer

from streamline.baselines._slicing import principal, slice_model
from streamline.checkpoints import checkpoint, fresh, self_test
from streamline.checkpoints.checkpoint import save, verify
from streamline.checkpoints.self_test import check_report
from streamline.engine.decoder import Decoder
from streamline.errors import AssetError
from streamline.method import Pruned
from streamline.methods.replacement import make
from streamline.plan import Plan, Span
from streamline.streaming.opening import open_streamed
from streamline.testing.models import tiny_model

SHORT = {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 2}
WINDOWS: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("gemma2", "gemma3_text", "mistral", "mixtral", "phi3"), {"sliding_window": 4}),
    "qwen2": SHORT, "qwen3": SHORT,
}  # fmt: skip


def drop(decoder: Decoder) -> Pruned:
    return Pruned(Plan.drop(decoder.n_layers, [1]))


def ffn(decoder: Decoder) -> Pruned:
    module = make("ffn", decoder, Span(1, 3))
    return Pruned(Plan.replace(decoder.n_layers, Span(1, 3), "ffn"), {1: module})


def scaled(folder: Path, name: str) -> None:
    """Double one tensor of a folder."""
    file = folder / "model.safetensors"
    tensors = load_file(file)
    tensors[name] = tensors[name] * 2
    save_file(tensors, file, {"format": "pt"})


def reconfigured(folder: Path, **fields: Any) -> None:
    """Change a folder's config."""
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def damaging(monkeypatch: pytest.MonkeyPatch, damage: Callable[[Path], None]) -> None:
    """Let every written folder be damaged at once."""
    written = PreTrainedModel.save_pretrained

    def write(self: Any, folder: Path, **options: Any) -> None:
        written(self, folder, **options)
        if "state_dict" not in options:
            damage(Path(folder))

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", write)


def test_a_folder_whose_weights_differ_is_not_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = Decoder(tiny_model("llama", n_layers=4))
    damaging(monkeypatch, lambda folder: scaled(folder, "model.layers.1.mlp.down_proj.weight"))
    with pytest.raises(AssetError, match=r"written for .*/c loads .* output of layer 1 differs by"):
        save(drop(decoder), decoder, None, tmp_path / "c", {})
    assert list(tmp_path.iterdir()) == []


def test_a_folder_whose_layers_are_built_otherwise_is_not_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compared_here: object
) -> None:
    # Twelve tokens fit into either window, so that no output differs.
    decoder = Decoder(tiny_model("gemma2", n_layers=4, sliding_window=256))
    kinds = ["full_attention", "sliding_attention", "full_attention"]
    damaging(monkeypatch, lambda folder: reconfigured(folder, layer_types=kinds))
    with pytest.raises(AssetError, match=r"layer 0 has self_attn\.layer_type = 'full_attention'"):
        save(drop(decoder), decoder, None, tmp_path / "c", {})
    assert list(tmp_path.iterdir()) == []


def test_what_is_written_of_a_streamed_model_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compared_here: object
) -> None:
    model = tiny_model("opt", n_layers=4)
    model.save_pretrained(tmp_path / "model")
    decoder = open_streamed(tmp_path / "model", model.config)
    written = checkpoint.write_weights

    def write(model: Any, decoder: Any, folder: Path) -> None:
        written(model, decoder, folder)
        scaled(folder, "model.decoder.layers.2.fc2.weight")

    monkeypatch.setattr(checkpoint, "write_weights", write)
    with decoder.source, pytest.raises(AssetError, match="output of layer 2 differs by"):
        save(drop(decoder), decoder, None, tmp_path / "c", {})
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("streams", [False, True])
def test_a_model_that_forgets_what_its_cache_holds_is_not_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compared_here: Any, streams: bool
) -> None:
    model = tiny_model("llama", n_layers=4)
    model.save_pretrained(tmp_path / "model")
    decoder = open_streamed(tmp_path / "model", model.config) if streams else Decoder(model)
    folder = save(drop(decoder), decoder, None, tmp_path / "c", {}, verify=False)
    (report,) = compared_here(folder)
    assert check_report(report)["max_log_probability_difference"] < 1e-5
    update = DynamicLayer.update

    def forgets(self: Any, keys: Any, values: Any, *rest: Any, **more: Any) -> Any:
        if self.is_initialized:  # the prompt is forgotten, its length is not
            self.keys, self.values = self.keys * 0, self.values * 0
        return update(self, keys, values, *rest, **more)

    monkeypatch.setattr(DynamicLayer, "update", forgets)
    (report,) = compared_here(folder)
    with pytest.raises(AssetError, match="log-probabilities differ by"):
        check_report(report)
    report["max_log_probability_difference"] = 0.0
    with pytest.raises(AssetError, match="continues a text differently"):
        check_report(report)


@pytest.mark.parametrize("streams", [False, True])
def test_weights_are_read_twice_to_compare(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compared_here: Any, streams: bool
) -> None:
    model = tiny_model("opt", n_layers=4)
    model.save_pretrained(tmp_path / "model")
    decoder = open_streamed(tmp_path / "model", model.config) if streams else Decoder(model)
    folder = save(drop(decoder), decoder, None, tmp_path / "c", {}, verify=False)
    passes: list[int] = []
    forward = type(model).forward

    def counted(self: Any, ids: Any, **options: Any) -> Any:
        passes.append(ids.shape[1])
        return forward(self, ids, **options)

    monkeypatch.setattr(type(model), "forward", counted)
    check_report(*compared_here(folder))
    assert passes == [self_test.N_TOKENS, self_test.N_NEW - 1]


@pytest.mark.parametrize("family", EVERY)
def test_a_cache_goes_on_in_every_family(
    tmp_path: Path, compared_here: object, family: str
) -> None:
    windows = WINDOWS.get(family, {})
    decoder = Decoder(tiny_model(family, n_layers=4, tied=family == "gemma2", **windows))
    for prune in (drop, ffn):
        save(prune(decoder), decoder, None, tmp_path / prune.__name__, {})


def test_a_model_that_is_not_finite_is_not_published(tmp_path: Path, compared_here: object) -> None:
    model = tiny_model("llama", n_layers=4)
    model.model.norm.weight.data[3] = torch.nan
    decoder = Decoder(model)
    with pytest.raises(AssetError, match="outputs are not finite.*take bfloat16.*--no-verify"):
        save(drop(decoder), decoder, None, tmp_path / "c", {})
    assert list(tmp_path.iterdir()) == []


def test_metadata_says_whether_a_fresh_process_compared(tmp_path: Path, compared_here: Any) -> None:
    decoder = Decoder(tiny_model("llama", n_layers=4))
    for wanted in (True, False):
        folder = save(ffn(decoder), decoder, None, tmp_path / str(wanted), {}, verify=wanted)
        assert json.loads((folder / "provenance.json").read_text())["verified"] is wanted
        (report,) = compared_here(folder)
        assert [depth for depth, _ in report["layers"]] == [1, 2, 3]
        assert max(difference for _, difference in report["layers"]) < 1e-5


def test_layers_of_different_widths_are_compared(tmp_path: Path, compared_here: Any) -> None:
    decoder = Decoder(tiny_model("llama", n_layers=4))
    tokens = torch.randint(0, 250, (4, 24), generator=torch.Generator().manual_seed(1))
    narrow = Pruned(Plan.dense(4), model=slice_model(decoder, 24, tokens, principal))
    (report,) = compared_here(save(narrow, decoder, None, tmp_path / "c", {}))
    assert [depth for depth, difference in report["layers"] if difference < 1e-5] == [1, 2, 3, 4]


def test_a_folders_own_code_runs_only_by_the_users_word(tmp_path: Path) -> None:
    decoder = Decoder(tiny_model("llama", n_layers=4))
    folder = save(ffn(decoder), decoder, None, tmp_path / "c", {}, verify=False)
    ran = tmp_path / "ran"
    with (folder / "modeling_layers.py").open("a") as file:
        file.write(f"\nopen({str(ran)!r}, 'w').close()\n")
    assert verify(folder)[0]["class"] == "StreamlineLlamaForCausalLM"
    assert not ran.exists()
    assert verify(folder, trust_remote_code=True)[0]["class"] == "StreamlineLlamaForCausalLM"
    assert ran.exists()


def test_one_damaged_folder_leaves_the_others_their_reports(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    decoder = Decoder(tiny_model("opt", n_layers=4))
    folders = [
        save(drop(decoder), decoder, None, tmp_path / name, {}, verify=False) for name in "ab"
    ]
    (folders[0] / "model.safetensors").write_bytes(b"nothing")
    fresh.main("", "1", *map(str, folders))
    broken, whole = map(json.loads, capsys.readouterr().out.splitlines())
    with pytest.raises(AssetError, match=r"/a cannot be loaded by a fresh process: \w+Error: "):
        check_report(broken)
    assert check_report(whole)["same_continuation"]


def test_code_of_other_folders_in_this_process_is_not_in_the_way(
    tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that has run the code of a folder has that code's place among its paths."""
    place = tmp_path / "modules"
    (place / "transformers_modules").mkdir(parents=True)
    (place / "transformers_modules" / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(place))
    decoder = Decoder(tiny_model("llama", n_layers=4))
    folder = save(ffn(decoder), decoder, tokenizer, tmp_path / "saved", {})
    assert json.loads((folder / "provenance.json").read_text())["verified"] is True
