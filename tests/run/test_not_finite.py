"""What is not a number fails its cell with layer, stage and question; the other cells go on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from streamline.calibration import Calibration
from streamline.cli.main import app
from streamline.engine.decoder import Decoder
from streamline.method import Method, Pruned, Size
from streamline.plan import Plan, Span, Step
from streamline.run.pipeline import run
from streamline.testing.models import tiny_model, tiny_tokenizer


def saved(folder: Path, spoil: Callable[[Any], None], dtype: torch.dtype = torch.float32) -> Path:
    """A tiny model on disk whose weights were changed first."""
    model = tiny_model("llama", n_layers=6)
    with torch.no_grad():
        spoil(model)
    model.to(dtype).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def nan_in_layer_2(model: Any) -> None:
    model.model.layers[2].mlp.down_proj.weight[3, 5] = float("nan")


def inf_in_head(model: Any) -> None:
    model.lm_head.weight[7] = float("inf")


def overflows_in_layer_4(model: Any) -> None:
    model.model.layers[4].mlp.down_proj.weight.mul_(3e4)
    model.model.layers[4].mlp.up_proj.weight.mul_(1e3)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (nan_in_layer_2, ("layer 2", "mlp.down_proj.weight", "piqa", "question 0")),
        (inf_in_head, ("head", "lm_head.weight", "piqa", "question 0")),
    ],
)
def test_weights_that_are_not_finite_fail_every_cell_with_layer_and_question(
    tmp_path, config, spoil, words
):
    model = saved(tmp_path / "model", spoil)
    records = run(config(tmp_path / "out", models=str(model), methods="first-layers"))
    assert [record.status for record in records] == ["failed", "failed"]
    for word in words:
        assert word in records[0].reason
    assert records[0].summary.accuracy is None


def test_statistics_that_are_not_finite_fail_with_the_layer_and_are_not_kept(tmp_path, config):
    model = saved(tmp_path / "model", nan_in_layer_2)
    dense, shortgpt = run(config(tmp_path / "out", models=str(model), methods="shortgpt"))
    assert (dense.status, shortgpt.status) == ("failed", "failed")
    assert "calibration" in shortgpt.reason and "layer 2" in shortgpt.reason
    assert not list((tmp_path / "out").rglob("calibration*.safetensors"))
    assert (tmp_path / "out" / "report.md").is_file()


def test_float16_that_overflows_says_take_bfloat16(tmp_path, config):
    model = saved(tmp_path / "model", overflows_in_layer_4, torch.float16)
    [dense, _] = run(
        config(tmp_path / "out", models=str(model), methods="first-layers", dtype="float16")
    )
    assert dense.status == "failed"
    assert "layer 4" in dense.reason and "take bfloat16" in dense.reason


def test_a_text_alone_is_enough(tmp_path, config):
    model = saved(tmp_path / "model", nan_in_layer_2)
    given = {"models": str(model), "methods": "first-layers", "tasks": "heldout@16"}
    records = run(config(tmp_path / "out", **given))
    assert [record.status for record in records] == ["failed", "failed"]
    assert "text-heldout" in records[0].reason and "window 0" in records[0].reason
    assert "layer 2" in records[0].reason


class Multiplied(torch.nn.Module):
    """A layer in whose place stands its output times a number."""

    def __init__(self, layer: torch.nn.Module, factor: float) -> None:
        super().__init__()
        self.layer, self.factor = layer, factor

    def forward(self, hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        out = self.layer(hidden, *args, **kwargs)
        return (out[0] if isinstance(out, tuple) else out) * self.factor


@dataclass(frozen=True, kw_only=True)
class Overflowing(Method):
    """Leaves one layer out and lets the next overflow, with weights that are finite."""

    name: ClassVar[str] = "overflowing"
    paper: ClassVar[str] = "a control"
    factor: float = float("inf")

    def size(self, decoder: Decoder, sparsity: float) -> Size:
        return Size.without(decoder, 1)

    def prune(
        self,
        decoder: Decoder,
        calibration: Calibration,
        sparsity: float,
        batches: Tensor,
        seed: int,
    ) -> Pruned:
        steps = [Step(layer) for layer in range(decoder.n_layers - 1)]
        steps[3] = Step(3, "scaled", Span(3, 4))
        plan = Plan(decoder.n_layers, tuple(steps), "scaled")
        return Pruned(plan, {3: Multiplied(decoder.layers[3], self.factor)})


def test_one_cell_that_is_not_finite_leaves_the_others(tmp_path, config):
    spec = f"shortgpt,{__name__}:Overflowing,first-layers"
    records = run(config(tmp_path / "out", methods=spec))
    assert [record.status for record in records] == ["ok", "ok", "failed", "ok"]
    assert "layer 3" in records[2].reason and "piqa" in records[2].reason
    assert records[1].summary.accuracy is not None


def test_a_method_whose_modules_are_not_finite_fails_when_it_prunes(tmp_path, config):
    spec = f"{__name__}:NaNWeights,first-layers"
    records = run(config(tmp_path / "out", methods=spec))
    assert [record.status for record in records] == ["ok", "failed", "ok"]
    assert "prune" in records[1].reason and "layer.mlp.up_proj.weight" in records[1].reason


@dataclass(frozen=True, kw_only=True)
class NaNWeights(Overflowing):
    """Gives a layer of its own that holds NaN."""

    name: ClassVar[str] = "nan-weights"
    factor: float = 1.0

    def prune(self, decoder: Decoder, *args: Any, **kwargs: Any) -> Pruned:
        import copy

        pruned = super().prune(decoder, *args, **kwargs)
        own = copy.deepcopy(decoder.layers[3])
        with torch.no_grad():
            own.mlp.up_proj.weight[0, 0] = float("nan")  # type: ignore[union-attr,operator]
        return Pruned(pruned.plan, {3: Multiplied(own, 1.0)})


def test_the_command_exits_1_and_names_it(tmp_path, config, place):
    model = saved(tmp_path / "model", nan_in_layer_2)
    words = f"evaluate {model} --tasks piqa --data-dir {place / 'data'} --device cpu"
    result = CliRunner().invoke(app, [*words.split(), "--out", str(tmp_path / "one.json")])
    assert result.exit_code == 1
    assert "layer 2" in result.output
