"""A fresh process finds in a folder what was in memory, and reports when it does not."""

from __future__ import annotations

import math
import subprocess
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from streamline.checkpoints.checkpoint import save, verify
from streamline.checkpoints.self_test import check_report, fresh_reports
from streamline.engine.decoder import Decoder
from streamline.errors import AssetError
from streamline.method import Pruned
from streamline.methods.replacement import make
from streamline.methods.sublayers import remove_sublayer
from streamline.plan import Plan, Span
from streamline.testing.models import tiny_model


def saved(folder: Path, family: str, kind: str) -> Path:
    """A checkpoint of a tiny model."""
    decoder = Decoder(tiny_model(family, n_layers=4, tied=family == "gemma2"))
    span = Span(1, 3)
    if kind == "drop":
        pruned = Pruned(Plan.drop(4, [0]))
    elif kind == "no-attention":
        pruned = Pruned(Plan.replace(4, span, kind), {1: remove_sublayer(decoder, 1, "attention")})
    else:
        init = "first" if "layer" in kind else "random"
        pruned = Pruned(Plan.replace(4, span, kind), {1: make(kind, decoder, span, init=init)})
    return save(pruned, decoder, None, folder / f"{family}-{kind}", {}, verify=False)


def test_a_fresh_process_without_this_package(tmp_path: Path) -> None:
    cases = {
        ("llama", "drop"): "LlamaForCausalLM",
        ("opt", "layer"): "OPTForCausalLM",
        ("gemma2", "ffn"): "StreamlineGemma2ForCausalLM",
        ("falcon", "multiple-swiglu"): "StreamlineFalconForCausalLM",
        ("gpt2", "shared-layer"): "StreamlineGPT2LMHeadModel",
        ("gpt_neox", "no-attention"): "StreamlineGPTNeoXForCausalLM",
    }
    folders = [saved(tmp_path, *case) for case in cases]
    changed = saved(tmp_path, "qwen3", "drop")
    tensors = load_file(changed / "model.safetensors")
    tensors["model.norm.weight"] *= 1.5
    save_file(tensors, changed / "model.safetensors", {"format": "pt"})

    *reports, other = fresh_reports(*folders, changed, trust_remote_code=True)
    for report, name in zip(reports, cases.values(), strict=True):
        check_report(report)
        assert report["class"] == name
        assert report["without_package"]
        assert report["max_logit_difference"] < 1e-5
    with pytest.raises(AssetError, match="qwen3-drop loads as another model: logits differ by"):
        check_report(other)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"error": "OSError: no model"}, "be loaded by a fresh process: OSError: no model"),
        ({"keys": {"missing_keys": ["a"]}}, "loads with wrong tensors: {'missing_keys'"),
        ({"finite": False}, "outputs are not finite"),
        ({"states": ["layer 3 has x = 1 instead of 2"]}, "another model: layer 3 has x = 1"),
        ({"layers": [[1, 0.0], [2, 0.01]]}, "the output of layer 1 differs by 0.01 of its length"),
        ({"layers": [[1, math.nan]]}, "the output of layer 0 differs by nan"),
        ({"max_logit_difference": 0.1}, "logits differ by 0.1, more than 0.001"),
        ({"max_logit_difference": math.nan}, "logits differ by nan"),
        ({"max_log_probability_difference": 0.1}, "log-probabilities differ by 0.1"),
        ({"continuation_gap": 0.1}, "continues a text differently"),
    ],
)
def test_reports_are_judged(change: dict[str, Any], message: str) -> None:
    report = {
        "folder": "f",
        "keys": {},
        "finite": True,
        "states": [],
        "layers": [[1, 1e-5], [2, 1e-5]],
        "dtype": "float32",
        "largest_logit": 10.0,
        "max_logit_difference": 1e-5,
        "max_log_probability_difference": 1e-5,
        "continuation_gap": 1e-5,
    }
    assert check_report(report) is report
    with pytest.raises(AssetError, match=message):
        check_report({**report, **change})


def test_half_precision_may_round_otherwise() -> None:
    near = {"layers": [[1, 0.02]], "max_logit_difference": 0.2, "continuation_gap": 0.3}
    report = {
        **{"folder": "f", "keys": {}, "finite": True, "largest_logit": 10.0},
        **{"max_log_probability_difference": 0.2, "dtype": "bfloat16"},
        **near,
    }
    check_report(report)
    with pytest.raises(AssetError, match="output of layer 0 differs by 0.02 of its length"):
        check_report(report | {"dtype": "float32"})


def test_only_checkpoints_verify(tmp_path: Path) -> None:
    with pytest.raises(AssetError, match=r"has no self_test\.safetensors"):
        verify(tmp_path)


def test_a_process_that_ends_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "self_test.safetensors").write_bytes(b"nothing")
    failed = subprocess.CompletedProcess([], 1, stdout="", stderr="Traceback\nMemoryError: gone")
    monkeypatch.setattr(subprocess, "run", lambda *args, **options: failed)
    with pytest.raises(AssetError, match="a fresh process cannot load .*: MemoryError: gone"):
        verify(tmp_path)
