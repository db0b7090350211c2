from __future__ import annotations

import pytest
import torch
from tiny_inputs import small_run, write_inputs
from torch import Tensor

from streamline.api.variants import unsupported_reason
from streamline.calibration import Calibration
from streamline.checkpoints import checkpoint
from streamline.checkpoints.formats.serving import served
from streamline.engine.decoder import Decoder
from streamline.errors import UnsupportedModelError
from streamline.evaluation.efficiency import bench
from streamline.evaluation.efficiency.counts import checkpoint_bytes, shape_of
from streamline.evaluation.efficiency.measure import Beside
from streamline.method import Pruned
from streamline.registry import build_method
from streamline.report.figures.pareto import pareto_figure
from streamline.report.figures.style import Style
from streamline.report.findings.rows import rows
from streamline.run.pipeline import run
from streamline.testing.models import tiny_model
from streamline.testing.runner import check_method

TOKENS = torch.arange(16).view(2, 8)
NOTHING = Calibration(torch.zeros(7, 7), torch.zeros(7, 7), 16, 2)


def stored(spec: str, decoder: Decoder) -> Pruned:
    return build_method(spec).prune(decoder, NOTHING, 0.5, TOKENS, 0)


def affine(weight: Tensor, bits: int, group: int) -> Tensor:
    """Each group rounded to integers between its least and its greatest weight, one by one."""
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    read = torch.empty_like(weight)
    for row in range(weight.shape[0]):
        for start in range(0, weight.shape[1], group):
            part = weight[row, start : start + group]
            least, most = part.min().clamp(max=0.0), part.max().clamp(min=0.0)
            scale = (most - least) / (high - low)
            zero = (low - torch.round(least / scale)).clamp(low, high)
            codes = (torch.round(part / scale) + zero).clamp(low, high)
            read[row, start : start + group] = (codes - zero) * scale
    return read


@pytest.mark.parametrize(
    ("spec", "bits", "group"),
    [
        ("quantized+group_size=16", 4, 16),
        ("quantized+bits=8+group_size=32", 8, 32),
        ("quantized+group_size=null", 4, None),
    ],
)
def test_weights_are_those_of_the_formula_and_bytes_are_counted(spec, bits, group):
    decoder = Decoder(tiny_model("llama", n_layers=2))
    pruned = stored(spec, decoder)
    model = pruned.model
    dense = dict(decoder.model.named_parameters())
    held = sum(p.numel() * 4 for p in dense.values())
    bytes_ = 0
    for name, parameter in model.named_parameters():
        before = dense[name]
        if name.startswith("model.layers") and before.dim() == 2:
            width = group or before.shape[1]
            torch.testing.assert_close(parameter, affine(before, bits, width), rtol=0, atol=1e-6)
            assert not torch.equal(parameter, before)
            bytes_ += before.numel() * bits // 8 + before.numel() // width * (4 + 1)
        else:
            assert parameter is before
            bytes_ += before.numel() * 4
    assert checkpoint_bytes(model) == bytes_ == pruned.notes["stored_bytes"] < held
    assert checkpoint_bytes(decoder.model) == held == pruned.notes["dense_bytes"]
    assert pruned.n_parameters(decoder) == decoder.n_parameters() and pruned.plan.is_dense
    assert shape_of(model) != shape_of(decoder.model)


def test_the_head_is_stored_when_asked_for():
    decoder = Decoder(tiny_model("llama", n_layers=1))
    model = stored("quantized+group_size=32+head=true", decoder).model
    head = decoder.model.lm_head.weight
    torch.testing.assert_close(model.lm_head.weight, affine(head, 4, 32), rtol=0, atol=1e-6)
    assert model.model.embed_tokens.weight is decoder.model.model.embed_tokens.weight


@pytest.mark.parametrize("family", ["llama", "opt", "qwen3"])
def test_it_keeps_the_contract(family):
    outcomes = list(check_method(build_method("quantized+group_size=16"), [family]))
    assert [o for o in outcomes if o.status != "passed"] == []


@pytest.mark.parametrize(
    ("spec", "family", "tied", "why"),
    [
        ("quantized", "llama", False, r"group_size=64 .* divide the 32 columns of .*take 32 or 16"),
        ("quantized+group_size=16+head=true", "llama", True, "is its table of embeddings"),
        ("quantized+group_size=16", "gpt2", False, r"c_attn of .* is a Conv1D .*\(32, 96\)"),
        ("quantized+group_size=16", "mixtral", False, "linear maps, and .* of .* is a Mixtral"),
    ],
)
def test_what_the_format_does_not_hold_is_refused(spec, family, tied, why):
    decoder = Decoder(tiny_model(family, n_layers=1, tied=tied))
    with pytest.raises(UnsupportedModelError, match=why):
        raise UnsupportedModelError(build_method(spec).unsupported(decoder) or "it is not")


def test_it_is_neither_trained_nor_saved_nor_timed(tmp_path):
    decoder = Decoder(tiny_model("llama", n_layers=2))
    method = build_method("quantized+group_size=16")
    reason = unsupported_reason(method, decoder, 0.5, recovery="lora")
    assert "what quantized makes cannot be trained: leave out --recovery lora" in reason
    pruned = stored("quantized+group_size=16", decoder)
    with pytest.raises(UnsupportedModelError, match="4 bits a weight in groups of 16"):
        checkpoint.save(pruned, decoder, None, tmp_path / "c", {}, verify=False)
    assert not (tmp_path / "c").exists()
    path = pruned.path(decoder)
    assert served(path) == []
    found = Beside(decoder, "quick").measure(path, seconds=1.0)
    assert found["checkpoint_bytes"] == pruned.notes["stored_bytes"]
    assert found["dense"]["checkpoint_bytes"] == pruned.notes["dense_bytes"]
    assert "not measured" in found["reason"] and not {"decode", "way"} & set(found)


def test_a_run_has_its_row_with_bytes_and_a_figure_of_them(tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "QUICK_SECONDS", 1.0)
    place = write_inputs(tmp_path, n_questions=4)
    four, eight = "quantized+group_size=16", "quantized+bits=8+group_size=16"
    config = small_run(
        place, tmp_path / "out", methods=[four, eight, "shortgpt"], efficiency="quick", limit=2
    )
    records = {record.method: record for record in run(config)}
    left = {
        name: one.efficiency.checkpoint_bytes / one.efficiency.dense.checkpoint_bytes
        for name, one in records.items()
    }
    assert 0.25 < left[four] < left[eight] < 0.65 < left["shortgpt"] < left["dense"] == 1
    for name in (four, eight):
        one = records[name]
        assert one.parameters.removed_fraction == 0 and one.plan.removed_layers == []
        assert one.notes["flag"].startswith("no parameter goes") and one.extra("serves_in") == []
        assert one.efficiency.decode == [] and one.tasks["piqa"].value is not None
    found = rows(list(records.values()), {})
    figure = pareto_figure(found, Style([row.method for row in found]))
    assert "file size" in [view.label for view in figure.views]
    page = (tmp_path / "out" / "report.md").read_text()
    assert "4 bits a weight in groups of 16" in page
    run(
        small_run(place, tmp_path / "out", methods=[four], save="all", limit=2)
    )  # of it there is none
    assert not (tmp_path / "out" / "checkpoints").exists()
