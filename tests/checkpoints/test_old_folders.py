"""Checkpoints that commit 2e8522c wrote load with the present code, and prove themselves alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from streamline.checkpoints.checkpoint import load
from streamline.checkpoints.self_test import verify
from streamline.plan import Plan, Span, Step

FOLDER = Path(__file__).parents[1] / "data" / "commit_2e8522c" / "checkpoints"
PLANS = {
    "plain": Plan.drop(4, [0, 2]),
    "custom": Plan(4, (Step(0, "no-attention"), Step(1, "ffn", Span(1, 3)), Step(3, "no-mlp"))),
    "narrow": Plan.drop(4, []),
}


@pytest.mark.parametrize("name", PLANS)
@torch.no_grad()
def test_an_old_checkpoint_gives_the_logits_that_it_was_saved_with(name: str) -> None:
    model, tokenizer, info = load(FOLDER / name)
    assert type(model).__module__.split(".")[0] in ("streamline", "transformers")
    assert (info.plan, info.plain) == (PLANS[name], name == "plain")
    assert info.provenance["parameters"] == model.num_parameters()
    assert (tokenizer is None) == (name == "narrow")
    with safe_open(FOLDER / name / "self_test.safetensors", "pt") as file:
        ids, logits, tokens = (file.get_tensor(key) for key in ("input_ids", "logits", "tokens"))
    torch.testing.assert_close(model(ids).logits[:, -1], logits, rtol=0, atol=1e-5)
    again = model.generate(
        ids[:1],
        max_new_tokens=tokens.shape[1] - ids.shape[1],
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    assert torch.equal(again, tokens)


@pytest.mark.parametrize("trust", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_old_checkpoints_verify_in_a_fresh_process(trust: bool) -> None:
    reports = verify(*(FOLDER / name for name in PLANS), trust_remote_code=trust)
    assert [report["without_package"] for report in reports] == [True] * len(PLANS)
    assert all(report["same_continuation"] for report in reports)
